"""The report and the gallery as files: what they contain, what they reject, and that nothing is lost."""

import itertools
import json
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from ohl_accel.engine.evaluate import evaluate
from ohl_accel.engine.objective import Classification
from ohl_accel.errors import UserError
from ohl_accel.hub.contents import Finished
from ohl_accel.operations import transforms
from ohl_accel.operations.space import PAPER, PAPER_IDENTITY, Space
from ohl_accel.operations.space_file import open_space
from ohl_accel.policy import Policy
from ohl_accel.report import figures
from ohl_accel.report.__main__ import main
from ohl_accel.report.classes import class_table, wilson
from ohl_accel.report.comparisons import comparisons_of
from ohl_accel.report.examples import open_examples, rows_of
from ohl_accel.report.gallery import draw_gallery, load_policy
from ohl_accel.report.heatmaps import LEVELS, Scale, heatmap, palette
from ohl_accel.report.operations import least_probable, most_probable
from ohl_accel.report.pictures import data_uri, read_image, to_tensor, upright_rgb
from ohl_accel.report.read import Classes, read_run
from ohl_accel.report.svg import zoom
from ohl_accel.report.write import write_at_end, write_gallery, write_report
from ohl_accel.rng import keyed_generator
from ohl_accel.run_folder.atomic import write_text
from ohl_accel.run_folder.metrics import append_line, read_metrics


