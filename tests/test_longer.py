"""A finished run that is made longer is the longer run, where its beginning does not depend on its length."""

import json
from pathlib import Path

import pytest
from conftest import REPOSITORY, SMALL, final_state

from ohl_accel.engine.search import search
from ohl_accel.engine.train import train
from ohl_accel.errors import UserError

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


def test_an_estimator_that_plans_ahead(tmp_path: Path) -> None:
    overrides = ["inner.schedule.name=constant", "outer.estimator=reinforce-trust"]
    run(tmp_path / "run", 1, *overrides)
    with pytest.raises(UserError, match=r"because outer.estimator=reinforce-trust plans for outer.steps"):
        run(tmp_path / "run", 2, *overrides)
