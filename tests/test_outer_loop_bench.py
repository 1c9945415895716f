"""The bench for outer loops: the simulator against closed forms, the planted answers, and every part, tiny."""

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from conftest import REPOSITORY, SHARED_DATA
from PIL import Image
from torch import Tensor

from benchmarks import outer_loop
from benchmarks.outer_loop_calibration import calibration, correlations, halves, only
from benchmarks.outer_loop_planted import PROBLEMS, Planted, inverted, rotated_digits, shifted
from benchmarks.outer_loop_real import Real, family_masses
from benchmarks.outer_loop_shared import (
    BEST_OF_N,
    FAMILIES,
    UNIFORM,
    Contestant,
    Known,
    Trial,
    elements_of,
    family_policy,
    independent_policy,
    table,
    transforms_of,
)
from benchmarks.outer_loop_simulator import (
    Networks,
    Settings,
    Surface,
    make_surface,
    simulate_search,
    simulate_training,
    trials_of,
)
from ohl_accel.comparison.jobs import Job
from ohl_accel.data import open_data
from ohl_accel.errors import UserError
from ohl_accel.operations.space import PAPER, PAPER_IDENTITY, Space
from ohl_accel.policy import Policy
from ohl_accel.policy.estimators import advantage_of, outer_gradient
from ohl_accel.policy.policy import probabilities_of
from ohl_accel.recipe import Recipe

STILL = Settings(noise=(0.0, 0.0), averaged_noise=(0.0, 0.0), luck=0.0, between_seeds=0.0)
"""No randomness but that of sampled operations."""
AT_ONCE = replace(STILL, delay=0.0, early=0.0)
SMALL = Space("small", [PAPER.elements[index] for index in (12, 27, 35)])
"""Rotate 10, Sharpness 1.3, Invert: nine operations."""
REINFORCE = Contestant.parse("reinforce,lr=0.05")


def test_the_surface_has_the_measured_values_and_its_best_policy_in_closed_form() -> None:
    surface = make_surface("families", 0)
    geometry = transforms_of("geometry")
    others = transforms_of("colour")
    assert float(surface.value(surface.uniform_E)) == pytest.approx(0, abs=1e-12)
    assert float(surface.value(only(others, surface))) == pytest.approx(3.7)
    assert float(surface.value(only(geometry, surface))) == pytest.approx(-12.5)
    assert surface.known.elements == tuple(elements_of(geometry))
    best_E = surface.best_E
    assert float(surface.value(best_E)) == pytest.approx(surface.best)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        nearby_E = torch.softmax(best_E.log() + 0.1 * torch.randn(36, generator=generator).double(), 0)
        assert float(surface.value(nearby_E)) < surface.best


def test_other_surfaces() -> None:
    families, scrambled, flat = (make_surface(kind, 3) for kind in ("families", "scrambled", "flat"))
    assert scrambled.known.elements != families.known.elements
    assert not torch.equal(scrambled.beta_E, make_surface("scrambled", 4).beta_E)
    assert scrambled.beta_E.unique().numel() == families.beta_E.unique().numel()
    assert torch.equal(flat.best_E, flat.uniform_E)
    assert flat.best == pytest.approx(0, abs=1e-12)
    assert len(make_surface("families", 0, PAPER_IDENTITY).beta_E) == 37
    with pytest.raises(UserError, match="--surface steep: must be one of families, scrambled, flat"):
        make_surface("steep", 0)


def test_constant_exposure_ends_at_its_value_whatever_the_delay() -> None:
    surface = make_surface("families", 0)
    share_NE = halves(surface, 2)
    for settings in (AT_ONCE, STILL, replace(STILL, outer_steps=30, delay=5.0)):
        networks = Networks(settings, surface, 0, len(share_NE), "test")
        for _ in range(settings.outer_steps):
            networks.train(share_NE)
        expected_N = settings.uniform + surface.value(share_NE)
        torch.testing.assert_close(
            (1 - 0.5 * math.exp(-6)) * settings.uniform - settings.uniform + expected_N, networks.quality()
        )