@pytest.fixture
def run(small_run: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, whose files may be changed."""
    folder = Path(shutil.copytree(small_run, tmp_path / "run"))
    (folder / "digests.json").unlink()
    return folder


def unfinish(run: Path, outer_steps: int) -> list[dict[str, Any]]:
    """Make it a run in progress; returns the lines taken away."""
    lines = read_metrics(run / "metrics.jsonl")
    (run / "result.json").unlink()
    (run / "metrics.jsonl").unlink()
    for line in lines[:outer_steps]:
        append_line(run / "metrics.jsonl", line)
    return lines[outer_steps:]


def report_of(run: Path) -> str:
    return write_report(run, lambda text: None).read_text()


def test_search_draws_its_report(small_run: Path) -> None:
    page = (small_run / "report.html").read_text()
    assert 'http-equiv="refresh"' not in page
    result = json.loads((small_run / "result.json").read_text())
    assert f"{100 * result['test_accuracy']:.2f} %" in page
    assert "finished after 4 outer steps" in page
    names = (
        "rewards",
        "loss",
        "learning-rate",
        "evidence",
        "elements",
        "matrix",
        "operations",
        "classes",
        "entropy",
    )
    for name in (*names, "times", "test", "next", "recipe"):
        assert f'id="{name}"' in page
    assert page.count('src="data:image/png') == 2 * (1 + 6) * 5  # originals and 6 operations, gained and lost
    assert "optimizer:" in page


def test_metrics_hold_the_marginals(small_run: Path) -> None:
    last = read_metrics(small_run / "metrics.jsonl")[-1]["element_probabilities"]
    assert last == Policy.load(small_run).element_probabilities.tolist()


def test_page_is_self_contained(small_run: Path) -> None:
    page = (small_run / "report.html").read_text()
    assert re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', page) == []
    assert re.findall(r"url\((?!#)", page) == []
    assert "@import" not in page
    assert "default-src 'none'" in page


def test_long_run_stays_small(run: Path) -> None:
    line = read_metrics(run / "metrics.jsonl")[-1]
    (run / "metrics.jsonl").unlink()
    generator = torch.Generator().manual_seed(0)
    text = []
    for outer_step in range(300):
        theta = torch.randn(PAPER.num_operations, generator=generator, dtype=torch.float64)
        reward = torch.rand(8, generator=generator, dtype=torch.float64).tolist()
        marginals = Policy(theta).element_probabilities.tolist()
        text.append(
            json.dumps(
                {**line, "outer_step": outer_step, "reward": reward, "element_probabilities": marginals}
            )
        )
    write_text(run / "metrics.jsonl", "\n".join(text) + "\n")
    assert len(report_of(run)) < 2_000_000


def test_run_in_progress_says_where_it_stands_and_reloads(run: Path) -> None:
    unfinish(run, 2)
    page = report_of(run)
    assert "not finished: outer step 2 of 4" in page
    assert '<meta http-equiv="refresh" content="30">' in page
    assert "Test results" not in page


def test_run_before_its_first_step(run: Path) -> None:
    unfinish(run, 0)
    (run / "policy.json").unlink()
    page = report_of(run)
    assert "no outer step is finished yet" in page
    assert "There is no policy.json: it is written with the first checkpoint" in page


def test_half_a_line_is_not_read(run: Path) -> None:
    rest = unfinish(run, 2)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(rest[0])[:100])
    assert "outer step 2 of 4" in report_of(run)


def test_watch_ends_with_the_run(run: Path) -> None:
    result = (run / "result.json").read_text()
    rest = unfinish(run, 2)
    said: list[str] = []
    watch = threading.Thread(target=write_report, args=(run, said.append), kwargs={"watch": 0.05})
    watch.start()
    while not said:
        watch.join(0.01)
    for line in rest:
        append_line(run / "metrics.jsonl", line)
    write_text(run / "result.json", result)
    watch.join(60)
    assert not watch.is_alive()
    assert "run in progress, outer step 2 of 4" in said[0]
    assert "finished run" in said[-1]
    assert 'http-equiv="refresh"' not in (run / "report.html").read_text()


def test_run_of_an_older_version_misses_only_the_heatmaps(run: Path) -> None:
    lines = read_metrics(run / "metrics.jsonl")
    (run / "metrics.jsonl").unlink()
    for line in lines:
        del line["element_probabilities"]
        append_line(run / "metrics.jsonl", line)
    page = report_of(run)
    assert "does not have the policy of every outer step (element_probabilities)" in page
    assert 'id="elements"' not in page
    assert 'id="matrix"' in page


def test_training_with_a_fixed_policy(run: Path) -> None:
    """It has one network, no winner, no policy, and looks at the held-out images only now and then."""
    lines = read_metrics(run / "metrics.jsonl")
    for name in ("metrics.jsonl", "policy.json"):
        (run / name).unlink()
    for line in lines:
        for key in ("winner", "entropy", "element_probabilities", "diverged", "advantage"):
            del line[key]
        line["reward"] = [0.25 * line["outer_step"] if line["outer_step"] % 2 else None]
        append_line(run / "metrics.jsonl", line)
    page = report_of(run)
    assert "Held-out accuracy" in page
    assert "75.00 %" in page
    assert 'id="times"' in page
    assert 'class="note"' not in page
    for name in ("elements", "matrix", "operations", "entropy"):
        assert f'id="{name}"' not in page


SPACES = {
    "one": Space("one", PAPER.elements[12:36:2], arity=1),
    "two": Space("two", [*PAPER.elements[12:18], *PAPER.elements[33:]], combine="distinct"),
    "three": Space("three", PAPER.elements[30:], arity=3),
}


def change_space(run: Path, space: Space) -> Policy:
    """Make it a run that learned over another space."""
    lines = read_metrics(run / "metrics.jsonl")
    theta = torch.randn(space.num_operations, dtype=torch.float64, generator=keyed_generator(0, "test"))
    policy = Policy(theta, space=space)
    policy.save(run / "policy.json")
    marginals = policy.element_probabilities.tolist()
    text = [json.dumps({**line, "element_probabilities": marginals}) for line in lines]
    write_text(run / "metrics.jsonl", "\n".join(text) + "\n")
    return policy


@pytest.mark.parametrize("name", SPACES)
def test_other_spaces(run: Path, name: str) -> None:
    """Maps of pairs; bars for operations of one element or three; as many element maps as positions."""
    space = SPACES[name]
    policy = change_space(run, space)
    page = report_of(run)
    assert ('id="matrix"' in page, 'id="bars"' in page) == (space.arity == 2, space.arity != 2)
    assert page.count('<table class="elements"') == space.arity
    assert page.count('class="swatch"') == space.arity * space.num_elements
    assert f"each of the {space.num_elements} elements" in page
    assert f"uniform is {space.max_entropy:.4f}" in page
    most = most_probable(policy, 1)[0]
    for element in most.name.split(" > "):
        assert element in page
    assert f"{most.ratio:.2f} × uniform" in page
    for draw in (figures.policy_heatmap, figures.policy_marginals):
        assert draw(policy).startswith(b"\x89PNG")
    if space.arity == 2:
        (data,) = re.findall(r'id="matrix-data">(.*?)</script>', page)
        percent = json.loads(data)["percent"]
        for first, second in itertools.product(range(space.num_elements), repeat=2):
            pair = space.elements[first], space.elements[second]
            different = pair[0].transform != pair[1].transform
            assert (percent[space.num_elements * first + second] is not None) == different
        assert sum(p for p in percent if p is not None) == pytest.approx(100, abs=1e-3)
    gallery = draw_gallery(policy, Image.effect_noise((40, 30), 50), draws=3)
    assert [tile.operation.name for tile in gallery.likely[:1]] == [most.name]
    Image.new("RGB", (8, 8)).save(run / "image.png")
    write_gallery(str(run / "policy.json"), run / "image.png", run / "gallery.html", draws=2, seed=0)
    assert (run / "gallery.html").read_text().count("<i>then</i>") % max(space.arity - 1, 1) == 0


def test_space_of_a_run_without_a_policy_yet(run: Path) -> None:
    change_space(run, PAPER_IDENTITY)
    (run / "policy.json").unlink()
    with pytest.raises(
        UserError, match=r"line 1: element_probabilities must be 2 lists of 36 \(space paper\), got"
    ):
        read_run(run)
    recipe = run / "recipe.yaml"
    text = recipe.read_text()
    assert "space: null" in text
    write_text(recipe, text.replace("space: null", "space: paper-identity"))
    assert read_run(run).space == PAPER_IDENTITY


FLIP = """
from ohl_accel.operations.kernels.family import EachImage
from ohl_accel.operations.transforms import Transform, register_transform
register_transform(Transform("Flip", EachImage(lambda images, _: images.flip(3))))
"""


def test_a_run_with_a_custom_transform(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later process learns of it from the recipe in the run folder, to draw the report and to publish the run."""
    elements = [{"transform": name, "magnitude": None} for name in ("Flip", "Invert", "Identity")]
    space = {"name": "flips", "arity": 2, "combine": "ordered", "elements": elements}
    (run / "first.py").write_text(FLIP)
    change_space(run, open_space({**space, "import": str(run / "first.py")}))
    recipe = run / "recipe.yaml"
    text = recipe.read_text()
    readers: list[Callable[[Path], Any]] = [read_run, Finished.read]
    for number, read in enumerate(readers):
        monkeypatch.delitem(transforms._registered, "Flip")
        with pytest.raises(ValueError, match="unknown transform 'Flip'"):
            Policy.load(run)
        (run / f"again{number}.py").write_text(FLIP)
        source = json.dumps({**space, "import": str(run / f"again{number}.py")})
        write_text(recipe, text.replace("space: null", f"space: {source}"))
        assert read(run).policy is not None


def test_report_without_its_data(run: Path) -> None:
    recipe = run / "recipe.yaml"
    write_text(recipe, recipe.read_text().replace("sklearn:digits", "/nowhere/images"))
    page = report_of(run)
    assert "The training images are not available: data.path=/nowhere/images" in page
    assert "× uniform" in page


def test_examples_are_training_images_after_the_operation(small_run: Path) -> None:
    recipe = read_run(small_run).recipe
    assert recipe is not None
    examples = open_examples(recipe)
    assert len(set(examples.class_names)) == len(examples.images_nCHW) == 5
    (operation,) = most_probable(Policy.load(small_run), 1)
    (row,) = rows_of(examples, PAPER, [operation])
    signs = [torch.tensor([[a, b]]) for a in (False, True) for b in (False, True)]
    first = examples.images_nCHW[:1]
    possible = [PAPER.apply(first, torch.tensor([operation.number]), sign)[0, 0] for sign in signs]
    assert row.pictures[0] in [data_uri(Image.fromarray(image.numpy()), 128) for image in possible]


def test_foreign_text_stays_text(run: Path) -> None:
    attack = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    recipe = run / "recipe.yaml"
    write_text(recipe, recipe.read_text().replace("sklearn:digits", f"'{attack}'"))
    policy = Policy.load(run)
    policy.provenance["torch"] = attack
    policy.save(run / "policy.json")
    write_text(run / "comparison.json", json.dumps({"rows": [{attack: attack}]}))
    page = report_of(run)
    assert "alert(1)" in page
    assert "<script>alert" not in page
    assert "<img src=x" not in page


def test_noise_is_pale_and_what_is_outside_is_not() -> None:
    """The band is at most a third of the colours on either side; unmeasured, only a factor of 2 has the full colour."""
    band = (0.5, 1.25)
    ratios = torch.tensor([0.5, 0.9, 1.0, 1.1, 1.25, 3.0], dtype=torch.float64)
    scale = Scale.of(ratios, band)
    low, *_, high, gained = scale.levels(ratios).tolist()
    assert low >= LEVELS // 3
    assert LEVELS // 2 < high <= 2 * LEVELS // 3
    assert gained == LEVELS - 1
    assert scale.ends == pytest.approx((0.125, 3.0))
    small = torch.tensor([0.97, 1.04], dtype=torch.float64)
    assert Scale.of(small).ends == (0.5, 2.0)
    assert Scale.of(small, (0.99, 1.01)).ends[1] == pytest.approx(2**0.0566, rel=1e-3)


def test_axis_shows_where_the_values_are() -> None:
    """A few values far away, and the beginning of a run, are marked at the edge instead of flattening all others."""
    axes = Figure().subplots()
    x, y = np.arange(100.0), np.full(100, 90.0) + np.sin(np.arange(100.0))
    y[:3], y[50], y[60] = (10, 40, 60), 0, np.nan
    outside = zoom(axes, x, y)
    low, high = axes.get_ylim()
    assert outside == 4
    assert 80 < low < 89
    assert 91 <= high < 95
    marked = {float(x) for line in axes.get_lines() for x in np.asarray(line.get_xdata(), dtype=float)}
    assert marked == {0, 1, 2, 50}
    assert zoom(Figure().subplots(), x[:1], y[:1]) == 0


def test_text_of_a_chart_is_never_small(small_run: Path) -> None:
    page = (small_run / "report.html").read_text()
    sizes = [float(size) for size in re.findall(r'<text style="font-size: ([\d.]+)px', page)]
    assert min(sizes) >= 12
    for name, charts in (("wide", 2), ("medium", 2), ("narrow", 2), ("every", 4)):
        assert page.count(f'class="chart {name}"') == charts


def test_classes_and_confusions(run: Path) -> None:
    """The file has what scikit-learn's confusion matrix of a second evaluation has; the page shows it."""
    evaluation = evaluate(run)
    document = json.loads((run / "classes.json").read_text())
    assert document["classes"] == evaluation.classes
    assert sum(count for *_, count in document["confusions"]) == round(
        500 * (1 - evaluation.scores["accuracy"])
    )
    worst = min(document["classes"], key=lambda row: row["top1"])
    page = report_of(run)
    assert (
        f'<th scope="row">{worst["class"]}</th><td>{worst["images"]}</td><td>{100 * worst["top1"]:.2f}'
        in page
    )
    assert page.count('<td class="right">') == 10
    many = Classes(
        images=600,
        classes=[{"class": f"c{i}", "images": 20, "top1": i / 30} for i in range(30)],
        confusions=[(3, 4, 7), (5, 6, 9)],
    )
    table = class_table(many)
    assert (table.matrix, table.confusions) == ([], [("c5", "c6", 9), ("c3", "c4", 7)])
    assert table.rows[0][0] == "c0"
    write_text(run / "classes.json", json.dumps({**document, "confusions": [[0, 99, 1]]}))
    with pytest.raises(UserError, match=r"classes\.json: .* a confusion of a class that is not in the table"):
        read_run(run)


def test_confusions_by_hand() -> None:
    predicted = [1, 1, 0, 2, 1]
    outcomes = torch.tensor([[0, 0, 0, p] for p in predicted], dtype=torch.float64)
    found = Classification(3).confusions(outcomes, torch.tensor([0, 0, 0, 1, 1]))
    assert found.tolist() == [[0, 1, 2], [1, 2, 1]]


def test_wilson_interval_of_the_tables() -> None:
    """Newcombe (1998), table I: 81 of 263 gives 0.2553 to 0.3662; 0 of 20 gives 0 to 0.1611."""
    assert wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0.0, 20) == pytest.approx((0, 0.1611), abs=5e-5)


