"""What is compared: every contender is one way to run the same recipe.

| name | what runs |
|---|---|
| none, cutout, mixup, uniform, autoaugment, randaugment, trivialaugment | training with that fixed policy |
| a policy.json, a run folder or a Hub id | training with that learned policy |
| ohl | the search as in the recipe: N trajectories, a learned policy |
| uniform-best-of-n | the paper's search with outer.lr=0: N trajectories and their selection, nothing learned |
| ohl-fresh | training from scratch with the policy that `ohl` learned with the same seed, frozen |
| NAME-compute-matched | training with a fixed policy for N times the steps: the compute of the search |
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ohl_accel.errors import UserError
from ohl_accel.policy.baselines import open_policy
from ohl_accel.recipe import Recipe
from ohl_accel.run_folder.files import POLICY_FILE

OHL = "ohl"
OHL_FRESH = "ohl-fresh"
BEST_OF_N = "uniform-best-of-n"
_MATCHED = "-compute-matched"
_SIDE_FOR_CHECKS = 32


@dataclass(frozen=True)
class Contender:
    """One way to run the recipe."""

    name: str
    command: str
    """The module of `ohl_accel` that runs it: search or train."""
    overrides: tuple[str, ...]
    after: str | None = None
    """The contender whose run with the same seed must be finished first."""

    def compute(self, trajectories: int) -> int:
        """Images that its networks are trained on, as a multiple of one plain training."""
        if self.after is not None:
            return trajectories + 1
        return trajectories if self.command == "search" or self.name.endswith(_MATCHED) else 1

    @property
    def folder(self) -> str:
        """A folder name for it; learned policies get a digest, since different paths may have the same name."""
        if self.name == Path(self.name).name and re.fullmatch(r"[\w.-]+", self.name):
            return self.name
        digest = hashlib.blake2b(self.name.encode(), digest_size=4).hexdigest()
        return f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', self.name).strip('-.')}-{digest}"


def contender(name: str) -> Contender:
    """The contender with a name; `check` tells whether it can run."""
    if name == OHL:
        return Contender(name, "search", ())
    if name == BEST_OF_N:
        return Contender(
            name, "search", ("outer.estimator=reinforce", "outer.estimator_args={}", "outer.lr=0")
        )
    if name == OHL_FRESH:
        return Contender(name, "train", (), after=OHL)
    fixed = name.removesuffix(_MATCHED)
    match = "images" if fixed == name else "compute"
    return Contender(name, "train", (f"augment.policy={fixed}", f"train.match={match}"))


def check(contenders: Sequence[Contender], recipe: Recipe) -> None:
    """Reject, before anything runs, what cannot run.

    Raises:
        UserError: naming the contender.
    """
    names = [one.name for one in contenders]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UserError(f"--policies names {', '.join(repeated)} more than once")
    for one in contenders:
        if one.after is not None and one.after not in names:
            raise UserError(f"--policies has {one.name}, which needs {one.after}: give both")
        own = Recipe.of(recipe, one.overrides)
        if one.command == "train" and one.after is None:
            try:
                open_policy(own.augment, _SIDE_FOR_CHECKS)
            except UserError as error:
                known = (OHL, OHL_FRESH, BEST_OF_N, f"NAME{_MATCHED}")
                raise UserError(f"--policies {one.name}: {error}; here also {', '.join(known)}") from None


def arguments(one: Contender, run_folder_of_after: Path | None) -> list[str]:
    """The overrides of a contender's run, after the run that it needs has finished."""
    if run_folder_of_after is None:
        return list(one.overrides)
    return [*one.overrides, f"augment.policy={run_folder_of_after / POLICY_FILE}"]