def test_late_changes_do_not_pay_and_early_scores_point_the_wrong_way() -> None:
    surface = make_surface("families", 0)
    better_E, uniform_E = only(transforms_of("colour"), surface), surface.uniform_E

    def gain(first: int, after: int) -> float:
        """Of a branch that changes to colour elements, against one that stays uniform."""
        networks = Networks(STILL, surface, 0, 2, "test")
        for step in range(after):
            networks.train(torch.stack([better_E if step >= first else uniform_E, uniform_E]))
        own, other = networks.quality().tolist()
        return float(own - other)

    assert gain(60, 65) < -0.1
    assert gain(60, 120) > 0.5
    assert gain(0, 240) == pytest.approx(3.7)
    assert 0 < gain(200, 240) < 0.1
    for averaged in (False, True):
        found = correlations(Settings(), (10, 240), 20, averaged)
        assert found[10] < -0.1
        assert found[240] > 0.9


def test_copies_inherit_the_whole_state() -> None:
    surface = make_surface("families", 0)
    networks = Networks(Settings(), surface, 0, 4, "test")
    networks.train(halves(surface, 2))
    before = networks.quality()
    networks.adopt([2, 1, 2, 1])
    assert torch.equal(networks.quality(), before[[2, 1, 2, 1]])
    assert before.unique().numel() == 4


def exact_objective(theta_K: Tensor, surface: Surface, settings: Settings) -> Tensor:
    """Expected final accuracy of one outer step with two images, over all pairs of operations."""
    pairs = torch.cartesian_prod(torch.arange(9), torch.arange(9))
    counts = torch.nn.functional.one_hot(pairs, 9).sum(1).double()
    share_E = torch.stack([SMALL.marginals(each).mean(0) for each in counts]) / 2
    probability_K = probabilities_of(theta_K)
    return (probability_K[pairs[:, 0]] * probability_K[pairs[:, 1]]) @ surface.value(share_E) / 100


def test_eq_6_is_the_exact_gradient_on_average_but_for_the_known_factor() -> None:
    """With the mean of N rewards as baseline, E[Eq 6] = (1 - 1/N) of the gradient."""
    surface = replace(make_surface("families", 0, SMALL), diversity=1.0)
    theta_K = torch.linspace(-1, 1, 9, dtype=torch.float64, requires_grad=True)
    (exact_K,) = torch.autograd.grad(exact_objective(theta_K, surface, AT_ONCE), theta_K)
    number, repeats = 4, 1500
    generator, policy = torch.Generator().manual_seed(0), Policy(theta_K, space=SMALL)
    estimates = []
    settings = replace(AT_ONCE, outer_steps=1, trajectories=number)
    for repeat in range(repeats):
        operations = policy.sample(2 * number, generator).view(number, 2)
        counts_NK = torch.stack([torch.bincount(each, minlength=9) for each in operations])
        networks = Networks(settings, surface, repeat, number, "test")
        networks.train(torch.stack([SMALL.marginals(each.double()).mean(0) for each in counts_NK]) / 2)
        estimates.append(outer_gradient(theta_K.detach(), counts_NK, advantage_of(networks.score(False))))
    found = torch.stack(estimates)
    error_K = found.std(0) / math.sqrt(repeats)
    assert bool(((found.mean(0) - (1 - 1 / number) * exact_K).abs() < 4 * error_K).all())
    assert float(torch.cosine_similarity(found.mean(0), exact_K, 0)) > 0.97


def test_a_search_without_noise_and_delay_finds_the_answer() -> None:
    settings = replace(AT_ONCE, outer_steps=80, batches=1, batch_size=50)
    surface = make_surface("families", 0, SMALL, threshold=1.5)
    learned = simulate_search(REINFORCE, settings, surface, 0, SMALL)
    assert surface.known.first_found(learned.factors) in range(2, 81)
    assert surface.known.is_found(learned.factors[-1])
    fresh = simulate_training(learned.estimator.policy, settings, surface, 0)
    assert fresh > simulate_training(Policy(space=SMALL), settings, surface, 0) + 0.01
    again = simulate_search(REINFORCE, settings, surface, 0, SMALL)
    assert (again.factors, again.network) == (learned.factors, learned.network)


