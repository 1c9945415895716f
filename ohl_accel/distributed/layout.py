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


def shrink(trajectories: int, processes: int, full: int, requested: int | None) -> tuple[int, int]:
    """How many trajectories go on, and in how many groups, when only some of a run's processes are left.

    Groups keep their size and host as many trajectories as before, so that an outer step takes no longer: as many
    groups go on as there are processes for. Where what is left divides into fewer groups only, these are larger. At
    least two trajectories go on, since only differences between their rewards teach: on a single group in turn.

    Args:
        trajectories: N, of the whole run.
        processes: those that are left.
        full: those that host all N.
        requested: `outer.groups`.

    Returns:
        All N, in as many groups as `choose_groups` says, if no process is missing.

    Raises:
        UserError: if the numbers of the whole run do not fit.
    """
    if processes >= full:
        return trajectories, choose_groups(trajectories, processes, requested)
    groups = choose_groups(trajectories, full, requested)
    whole = max(1, processes * groups // full)
    number = next(each for each in range(whole, 0, -1) if processes % each == 0)
    return max(min(2, trajectories), number * (trajectories // groups)), number


def fewest_that_fit(trajectories: int, processes: int, requested: int | None) -> int:
    """The smallest number of processes from `processes` on for which `choose_groups` has groups.

    Args:
        trajectories: N.
        processes: the least.
        requested: `outer.groups`; it divides N.
    """
    step = requested or trajectories
    multiple = -(-processes // step) * step
    return processes if requested is None and trajectories % processes == 0 else multiple


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]
