"""Whether a run can tell what it learned from noise: the statistics, and every place that says so."""

import hashlib
import itertools
import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, SMALL, final_state, rewind
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from ohl_accel.engine.search import search
from ohl_accel.errors import UserError
from ohl_accel.hub.card import model_card, policy_card
from ohl_accel.hub.contents import Finished
from ohl_accel.observers.scalars import scalars_of
from ohl_accel.observers.teaching import first_look
from ohl_accel.operations.space import PAPER, Space
from ohl_accel.policy import Policy
from ohl_accel.policy.estimators import Evidence, FinishedStep, Reinforce
from ohl_accel.policy.estimators.shadows import SHADOWS, signal_to_noise, tied_share
from ohl_accel.policy.evidence import LEVEL, START, Moved, advice_for, moved_in_words, multiple, read_evidence
from ohl_accel.recipe import HubSection
from ohl_accel.report import figures
from ohl_accel.report.write import write_gallery, write_report
from ohl_accel.run_folder.metrics import read_metrics

DIGITS = str(REPOSITORY / "recipes" / "digits.yaml")
SMALL_SPACE = Space("small", PAPER.elements[::9])
FIRST_K = SMALL_SPACE.elements_of(torch.arange(SMALL_SPACE.num_operations))[:, 0]


def learn(
    seed: int,
    steps: int,
    trajectories: int,
    reward_of: Callable[[Tensor, torch.Generator], Tensor],
    policy: Policy | None = None,
    lr: float = 0.05,
) -> Reinforce:
    """An estimator after some outer steps of 60 images; `reward_of` gets the counts [N, K]."""
    policy = policy or Policy(space=SMALL_SPACE)
    estimator = Reinforce(
        policy, lr=lr, betas=(0.5, 0.999), trajectories=trajectories, outer_steps=steps, seed=seed
    )
    generator = torch.Generator().manual_seed(seed)
    number = policy.space.num_operations
    for outer_step in range(steps):
        drawn = [policy.sample(60, generator).bincount(minlength=number) for _ in range(trajectories)]
        counts_NK = torch.stack(drawn)
        estimator.step(finished(outer_step, reward_of(counts_NK, generator), counts_NK))
    return estimator


def finished(outer_step: int, reward_N: Tensor, counts_NK: Tensor) -> FinishedStep:
    return FinishedStep(
        outer_step=outer_step,
        reward_N=reward_N.double(),
        finite_N=torch.ones(len(reward_N), dtype=torch.bool),
        recorded={"counts": counts_NK},
    )