APART = """
import torch
from benchmarks.outer_loop_shared import family_policy
from ohl_accel.policy.estimators import Estimator

class Apart(Estimator):
    '''Trajectory 0 keeps to colour, 1 to geometry; the first score and the last one are looked at.'''

    winners = []

    def policy_of(self, trajectory):
        return family_policy(("colour", "geometry")[trajectory])

    def is_scored(self, outer_step):
        return outer_step == 3

    def step(self, finished):
        self.winners.append((finished.outer_step, finished.winner, sorted(finished.recorded)))
        return {}

    def parents(self, finished):
        return [0, 1]

class Greedy(Apart):
    records = frozenset({"operations"})

    def parents(self, finished):
        return [1, 0]

class Sees(Apart):
    records = frozenset({"heldout_outcomes"})
"""


def test_estimators_decide_who_is_scored_and_who_continues(tmp_path: Path) -> None:
    file = tmp_path / "apart.py"
    file.write_text(APART)
    settings = replace(STILL, trajectories=2, outer_steps=60, delay=6.0)
    surface = make_surface("families", 0)
    run = simulate_search(Contestant.parse(f"{file}:Apart"), settings, surface, 0)
    # geometry looks better at first; colour, kept throughout, wins
    assert type(run.estimator).winners == [(3, 1, ["counts"]), (59, 0, ["counts"])]  # type: ignore[attr-defined]
    assert 100 * run.network == pytest.approx(settings.uniform + 3.7, abs=0.3)
    with pytest.raises(UserError, match=r"parents \[1, 0\] after outer step 4"):
        simulate_search(Contestant.parse(f"{file}:Greedy"), settings, surface, 0)
    with pytest.raises(UserError, match="a simulation has no images"):
        simulate_search(Contestant.parse(f"{file}:Sees"), settings, surface, 0)


def test_a_frozen_search_gains_what_selection_gains() -> None:
    settings = replace(Settings(), outer_steps=60, batches=1, batch_size=8)
    known, trials = trials_of([], settings, "flat", range(12))
    assert [trial.factor for trial in trials[BEST_OF_N]] == pytest.approx([1.0] * 12)
    plain = {trial.seed: trial.fresh or 0 for trial in trials[UNIFORM]}
    gains = [100 * ((trial.network or 0) - plain[trial.seed]) for trial in trials[BEST_OF_N]]
    assert 0.1 < sum(gains) / 12 < 2
    assert not any(known.is_found(trial.factor or 0) for trial in trials[UNIFORM])
    lines = calibration(settings, trials)
    assert any("colour elements only" in line and "+3.70 (set)" in line for line in lines)


def test_policies_of_families() -> None:
    policy = family_policy("colour")
    geometry = Known.family("geometry", more=False, threshold=2)
    assert geometry.factor(policy.element_probabilities) < 1e-3
    assert Known.family("colour", more=True, threshold=1.5).factor(
        policy.element_probabilities
    ) == pytest.approx(36 / 21, rel=1e-3)
    assert geometry.first_found([1.0, 0.6, 0.5, 0.7]) == 3
    assert str(geometry) == "less geometry: factor <= 0.5"
    assert sum(len(members) for members in FAMILIES.values()) == 15
    share_E = torch.softmax(torch.arange(36, dtype=torch.float64) / 10, 0)
    torch.testing.assert_close(independent_policy(share_E).element_probabilities, share_E.repeat(2, 1))
    with pytest.raises(
        UserError, match="no family warp; known: geometry, enhance, tone, identity, colour; joined by"
    ):
        family_policy("tone+warp")


def test_contestants_as_text() -> None:
    one = Contestant.parse(
        "mine.py:Rounds,lr=0.1,betas=[0.9, 0.99],average=0.95,lengths=[80, 40],prior=families"
    )
    assert (one.estimator, one.args) == ("mine.py:Rounds", {"lengths": [80, 40], "prior": "families"})
    outer = Recipe.of("digits", one.overrides()).outer
    assert (outer.lr, outer.betas, outer.average) == (0.1, (0.9, 0.99), 0.95)
    assert (outer.estimator, outer.estimator_args) == (one.estimator, one.args)
    for wrong in ("", "lr=0.1", "reinforce,lr=[1"):
        with pytest.raises(UserError, match="--estimator"):
            Contestant.parse(wrong)


