"""A finished run that is made longer is the longer run, where its beginning does not depend on its length."""

import json
from pathlib import Path

import pytest
from conftest import REPOSITORY, SMALL, final_state

from ohl_accel.engine.checkpoint import newest_whole
from ohl_accel.engine.same_run import check_recipe
from ohl_accel.engine.search import search
from ohl_accel.engine.train import train
from ohl_accel.errors import UserError
from ohl_accel.policy import Policy
from ohl_accel.policy.estimators import ESTIMATORS, open_estimator
from ohl_accel.recipe import Recipe

DIGITS = str(REPOSITORY / "recipes" / "digits.yaml")


def run(folder: Path, steps: int, *overrides: str, learn: bool = True) -> None:
    (search if learn else train)(
        DIGITS, [*SMALL, f"run.dir={folder}", f"outer.steps={steps}", "run.resume=auto", *overrides]
    )


@pytest.mark.parametrize(
    ("learn", "overrides"),
    [
        (True, ["inner.schedule.name=constant"]),
        (False, ["inner.schedule={name: multistep, milestones: [0.15]}", "augment.policy=uniform"]),
    ],
)
def test_a_longer_run(tmp_path: Path, learn: bool, overrides: list[str]) -> None:
    run(tmp_path / "whole", 4, *overrides, learn=learn)
    for steps in (2, 4):
        run(tmp_path / "longer", steps, *overrides, learn=learn)
    whole, longer = (final_state(tmp_path / name) for name in ("whole", "longer"))
    assert longer == whole
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "longer")]
    assert results[0] == results[1]
    assert results[0]["outer_steps"] == 4


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (
            5,
            r"was 4, now 5. It cannot be made longer, because inner.schedule.name=cosine .*policy=RUN starts",
        ),
        (3, r"a different recipe \(outer.steps was 4, now 3\)"),
    ],
)
def test_what_would_be_another_run(small_run: Path, now: int, message: str) -> None:
    """Refused, with what would work, before anything in the folder changes."""
    before = {file.name: file.read_bytes() for file in small_run.iterdir() if file.is_file()}
    with pytest.raises(UserError, match=message):
        run(small_run, now, "outer.lr=0.3")
    assert {file.name: file.read_bytes() for file in small_run.iterdir() if file.is_file()} == before


def test_only_the_papers_estimator_does_not_plan_ahead() -> None:
    """Others spread something over the run: rounds, shares of it, generations."""
    assert [name for name, kind in ESTIMATORS.items() if not kind.plans_ahead] == ["reinforce"]


def test_an_estimator_that_plans_ahead_is_named(small_run: Path) -> None:
    contents = newest_whole(small_run / "checkpoints", print)
    assert contents is not None
    contents.document["recipe"]["inner"]["schedule"]["name"] = "constant"
    recipe = Recipe.check(contents.document["recipe"])
    longer = recipe.with_values(outer={"steps": 5})
    estimators = {
        name: open_estimator(
            name, Policy(), {}, lr=0.1, betas=(0.5, 0.9), trajectories=4, outer_steps=5, seed=0
        )
        for name in ("reinforce", "reinforce-trust")
    }
    check_recipe(contents, longer, estimators["reinforce"])
    check_recipe(contents, longer, None)
    with pytest.raises(UserError, match=r"because outer.estimator=reinforce plans for outer.steps"):
        check_recipe(contents, longer, estimators["reinforce-trust"])
