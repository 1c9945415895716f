"""What is compared: every contender is one way to run the same recipe.

| name | what runs |
|---|---|
| none, cutout, mixup, uniform, autoaugment, randaugment, trivialaugment | training with that fixed policy |
| a policy.json, a run folder, a Hub id or zoo:NAME | training with that learned policy |
| ohl | the search as in the recipe: N trajectories, a learned policy |
| search:ESTIMATOR | the recipe's search with another `outer.estimator`, by its own defaults |
| population | `search:population`, the plain baseline: N random policies kept to the end, the best one wins |
| uniform-best-of-n | the paper's search with outer.lr=0: N trajectories and their selection, nothing learned |
| NAME-fresh | training from scratch with the policy that the search NAME learned with the same seed, frozen |
| NAME-compute-matched | training with a fixed policy for N times the steps: the compute of the search |

A search is ohl, population or search:ESTIMATOR. All of them, and uniform-best-of-n, score networks as the recipe says,
with `outer.average` by averaged weights, so that no difference between two of them is one of scoring.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ohl_accel.errors import UserError
from ohl_accel.policy import Policy
from ohl_accel.policy.baselines import open_policy
from ohl_accel.policy.estimators import open_estimator
from ohl_accel.recipe import Recipe
from ohl_accel.run_folder.files import POLICY_FILE

OHL = "ohl"
BEST_OF_N = "uniform-best-of-n"
POPULATION = "population"
_SEARCH = "search:"
FRESH = "-fresh"
"""After the name of a search: training from scratch with the policy that it learned."""
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
    searched = name.removesuffix(FRESH)
    if searched in (OHL, POPULATION) or searched.startswith(_SEARCH):
        if name != searched:
            return Contender(name, "train", (), after=searched)
        return Contender(name, "search", () if name == OHL else _by(name.removeprefix(_SEARCH)))
    if name == BEST_OF_N:
        return Contender(name, "search", (*_by("reinforce"), "outer.lr=0"))
    fixed = name.removesuffix(_MATCHED)
    match = "images" if fixed == name else "compute"
    return Contender(name, "train", (f"augment.policy={fixed}", f"train.match={match}"))


def _by(estimator: str) -> tuple[str, ...]:
    return (f"outer.estimator={estimator}", "outer.estimator_args={}")


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
        if one.after is not None:
            continue
        try:
            policy = open_policy(own.augment, _SIDE_FOR_CHECKS)
            if one.command == "search" and isinstance(policy, Policy):
                _open_estimator(own, policy)
        except UserError as error:
            known = (OHL, f"{_SEARCH}ESTIMATOR", POPULATION, BEST_OF_N, f"NAME{FRESH}", f"NAME{_MATCHED}")
            also = f"; here also {', '.join(known)}" if one.command == "train" else ""
            raise UserError(f"--policies {one.name}: {error}{also}") from None


def _open_estimator(recipe: Recipe, policy: Policy) -> None:
    """Try whether the run could.

    Raises:
        UserError: for an unknown estimator, and for options or a length of the run that it does not take.
    """
    outer = recipe.outer
    settings = {"lr": outer.lr, "betas": outer.betas, "trajectories": outer.trajectories}
    open_estimator(
        outer.estimator,
        policy,
        outer.estimator_args,
        **settings,
        outer_steps=outer.steps,
        seed=recipe.run.seed,
    )


def arguments(one: Contender, run_folder_of_after: Path | None) -> list[str]:
    """The overrides of a contender's run, after the run that it needs has finished."""
    if run_folder_of_after is None:
        return list(one.overrides)
    return [*one.overrides, f"augment.policy={run_folder_of_after / POLICY_FILE}"]