def test_the_table_pairs_seeds() -> None:
    known = Known("a", (0,), more=True, threshold=3)
    trials = {
        UNIFORM: [Trial(0, 1.0, fresh=0.50), Trial(1, 1.0, fresh=0.52)],
        BEST_OF_N: [Trial(1, 1.0, network=0.53), Trial(0, 1.0, network=0.51)],
        "good": [
            Trial(0, 4.0, 10, 1000, 0.53, 0.54),
            Trial(1, 2.0, None, None, 0.55, 0.56),
            Trial(2, 6.0, 20, 2000, 0.9),
        ],
    }
    *_, row = table(trials, known)
    assert row == (
        "| good | 3 | 4.00 (-0.97 to 8.97) | 2 of 3 | 15 (2) | 1,500 (2) | 66.00 | +2.00 (+2.00 to +2.00) "
        "| 55.00 | +4.00 (+4.00 to +4.00) |"
    )


def test_the_simulator_as_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "new" / "page.md"
    own = [
        "--estimator",
        "reinforce",
        "--surface",
        "families",
        "--surface",
        "flat",
        "--seeds",
        "2",
        "--result",
        str(page),
    ]
    small = ["--set", "outer_steps=4", "--set", "batch_size=8", "--set", "noise=[1, 2]"]
    assert outer_loop.main(["simulator", *own, *small]) == 0
    text = page.read_text()
    assert "## families" in text
    assert "Known answer: less geometry: factor <= 0.5." in text
    assert "| reinforce | 2 |" in text
    assert "- command: `python -m benchmarks.outer_loop simulator --estimator reinforce" in text
    document = json.loads(page.with_suffix(".json").read_text())
    assert document["settings"]["noise"] == [1, 2]
    assert [trial["seed"] for trial in document["sections"]["flat"]["trials"]["reinforce"]] == [0, 1]
    assert str(page) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["simulator", "--estimator", "nothing"], "outer.estimator=nothing"),
        (["simulator", "--set", "speed=3"], "--set speed=3: unknown; the fields are outer_steps"),
        (["simulator", "--set", "delay=soon"], "--set delay=soon: must be like delay=24.0"),
        (
            ["simulator", "--set", "outer_steps=0"],
            "--set outer_steps=0: outer_steps must be at least 1, got 0",
        ),
        (["simulator", "--seeds", "0"], "--seeds 0 --first-seed 0: must be from 1, and from 0"),
        (["planted", "--problem", "cifar10-inverted"], "need its path: --data PATH"),
        (["simulator", "--estimator", "reinforce", "--estimator", "reinforce"], "is given more than once"),
    ],
)
def test_wrong_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert outer_loop.main([*arguments, "--result", str(tmp_path / "page.md")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "page.md").exists()


def picture(seed: int) -> Image.Image:
    levels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    return Image.fromarray(levels)


def test_planted_changes_are_what_the_answer_does() -> None:
    element_named = {element.name: index for index, element in enumerate(PAPER.elements)}
    image = picture(0)
    assert (
        PAPER.apply_element_to_pil(image, element_named["Invert"], False).tobytes()
        == inverted(image, 0).tobytes()
    )
    for index, negative in ((0, False), (1, True)):
        element = element_named["HorizontalTranslate 0.3"]
        assert (
            PAPER.apply_element_to_pil(image, element, negative).tobytes() == shifted(image, index).tobytes()
        )
    for problem in PROBLEMS.values():
        assert len(problem.known().elements) == len(problem.answer)
        Recipe.of(problem.recipe, ["run.dir=unused"])


def test_cifar10_is_changed_only_where_it_scores(tmp_path: Path) -> None:
    kinds = datasets.Features(img=datasets.Image(), label=datasets.ClassLabel(names=["a", "b"]))
    for name, numbers in (("train", range(20)), ("test", range(20, 30))):
        rows = {"img": [picture(number) for number in numbers], "label": [number % 2 for number in numbers]}
        datasets.Dataset.from_dict(rows, features=kinds).to_parquet(tmp_path / f"{name}.parquet")
    problem = PROBLEMS["cifar10-inverted"]
    splits = problem.splits(str(tmp_path), (12, 8, 10))
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 12, "validation": 8, "test": 10}

    def bytes_of(name: str, changed: bool) -> set[bytes]:
        return {(inverted(image, 0) if changed else image).tobytes() for image in splits[name]["image"]}

    given = {picture(number).tobytes() for number in range(20)}
    assert bytes_of("train", changed=False) | bytes_of("validation", changed=True) == given
    assert bytes_of("test", changed=True) == {picture(number).tobytes() for number in range(20, 30)}
    with pytest.raises(UserError, match="has 20 training and 10 test images"):
        problem.splits(str(tmp_path), (12, 9, 10))


