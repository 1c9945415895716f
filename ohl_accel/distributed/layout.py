"""Who trains what: W processes are divided into groups, and each group hosts some of the N trajectories.

Each group has G = W / groups processes, which share the batches of a trajectory, and hosts R = N / groups of them.
"""

from dataclasses import dataclass
from math import gcd

from ohl_accel.errors import UserError


@dataclass(frozen=True)
class Layout:
    """The position of one process.

    `rank` in 0..W-1; `group` in 0..groups-1; `data_rank` in 0..G-1 inside the group.
    """

    trajectories: int
    """N."""
    processes: int
    """W."""
    rank: int
    groups: int

    @property
    def group_size(self) -> int:
        """G, number of processes of a group."""
        return self.processes // self.groups

    @property
    def group(self) -> int:
        """The group of this process."""
        return self.rank // self.group_size

    @property
    def data_rank(self) -> int:
        """The rank of this process inside its group; 0 is the leader."""
        return self.rank % self.group_size

    @property
    def hosted(self) -> range:
        """The R trajectories of this process's group."""
        per_group = self.trajectories // self.groups
        return range(self.group * per_group, (self.group + 1) * per_group)


def choose_groups(trajectories: int, processes: int, requested: int | None) -> int:
    """The number of groups: as requested, or as many as both numbers allow.

    Raises:
        UserError: if the numbers do not fit; the message lists those that do.
    """
    if requested is not None:
        if trajectories % requested or processes % requested:
            common = _divisors(gcd(trajectories, processes))
            raise UserError(
                f"outer.groups={requested} must divide both the {trajectories} trajectories and the {processes} "
                f"processes: use one of {common}, or null"
            )
        return requested
    if trajectories % processes and processes % trajectories:
        fitting = _divisors(trajectories)  # at least two: one trajectory fits any number of processes
        common = _divisors(gcd(trajectories, processes))
        raise UserError(
            f"world size {processes} does not fit {trajectories} trajectories: use "
            f"{', '.join(map(str, fitting[:-1]))} or {fitting[-1]} processes, or a multiple of "
            f"{trajectories}; or set outer.groups to {' or '.join(map(str, common))}, so that several "
            "processes share the batches of each trajectory"
        )
    return min(trajectories, processes)


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]