def compare_with(run: Path, folder: Path, recipe: dict[str, Any]) -> None:
    """A finished comparison in a folder, in which `run` has a policy."""
    rows = [
        {"policy": "none", "n": 3, "mean": 0.5, "difference": None, "t_interval": None, "verdict": ""},
        {"policy": str(run), "n": 3, "mean": 0.51, "difference": 0.01, "t_interval": [-0.02, 0.04],
         "verdict": "no difference shown"},
        {"policy": "ohl", "n": 3, "mean": 0.52, "difference": 0.02, "t_interval": [0.01, 0.03], "verdict": "better"},
    ]  # fmt: skip
    folder.mkdir()
    document = {"reference": "none", "command": "ohl-accel compare ...", "rows": rows, "recipe": recipe}
    write_text(folder / "comparison.json", json.dumps(document))


def test_comparisons_of_a_run_are_found(run: Path) -> None:
    """By its policy, by its recipe with other seeds, and as a run of the comparison; not those of others."""
    recipe = read_run(run).recipe
    assert recipe is not None
    asked = recipe.model_dump(mode="json")
    asked["run"]["seed"], asked["data"]["mean"] = 7, None
    beside = run.parent / "compare-it"
    compare_with(run, beside, {})
    (found,) = comparisons_of(run, recipe)
    assert (found.folder, found.own) == (beside, frozenset({str(run)}))
    page = report_of(run)
    assert "this run&#39;s policy was compared with others" in page
    assert "<td>+1.00</td><td>-2.00 to +4.00</td><td>no difference shown</td>" in page
    assert "ohl-accel compare" not in page.split('id="next"')[1].split("</section>")[0]
    shutil.rmtree(beside)
    assert "To find out whether the policy is worth anything" in report_of(run)
    compare_with(run.parent / "other", beside, asked)
    assert [each.own for each in comparisons_of(run, recipe)] == [frozenset({"ohl"})]
    compare_with(run.parent / "other", run.parent / "different", {**asked, "model": {"name": "resnet50"}})
    assert len(comparisons_of(run, recipe)) == 1
    (run.parent / "different" / "comparison.json").write_text("[")
    inside = beside / "runs" / "ohl" / "seed-0"
    shutil.copytree(run, inside)
    assert [(each.folder, each.own) for each in comparisons_of(inside, None)] == [
        (beside, frozenset({"ohl"}))
    ]
    (beside / "report.html").touch()
    assert '<a href="../../../report.html">' in write_report(inside, lambda text: None).read_text()