def test_a_planted_problem_as_a_command(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    own = [
        "--estimator",
        "reinforce,lr=0.3",
        "--seeds",
        "1",
        "--out",
        str(tmp_path / "runs"),
        "--result",
        str(page),
    ]
    assert (
        outer_loop.main(["planted", *own, "outer.steps=2", "outer.inner_steps=1", "outer.trajectories=2"])
        == 0
    )
    assert "Known answer: more Rotate 10, Rotate 20, Rotate 30: factor >= 3." in page.read_text()
    trials = json.loads(page.with_suffix(".json").read_text())["sections"]["digits-rotated"]["trials"]
    assert list(trials) == [UNIFORM, "oracle", BEST_OF_N, "reinforce,lr=0.3"]
    assert trials["oracle"][0]["factor"] == pytest.approx(6.5)
    assert trials[BEST_OF_N][0]["factor"] == pytest.approx(1.0)
    (folder,) = (tmp_path / "runs" / "digits-rotated").glob("reinforce-lr-0.3-*/seed-0")
    learned = Policy.load(folder)
    known = PROBLEMS["digits-rotated"].known()
    assert trials["reinforce,lr=0.3"][0]["factor"] == pytest.approx(
        known.factor(learned.element_probabilities)
    )


def test_what_is_planted_is_learned(tmp_path: Path) -> None:
    """Rotations, from uniform to several times that, in one short search; docs/outer_loop.md has long ones."""
    problem = PROBLEMS["digits-rotated"]
    runs = Planted(problem, rotated_digits(), tmp_path, overrides=("outer.steps=60",))
    one = Contestant.parse("evolution,hold=4,lr=0.5,score=loss,average=0.9")
    factor = runs.searched(one, 0, problem.known(), fresh=False).factor
    assert factor is not None
    assert factor > 3


def test_the_real_part_collects_finished_comparisons(
    tmp_path: Path, small_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every run is a copy of a finished search: the comparisons themselves are tested in test_compare.py."""
    one = Contestant.parse("reinforce,lr=0.3")
    known = Known.family("geometry", more=True, threshold=1.0)
    real = Real(
        str(REPOSITORY / "recipes" / "digits.yaml"),
        ("outer.steps=4",),
        (7,),
        tmp_path,
        static=("colour", "tone+geometry"),
        contestants=(one,),
        known=known,
    )
    score = json.loads((small_run / "result.json").read_text())["test_accuracy"]

    def finish(jobs: Sequence[Job], side_by_side: int, ended: object) -> list[Job]:
        for job in jobs:
            shutil.copytree(small_run, job.folder)
        return []

    monkeypatch.setattr(import_module("ohl_accel.comparison.folder"), "run_jobs", finish)
    trials = real.run()
    assert list(trials) == [UNIFORM, "colour", "tone+geometry", BEST_OF_N, one.label]
    assert trials["colour"] == [Trial(7, fresh=score)]
    assert trials[BEST_OF_N] == [Trial(7, network=score)]
    policy = Policy.load(small_run)
    (found,) = trials[one.label]
    assert found.factor == pytest.approx(known.factor(policy.element_probabilities))
    assert (found.network, found.fresh) == (score, score)
    assert found.steps is None or found.images == found.steps * 4 * 3 * 100
    (row,) = family_masses({one.label: real.policies(one.label)})[2:]
    assert row.startswith(f"| {one.label} | {known.factor(policy.element_probabilities):.2f} |")


@pytest.mark.parametrize(
    ("name", "sizes", "classes"),
    [("sign_digits", (100, 500, 500), 10), ("omniglot_small", (1210, 484, 1452), 242)],
)
def test_recipes_whose_data_is_named_on_the_command_line(
    name: str, sizes: tuple[int, ...], classes: int
) -> None:
    with pytest.raises(UserError, match=r"data\.path: is required"):
        Recipe.of(name)
    recipe = Recipe.of(name, [f"data.path={SHARED_DATA / name}"])
    if not (SHARED_DATA / name).is_dir():
        pytest.skip(f"no {name} data beside the project")
    data = open_data(recipe)
    assert data.heldout is not None
    assert (len(data.train), len(data.heldout)) == sizes[:2]
    assert len(data.schema.class_names) == classes