def noise(counts_NK: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(len(counts_NK), generator=generator)


def first_element_pays(counts_NK: Tensor, generator: torch.Generator) -> Tensor:
    share_N = counts_NK[:, FIRST_K == 0].sum(1)
    return share_N + noise(counts_NK, generator)


def known(estimator: Reinforce) -> Evidence:
    evidence = estimator.evidence()
    assert evidence is not None
    return evidence


def test_tied_pairs_are_counted() -> None:
    every = torch.ones(4, dtype=torch.bool)
    assert tied_share(torch.tensor([1.0, 2, 3, 4]), every) == 0
    assert tied_share(torch.tensor([1.0, 1, 3, 4]), every) == pytest.approx(1 / 6)
    assert tied_share(torch.tensor([1.0, 1, 1, 4]), every) == pytest.approx(3 / 6)
    assert tied_share(torch.ones(4), every) == 1
    # one that diverged has the lowest reward of the others, which is no tie
    assert tied_share(torch.tensor([1.0, 1, 3, 4]), torch.tensor([False, True, True, True])) == 0
    assert tied_share(torch.ones(1), every[:1]) == 0


def test_signal_to_noise_has_mean_0_and_variance_1_over_all_permutations() -> None:
    reward, score = (
        torch.tensor([0.2, 0.9, 0.3, 0.3, 0.5]).double(),
        torch.tensor([3.0, 1, -1, 7, 2]).double(),
    )
    values = [signal_to_noise(reward[list(order)], score) for order in itertools.permutations(range(5))]
    assert np.mean(values) == pytest.approx(0, abs=1e-12)
    assert np.mean(np.square(values)) == pytest.approx(1)
    assert signal_to_noise(score, score) == pytest.approx(2)  # sqrt(N - 1)
    assert signal_to_noise(torch.ones(5).double(), score) == 0
    assert signal_to_noise(reward, torch.ones(5).double()) == 0


def test_p_values_of_noise_are_uniform() -> None:
    """200 runs on random rewards: Kolmogorov-Smirnov at 1 %, and as many below 5 % as there should be."""
    runs = [known(learn(seed, 15, 4, noise)) for seed in range(200)]
    p = np.sort([evidence.p_value for evidence in runs])
    rank = np.arange(1, 201) / 200
    steps = 1 / (SHADOWS + 1)  # p is discrete: k / 40
    assert max(np.abs(p - rank).max(), np.abs(p - (rank - 1 / 200)).max() - steps) < 1.63 / math.sqrt(200)
    assert sum(evidence.distinguishable for evidence in runs) <= 20  # expected 10, standard deviation 3.1
    mean = np.mean([evidence.signal_to_noise for evidence in runs])
    assert abs(mean) < 4 / math.sqrt(200 * 14)


def test_nothing_is_named_where_there_is_nothing() -> None:
    """All elements of policies that learned from noise are inside the band, in 95 of 100 runs or more."""
    outside = 0
    for seed in range(100):
        estimator = learn(1000 + seed, 8, 3, noise)
        outside += bool(known(estimator).sides(estimator.policy.element_probabilities).any())
    assert outside <= 11


def test_a_planted_effect_is_found() -> None:
    for seed in range(2):
        estimator = learn(seed, 40, 8, first_element_pays)
        evidence, policy = known(estimator), estimator.policy
        assert evidence.p_value == pytest.approx(1 / (SHADOWS + 1))
        assert evidence.verdict == "distinguishable from uniform (p = 0.025)"
        assert evidence.signal_to_noise is not None
        assert evidence.signal_to_noise > 0.5
        assert evidence.sides(policy.element_probabilities)[0, 0] == 1
        policy.provenance["evidence"] = evidence.document()
        moved = policy.moved_elements[0]
        assert (moved.name, moved.gained) == (f"{SMALL_SPACE.elements[0].name} first", True)
        assert moved.ratio == pytest.approx(float(policy.element_probabilities[0, 0]) * 4)
        assert moved.low < 1 < moved.high < moved.ratio


def test_all_rewards_tied() -> None:
    """Nothing moves, so nothing is distinguishable, and more held-out images are what would help first."""
    evidence = known(learn(0, 12, 4, lambda counts_NK, generator: torch.ones(4)))
    assert (evidence.p_value, evidence.tied_share, evidence.signal_to_noise) == (1, 1, 0)
    assert evidence.many_ties
    assert not evidence.teaches
    assert "data.heldout" in evidence.advice[0]
    assert "data.heldout" not in advice_for(0.5, 0.1)[0]
    assert advice_for(0.01, 0.1) == ()
    assert len(advice_for(0.01, 0.6)) == 1


def test_two_trajectories_and_few_outer_steps() -> None:
    """One outer step has two arrangements, two have four: the p-value does not fall below one over their number."""
    for steps, fewest in ((1, 0.2), (2, 0.05)):  # half and a quarter of the 39 shadows coincide, give or take
        for seed in range(10):
            assert known(learn(seed, steps, 2, first_element_pays)).p_value > fewest
    assert known(learn(0, 60, 2, first_element_pays)).distinguishable


def test_a_band_around_a_learned_start() -> None:
    """It is compared with the policy that it started from, not with the uniform one."""
    theta = torch.linspace(-2, 2, SMALL_SPACE.num_operations, dtype=torch.float64)
    start = Policy(theta, space=SMALL_SPACE)
    evidence = known(learn(0, 10, 4, noise, Policy(theta, space=SMALL_SPACE)))
    assert evidence.reference == START
    assert not evidence.sides(start.element_probabilities).any()
    assert evidence.low_AE is not None
    assert evidence.high_AE is not None
    low, high = torch.tensor(evidence.low_AE), torch.tensor(evidence.high_AE)
    assert ((low < start.element_probabilities) & (start.element_probabilities < high)).all()


def test_nothing_is_measured_where_nothing_is_learned() -> None:
    assert learn(0, 3, 4, noise, lr=0).evidence() is None
    assert learn(0, 0, 4, noise).evidence() is None
    assert learn(0, 3, 1, noise).evidence() is None


def test_shadows_do_not_change_what_is_learned() -> None:
    """theta equals that of an estimator without shadows, bit for bit; and a checkpoint without them is read."""
    whole = learn(3, 6, 4, noise)
    bare = {key: value for key, value in whole.state().items() if not key.startswith("shadows.")}
    assert set(bare) == {"theta", "exp_avg", "exp_avg_sq", "step"}
    old = Reinforce(
        Policy(space=SMALL_SPACE), lr=0.05, betas=(0.5, 0.999), trajectories=4, outer_steps=6, seed=3
    )
    old.load_state({key: torch.zeros_like(value) for key, value in bare.items()})
    generator = torch.Generator().manual_seed(3)
    for outer_step in range(6):
        drawn = [old.policy.sample(60, generator).bincount(minlength=16) for _ in range(4)]
        counts_NK = torch.stack(drawn)
        old.step(finished(outer_step, noise(counts_NK, generator), counts_NK))
    assert torch.equal(old.policy.theta, whole.policy.theta)
    assert old.evidence() is None


def test_the_document_is_read_as_it_was_written() -> None:
    evidence = known(learn(0, 5, 4, noise))
    document = json.loads(json.dumps(evidence.document()))
    assert read_evidence(document, 2, 4) == evidence
    assert evidence.line() == {
        "p_value": evidence.p_value,
        "tied_share": 0.0,
        "signal_to_noise": evidence.signal_to_noise,
        "step_tied_share": 0.0,
        "step_signal_to_noise": evidence.step_signal_to_noise,
    }
    least = Evidence(p_value=0.5, outer_steps=3)  # what any estimator can say
    assert read_evidence(least.document(), 2, 4) == least
    assert not least.sides(torch.ones(2, 4)).any()
    assert (least.measurements, least.short, least.side_of_operation(9)) == ("", "p 0.5", 0)


def test_small_numbers_are_not_called_zero_and_many_elements_not_listed() -> None:
    assert [multiple(ratio) for ratio in (0.00051, 0.027, 0.3, 1.0, 9.996, 36.4, 1303.1)] == [
        "0.00051", "0.027", "0.30", "1.00", "10.00", "36", "1,303",
    ]  # fmt: skip
    assert Evidence(p_value=9.7e-36, outer_steps=80).verdict == "distinguishable from uniform (p < 0.0001)"
    assert Evidence(p_value=9.7e-36, outer_steps=80).short == "p < 0.0001"
    rotations = [Moved(f"Rotate {10 * n} first", 0.02 + n / 1000, 0.4, 2.6) for n in range(8)]
    inverted = Moved("Invert second", 3.0, 0.4, 2.6)
    assert moved_in_words(rotations) == list(map(str, rotations))
    assert moved_in_words([*rotations, inverted]) == [
        "Rotate: 8 elements below the noise band, 0.02 to 0.027 x uniform",
        "Invert second: 3.00 x uniform (noise: 0.40 to 2.60)",
    ]


@pytest.mark.parametrize(
    "changed",
    [
        {"p_value": 2}, {"p_value": True}, {"p_value": "0.5"}, {"p_value": 10**400}, {"outer_steps": -1},
        {"outer_steps": 1.5},
    ],
)  # fmt: skip
def test_a_damaged_document_says_nothing(changed: dict[str, Any]) -> None:
    document = known(learn(0, 2, 4, noise)).document()
    assert read_evidence({**document, **changed}, 2, 4) is None
    assert read_evidence(None, 2, 4) is None


def test_a_damaged_band_is_no_band() -> None:
    document = known(learn(0, 2, 4, noise)).document()
    bands: Sequence[Any] = ([], [[0.1] * 4], [[0.1] * 4, ["x"] * 4], [[0.1] * 4, 7], "low")
    for band in bands:
        evidence = read_evidence({**document, "low_AE": band}, 2, 4)
        assert evidence is not None
        assert evidence.low_AE is evidence.high_AE is None
    evidence = read_evidence({**document, "operation_band": [1], "advice": "none"}, 2, 4)
    assert evidence is not None
    assert (evidence.operation_band, evidence.advice) == (None, ())


def test_the_search_keeps_what_it_knows(small_run: Path) -> None:
    policy = Policy.load(small_run)
    evidence = policy.evidence
    assert evidence is not None
    assert evidence.outer_steps == 4
    lines = read_metrics(small_run / "metrics.jsonl")
    assert lines[-1]["evidence"] == evidence.line()
    scalars = scalars_of(lines[-1], policy)
    assert scalars["evidence/p_value"] == evidence.p_value
    assert scalars["evidence/tied_share"] == evidence.tied_share
    assert evidence.verdict in repr(policy)


def test_resume_is_bitwise(small_run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(small_run, tmp_path / "run"))
    rewind(folder, "step-000003")
    again = [*SMALL, "outer.lr=0.3", f"run.dir={folder}", "run.resume=auto"]
    search(DIGITS, again)
    whole = final_state(small_run)
    assert any(name.startswith("policy.shadows.") for name in whole["checkpoint"])
    assert final_state(folder) == whole
    assert (folder / "policy.json").read_text() == (small_run / "policy.json").read_text()
    result = search(DIGITS, again)  # no outer step is left
    assert result.policy is not None
    assert result.policy.evidence == Policy.load(small_run).evidence


def test_the_cost_is_small(small_run: Path) -> None:
    """State of the shadows: 3 x 39 numbers for each operation, and no time that shows."""
    (checkpoint,) = (small_run / "checkpoints").glob("step-000004")
    state = load_file(checkpoint / "state.safetensors")
    shadows = [value for name, value in state.items() if name.startswith("policy.shadows.")]
    assert sum(value.numel() for value in shadows) < 1296 * (3 * SHADOWS + 2)
    for line in read_metrics(small_run / "metrics.jsonl"):
        assert line["seconds"]["update"] < 0.5


def with_evidence(run: Path, folder: Path, **changes: Any) -> tuple[Path, Policy]:
    """A copy of a run folder in which the first operation's elements are far above a narrow band, or whatever else."""
    folder = Path(shutil.copytree(run, folder))
    policy = Policy.load(folder)
    evidence = policy.evidence
    assert evidence is not None
    policy.theta[:36] = 3.0  # the first element first
    band = {"low_AE": [[0.02] * 36] * 2, "high_AE": [[0.04] * 36] * 2, "operation_band": [0.5, 1.5]}
    policy.provenance["evidence"] = {**evidence.document(), **band, "p_value": LEVEL / 2, **changes}
    policy.save(folder / "policy.json")
    (folder / "digests.json").unlink(missing_ok=True)  # the policy is no longer what the run wrote
    return folder, policy


def surfaces(folder: Path) -> dict[str, str]:
    """What report, gallery and both cards say."""
    policy, run = Policy.load(folder), Finished.read(folder)
    Image.new("RGB", (8, 8)).save(folder / "image.png")
    write_gallery(str(folder / "policy.json"), folder / "image.png", folder / "gallery.html", draws=1, seed=0)
    section = HubSection(repo="user/name")
    return {
        "report": write_report(folder, lambda text: None).read_text(),
        "gallery": (folder / "gallery.html").read_text(),
        "card": model_card(run, section),
        "policy card": policy_card(policy, section),
    }


def test_surfaces_name_what_is_outside_the_band(small_run: Path, tmp_path: Path) -> None:
    folder, policy = with_evidence(small_run, tmp_path / "run")
    name = f"{PAPER.elements[0].name} first"
    assert [moved.name for moved in policy.moved_elements] == [name]
    for where, text in surfaces(folder).items():
        assert "distinguishable from uniform (p = 0.025)" in text, where
        assert "indistinguishable" not in text, where
        assert "above the noise" in text, where
        assert where == "gallery" or name in text
    assert figures.policy_marginals(policy) != figures.policy_marginals(Policy(policy.theta))


def test_surfaces_call_nothing_gained_inside_the_band(small_run: Path, tmp_path: Path) -> None:
    """Even if a probability is far above the band, when the policy as a whole is not distinguishable."""
    folder, policy = with_evidence(small_run, tmp_path / "run", p_value=0.4)
    assert policy.moved_elements == []
    for where, text in surfaces(folder).items():
        assert "indistinguishable from uniform (p = 0.4)" in text, where
        assert "inside the noise" in text, where
        for word in ("prefers ", "Gained", "gained", "avoids", "above the noise", "below the noise"):
            assert word not in text, (where, word)


def test_surfaces_of_a_policy_without_evidence(small_run: Path, tmp_path: Path) -> None:
    folder, policy = with_evidence(small_run, tmp_path / "run")
    del policy.provenance["evidence"]
    policy.save(folder / "policy.json")
    for where, text in surfaces(folder).items():
        assert "not measured" in text, where
        assert "inside the noise" not in text, where


def test_a_run_says_when_its_rewards_teach_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten held-out images: most rewards tie. One warning after ten outer steps, none on resume; and in the summary."""
    small = ["model.args.width=4", "outer.steps=12", "outer.inner_steps=1", "inner.batch_size=10"]
    own = [*small, "data.heldout=10", "run.checkpoint_every=1", "run.keep_checkpoints=99"]
    own += [f"run.dir={tmp_path}", "run.display=plain"]
    search(DIGITS, own)
    shown = capsys.readouterr().out
    early = [line for line in shown.splitlines() if line.startswith("warning: after outer step 10 of 12")]
    assert len(early) == 1
    assert early[0].count("warning:") == shown.count("warning:") == 1
    summary = shown[shown.index("Search finished") :]
    for text in (*early, summary):
        assert "indistinguishable from uniform (p = " in text
        assert "outer.inner_steps" in text
        assert "data.heldout" in text
    assert "% tied, loss" in shown
    assert "│ evidence " in shown
    assert "gained" not in shown
    rewind(tmp_path, "step-000010")
    search(DIGITS, [*own, "run.resume=auto"])
    shown = capsys.readouterr().out
    assert "warning:" not in shown
    assert "would help" in shown


def test_when_a_run_is_looked_at_first() -> None:
    assert [first_look(steps) for steps in (1, 50, 100, 101, 300)] == [10, 10, 10, 11, 30]


def test_one_trajectory_cannot_learn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is refused with the ways out; a frozen policy is not; a run that has begun goes on, and says so."""
    own = [*SMALL, "outer.trajectories=1", "outer.steps=2", f"run.dir={tmp_path}"]
    with pytest.raises(
        UserError, match=r"outer.trajectories=1: outer.estimator=reinforce learns nothing from fewer than 2 .*"
        r"outer.trajectories=2 or more; `ohl_accel.train`.*outer.lr=0",
    ):  # fmt: skip
        search(DIGITS, own)
    search(DIGITS, [*own, "outer.lr=0"])
    rewind(tmp_path, "step-000001")
    for file in (tmp_path / "checkpoints").glob("*/state.json"):  # as an earlier version had begun it
        document = json.loads(file.read_text())
        document["recipe"]["outer"]["lr"] = 0.05
        text = json.dumps(document)
        file.write_text(text)
        digests = json.loads((file.parent / "digests.json").read_text())
        digests["state.json"] = _sha256(text)
        (file.parent / "digests.json").write_text(json.dumps(digests))
    capsys.readouterr()
    result = search(DIGITS, [*own, "run.resume=auto"])
    assert "warning: outer.trajectories=1" in capsys.readouterr().out
    assert result.policy == Policy()
    assert result.policy is not None
    assert result.policy.evidence is None


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_an_estimator_that_returns_anything_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text(
        "from ohl_accel.policy.estimators import Reinforce\n\n\nclass Wrong(Reinforce):\n"
        "    def evidence(self):\n        return {'p_value': 0.01}\n"
    )
    with pytest.raises(
        UserError, match=r"evidence\(\) must return an Evidence or None, got {'p_value': 0.01}"
    ):
        search(
            DIGITS, [*SMALL, f"run.dir={tmp_path / 'run'}", f"outer.estimator={tmp_path / 'wrong.py'}:Wrong"]
        )