def test_two_runs_side_by_side(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = Path(shutil.copytree(run, tmp_path / "other"))
    rewrite("recipe.yaml", "seed: 0", "seed: 5")(other)
    result = json.loads((other / "result.json").read_text())
    accuracy = json.loads((run / "result.json").read_text())["test_accuracy"]
    result["test_accuracy"] = accuracy - 0.1
    write_text(other / "result.json", json.dumps(result))
    output = tmp_path / "both.html"
    assert main([str(run), str(other), "--output", str(output)]) == 0
    page = output.read_text()
    half = 196 * (accuracy * (1 - accuracy) / 500 + (accuracy - 0.1) * (1.1 - accuracy) / 500) ** 0.5
    assert f"-10.00 points (± {half:.2f}): more than" in page
    assert '<th scope="row">run.seed</th><td>0</td><td>5</td>' in page
    settings = page.split('id="settings"')[1].split("</section>")[0]
    assert settings.count("<tr") == 2  # of all fields only the seed
    assert page.count('<div class="chart every"') == 5
    assert page.count('<div class="chart wide"') == 1
    assert report_of(run)  # they are as before
    (other / "metrics.jsonl").unlink()
    assert main([str(run), str(other), "--output", str(output)]) == 2
    assert "has no finished outer step" in capsys.readouterr().err
    assert main([str(run), str(other), "--watch", "5"]) == 2


def test_comparison_and_sweep_are_shown(run: Path) -> None:
    rows = [
        {"policy": "learned", "n": 3, "mean": 0.9812, "t": [0.1, 0.25], "seeds": [0, 1, 2]},
        {"policy": "uniform", "n": 3, "mean": None},
    ]
    write_text(run / "comparison.json", json.dumps({"command": "compare <x>", "rows": rows}))
    Image.new("RGB", (4, 4)).save(run / "comparison.png")
    write_text(run / "sweep.json", json.dumps({"rows": [{"outer.lr": 0.05, "mean": 0.5}]}))
    page = report_of(run)
    assert "<h2>Comparison</h2>" in page
    assert '<th scope="row">learned</th><td>3</td><td>0.9812</td><td>0.1 to 0.25</td>' in page
    assert '<th scope="row">uniform</th><td>3</td><td></td>' in page
    assert "compare &lt;x&gt;" in page
    assert 'class="figure" src="data:image/png' in page
    assert "<h2>Sweep</h2>" in page
    alone = run.parent / "comparison"
    alone.mkdir()
    shutil.copy(run / "comparison.json", alone)
    page = report_of(alone)
    assert "<h2>Comparison</h2>" in page
    assert "Report of a comparison" in page
    for other in ("refresh", "not finished", "The training images"):
        assert other not in page


def rewrite(name: str, old: str, new: str) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        text = (run / name).read_text()
        assert old in text
        write_text(run / name, text.replace(old, new, 1))

    return damage


def doubled(run: Path) -> None:
    write_text(run / "metrics.jsonl", 2 * (run / "metrics.jsonl").read_text())


def emptied(run: Path) -> None:
    shutil.rmtree(run)
    run.mkdir()


def with_a_wrong_figure(run: Path) -> None:
    (run / "sweep.json").write_text('{"rows": []}')
    (run / "sweep.png").write_text("none")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (shutil.rmtree, "does not exist: give a run folder"),
        (emptied, "it is not a run folder, or its search has not begun"),
        (rewrite("metrics.jsonl", '{"outer_step": 0', "{"), "metrics.jsonl, line 1 is damaged"),
        (rewrite("metrics.jsonl", '"winner": ', '"winner": 9'), "line 1: the line: Value error, winner 9"),
        (rewrite("metrics.jsonl", '"entropy"', '"other"'), "a winner needs the policy's entropy"),
        (doubled, "metrics.jsonl, line 5: outer_step 0 comes after 3: two runs are mixed"),
        (rewrite("result.json", "{", ""), "result.json is damaged"),
        (rewrite("result.json", "heldout_accuracy", "other"), "result.json: heldout_accuracy: Field required"),
        (rewrite("policy.json", '"schema_version": 2', '"schema_version": 7'), "policy: schema_version 7 is unknown"),
        (lambda run: (run / "recipe.yaml").write_bytes(b"\xff"), "recipe.yaml cannot be read"),
        (lambda run: (run / "comparison.json").write_text("[]"), "comparison.json is damaged or of a different"),
        (with_a_wrong_figure, "sweep.png is not a PNG image"),
    ],
)  # fmt: skip
def test_damaged_runs_are_named(
    run: Path, damage: Callable[[Path], None], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(run)
    assert main([str(run)]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("new", "says"), [("run:\n  speed: 3", "run.speed"), ("run: 3]", "is not valid YAML")]
)
def test_recipe_of_another_version_costs_only_the_examples(
    run: Path, new: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite("recipe.yaml", "run:", new)(run)
    assert main([str(run)]) == 0
    assert says in capsys.readouterr().out
    page = (run / "report.html").read_text()
    assert new in page
    assert "There is no recipe, so it is not known where the training images are" in page


def test_output_that_cannot_be_written(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), "--output", str(run / "no" / "page.html")]) == 2
    assert "choose another --output" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [[], ["run", "--policy", "p", "--image", "i"], ["--policy", "p"], ["run", "--watch", "0"]]
)
def test_arguments_that_do_not_go_together(arguments: list[str]) -> None:
    assert main(arguments) == 2


