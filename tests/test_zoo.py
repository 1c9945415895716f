"""Policies that come with the package: found by name, never without evidence, and usable wherever a policy is."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY

from benchmarks import zoo_entry
from ohl_accel import PolicyTransform, cli
from ohl_accel.comparison.contenders import check, contender
from ohl_accel.comparison.statistics import paired_difference
from ohl_accel.errors import UserError
from ohl_accel.policy import Policy, zoo
from ohl_accel.policy.baselines import open_policy
from ohl_accel.recipe import AugmentSection, Recipe

EVIDENCE: dict[str, Any] = {
    "command": "ohl-accel compare digits",
    "data": "made for a test",
    "seeds": [0, 1, 2],
    "learned": [0.60, 0.62, 0.61],
    "uniform": [0.50, 0.51, 0.52],
    "difference": 0.10,
    "interval": [0.05, 0.15],
}


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Policy:
    """The only policy of a zoo, zoo:less-geometry."""
    monkeypatch.setattr(zoo, "FOLDER", tmp_path)
    policy = Policy(torch.linspace(-1, 1, 1296, dtype=torch.float64), {"gain": EVIDENCE})
    policy.save(tmp_path / "less-geometry.json")
    return policy


def test_a_policy_of_the_zoo_is_used_by_its_name(made: Policy, capsys: pytest.CaptureFixture[str]) -> None:
    name = "zoo:less-geometry"
    assert zoo.names() == ["less-geometry"]
    assert Policy.from_pretrained(name) == made
    assert PolicyTransform(name).policy == made
    assert open_policy(AugmentSection(policy=name), 32) == made
    digits = str(REPOSITORY / "recipes" / "digits.yaml")
    check([contender(name), contender(f"{name}-compute-matched")], Recipe.load(digits))
    assert cli.main(None, ["policies"]) == 0
    listed = capsys.readouterr().out
    assert listed == (
        "zoo:less-geometry\n  +10.00 points of test accuracy over uniform (+5.00 to +15.00, 3 seeds): made for a test\n"
    )
    assert cli.main(None, ["policies", name]) == 0
    assert "measured by: ohl-accel compare digits" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["zoo:less-geometri", "zoo:", "zoo:../less-geometry", "zoo:Less-Geometry"])
def test_unknown_names(made: Policy, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for use in (Policy.from_pretrained, PolicyTransform):
        with pytest.raises(ValueError, match=rf"no policy {name}; .*known: zoo:less-geometry"):
            use(name)
    with pytest.raises(
        UserError, match=rf"augment.policy={name}: there is no policy .*known: zoo:less-geometry"
    ):
        open_policy(AugmentSection(policy=name), 32)
    assert cli.main(None, ["policies", name]) == 2
    assert "known: zoo:less-geometry" in capsys.readouterr().err


def test_other_mistakes(made: Policy, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="has no revisions: omit revision='v1'"):
        Policy.from_pretrained("zoo:less-geometry", "v1")
    assert cli.main(None, ["policies", "less-geometry"]) == 2
    assert "are named zoo:NAME" in capsys.readouterr().err
    (tmp_path / "less-geometry.json").unlink()
    with pytest.raises(ValueError, match="this version comes with none"):
        Policy.from_pretrained("zoo:less-geometry")
    assert cli.main(None, ["policies"]) == 0
    assert capsys.readouterr().out == "no learned policies come with this version\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "its provenance has no `gain`"),
        ({"command": ""}, "gain.command must be a text"),
        ({"data": 3}, "gain.data must be a text, got 3"),
        ({"seeds": [0]}, "gain.seeds must list at least 2 different seeds"),
        ({"seeds": [0, 1, 1]}, "gain.seeds must list at least 2 different seeds"),
        ({"learned": [0.6, 0.6]}, "gain.learned must have 3 finite numbers"),
        ({"uniform": [0.5, 0.5, "0.5"]}, "gain.uniform must have 3 finite numbers"),
        ({"difference": None}, "gain.difference must have 1 finite number"),
        ({"difference": 0.12}, "difference is 0.12, but learned minus uniform is 0.1"),
        ({"interval": [-0.01, 0.2]}, "interval must lie above 0, around 0.1, got"),
        ({"interval": [0.11, 0.2]}, "interval must lie above 0, around 0.1, got"),
    ],
)
def test_no_policy_without_evidence(
    made: Policy, tmp_path: Path, change: dict[str, Any] | None, message: str
) -> None:
    provenance = {} if change is None else {"gain": {**EVIDENCE, **change}}
    Policy(provenance=provenance).save(tmp_path / "claimed.json")
    with pytest.raises(ValueError, match=f"claimed.json cannot be in the zoo: .*{message}"):
        Policy.from_pretrained("zoo:claimed")


def is_what_the_seeds_say(gain: zoo.Gain) -> bool:
    found = paired_difference(gain.learned, gain.uniform)
    return found.t_interval == pytest.approx(gain.interval) and found.mean == pytest.approx(gain.difference)


def test_an_entry_is_made_from_a_comparison(made: Policy, tmp_path: Path) -> None:
    rows = [
        {"policy": "uniform", "accuracy": {"0": 0.5, "1": 0.51, "2": 0.52, "9": 0.5}},
        {"policy": str(tmp_path / "mine.json"), "accuracy": {"2": 0.61, "0": 0.6, "1": 0.62}},
        {"policy": "same", "accuracy": {"0": 0.5, "1": 0.52, "2": 0.51}},
    ]
    comparison = tmp_path / "comparison"
    comparison.write_text(json.dumps({"command": "ohl-accel compare x", "rows": rows}))
    Policy().save(tmp_path / "mine.json")
    file = zoo_entry.main(["new", str(tmp_path / "mine.json"), str(comparison), "--data", "digits"])
    gain = zoo.gain_of(Policy.from_pretrained("zoo:new").provenance)
    assert file == tmp_path / "new.json"
    assert gain.learned == (0.6, 0.62, 0.61)
    assert is_what_the_seeds_say(gain)
    rows[1]["policy"] = "other"
    with pytest.raises(UserError, match=r"has no mine.json, only uniform, other, same"):
        zoo_entry.gain({"rows": rows}, "mine.json", "digits")
    weak = zoo_entry.gain({"command": "x", "rows": rows}, "same", "digits")
    with pytest.raises(ValueError, match="interval must lie above 0"):
        zoo.gain_of({"gain": weak})


def test_what_comes_with_the_package_is_what_its_seeds_say() -> None:
    """Every file of the folder opens by its name, and its interval is Student's of its own numbers."""
    files = [file for file in zoo.FOLDER.iterdir() if file.suffix not in (".py", "")]
    assert [file.name for file in sorted(files)] == [f"{name}.json" for name in zoo.names()]
    for name in zoo.names():
        assert is_what_the_seeds_say(zoo.gain_of(Policy.from_pretrained(f"zoo:{name}").provenance)), name


def test_the_page_of_learned_policies_is_up_to_date() -> None:
    """And its pictures follow the reader's theme."""
    docs = REPOSITORY / "docs"
    made = runpy.run_path(str(docs / "policies.py"))
    assert (docs / "policies.md").read_text() == made["page"](), "run `make policies`"
    for name in zoo.names():
        drawn = made["picture"](Policy.from_pretrained(f"zoo:{name}"))
        kept = (docs / f"policy-{name}.svg").read_text()
        for text in (drawn, kept):
            assert "@media (prefers-color-scheme: dark)" in text
            assert text.count("Solarize 26") == 1