def test_report_that_fails_loses_no_search(run: Path) -> None:
    write_text(run / "metrics.jsonl", "nonsense\n")
    said: list[str] = []
    write_at_end(run, said.append)
    (warning,) = said
    assert warning.startswith("warning: the report cannot be drawn")
    assert f"python -m ohl_accel.report {run}" in warning


def test_heatmap_has_every_cell_once() -> None:
    ratios = torch.tensor([[1.0, 2.0, 2.0], [0.5, 1.0, 0.01]], dtype=torch.float64)
    scale = Scale.of(ratios)
    drawn = heatmap(ratios, Scale(1.0, 1.0))
    assert scale.ends[1] > 2
    assert drawn.paths == [
        (0, "M0 1h1v1h-1zM2 1h1v1h-1z"),
        (LEVELS // 2, "M0 0h1v1h-1zM1 1h1v1h-1z"),
        (LEVELS - 1, "M1 0h2v1h-2z"),
    ]
    assert len(palette()) == LEVELS


def test_gallery_draws_what_training_would(tmp_path: Path) -> None:
    theta = torch.full((PAPER.num_operations,), -20.0, dtype=torch.float64)
    invert = PAPER.operation_of(35, 34)  # Invert > Equalize
    theta[invert] = 20.0
    policy = Policy(theta)
    image = Image.effect_noise((40, 30), 50)
    gallery = draw_gallery(policy, image, draws=3, seed=1)
    assert [tile.operation.name for tile in gallery.drawn] == 3 * ["Invert > Equalize"]
    assert gallery.likely[0].operation.ratio == pytest.approx(PAPER.num_operations, rel=1e-3)
    wanted = PAPER.apply(
        to_tensor(gallery.original)[None], torch.tensor([invert]), torch.zeros(1, 2, dtype=torch.bool)
    )
    assert torch.equal(to_tensor(gallery.drawn[0].image), wanted[0])
    uniform = draw_gallery(Policy(), image, draws=5, seed=1)
    assert uniform == draw_gallery(Policy(), image, draws=5, seed=1)
    assert uniform.drawn != draw_gallery(Policy(), image, draws=5, seed=2).drawn


def test_ranking_is_that_of_the_policy() -> None:
    policy = Policy(torch.randn(PAPER.num_operations, dtype=torch.float64))
    assert [(o.name, o.probability) for o in most_probable(policy, 9)] == policy.top(9)
    assert [(o.name, o.probability) for o in least_probable(policy, 9)] == policy.bottom(9)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"])
def test_images_of_all_modes(mode: str) -> None:
    grey = Image.new("L", (9, 7), 255 if mode == "1" else 156)
    image = Image.new(mode, (9, 7), 40_000) if mode.startswith("I") else grey.convert(mode)
    upright = upright_rgb(image, 320)
    assert (upright.mode, upright.size) == ("RGB", (9, 7))
    assert upright.getpixel((4, 3)) == pytest.approx(3 * (grey.getpixel((4, 3)),), abs=2)


def test_images_are_turned_shrunk_and_put_on_white() -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert upright_rgb(clear, 320).getpixel((0, 0)) == (255, 255, 255)
    wide = Image.new("RGB", (1000, 500))
    wide.getexif()[0x0112] = 6
    assert upright_rgb(wide, 320).size == (160, 320)
    tiny = draw_gallery(Policy(), Image.new("RGB", (1, 1)), draws=1)
    assert tiny.drawn[0].image.size == (1, 1)


def test_gallery_page(small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo, output = tmp_path / "<b>photo.png", tmp_path / "gallery.html"
    Image.effect_noise((300, 200), 80).save(photo)
    command = ["--policy", str(small_run), "--image", str(photo), "--draws", "5", "--output", str(output)]
    assert main(command) == 0
    page = output.read_text()
    assert page.count('src="data:image/jpeg') == 1 + 12 + 5 + 12
    assert most_probable(load_policy(str(small_run)), 1)[0].name.split(" > ")[0] in page
    assert "&lt;b&gt;photo.png" in page
    assert "<b>photo" not in page


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"--policy": "nowhere/policy.json"}, "nowhere/policy.json"),
        ({"--image": "nowhere.jpg"}, "image nowhere.jpg does not exist"),
        ({"--image": "README.md"}, "image README.md cannot be read: cannot identify image file"),
        ({"--draws": "101"}, "draws must be 1 to 100, got 101"),
        ({"--seed": "-1"}, "seed must be 0 or more, got -1"),
    ],
)
def test_gallery_refuses(
    small_run: Path, tmp_path: Path, changed: dict[str, str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    values = {"--policy": str(small_run), "--image": str(tmp_path / "image.png"), **changed}
    output = tmp_path / "gallery.html"
    assert main([*(text for pair in values.items() for text in pair), "--output", str(output)]) == 2
    assert says in capsys.readouterr().err
    assert not output.exists()


def test_truncated_image_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "half.jpg"
    Image.effect_noise((300, 300), 80).save(path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"half\.jpg cannot be read"):
        read_image(path)


@pytest.mark.parametrize(
    "line", ["5", "[" * 100_000, '{"outer_step": "x"}', '{"reward": [' + "0," * 600_000 + "0]}"]
)
def test_a_line_that_is_not_of_an_outer_step(run: Path, line: str) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match="line 5 is damaged"):
        read_run(run)


def test_an_image_of_too_many_pixels_is_not_decoded(tmp_path: Path) -> None:
    Image.new("1", (6001, 6001)).save(tmp_path / "large.png")
    with pytest.raises(UserError, match="6001 x 6001 pixels are more than 36000000"):
        read_image(tmp_path / "large.png")


def test_the_best_reward_is_one_line_where_some_outer_steps_are_not_scored() -> None:
    lines = [
        {"outer_step": step, "reward": [0.8, 0.9] if step % 10 == 0 else [None, None]} for step in range(21)
    ]
    pixels = figures.pixels_of(figures.reward_curves(lines))
    is_blue = (pixels == (31, 119, 180)).all(2)
    middle = is_blue[:, pixels.shape[1] * 5 // 8]  # between two scored outer steps
    assert middle.any()
