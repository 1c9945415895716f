"""Figure 4: what is drawn is what the run folder has."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from matplotlib.patches import Rectangle
from PIL import Image

from ohl_accel import cli
from ohl_accel.policy import Policy
from ohl_accel.report.figure_4 import figure_4
from ohl_accel.report.read import read_run
from ohl_accel.run_folder.metrics import read_metrics


def test_the_probabilities_of_the_run_are_drawn(small_run: Path) -> None:
    figure = figure_4(read_run(small_run))
    figure.canvas.draw()
    lines = read_metrics(small_run / "metrics.jsonl")
    over_time = [axes for axes in figure.axes if "over training" in axes.get_title()]
    ends = [axes for axes in figure.axes if axes.get_title().startswith("at the end")]
    assert [axes.get_title() for axes in over_time] == [
        "first element over training",
        "second element over training",
    ]
    policy = Policy.load(small_run)
    evidence = policy.evidence
    assert evidence is not None
    assert evidence.low_AE is not None
    assert evidence.high_AE is not None
    for position, (axes, end) in enumerate(zip(over_time, ends, strict=True)):
        drawn_ET = 2 ** np.asarray(axes.images[0].get_array())
        expected_TE = np.array([line["element_probabilities"][position] for line in lines]) * 36
        np.testing.assert_allclose(drawn_ET, expected_TE.T, rtol=1e-9)
        np.testing.assert_allclose(np.asarray(end.collections[0].get_offsets())[:, 0], expected_TE[-1])
        bars = [bar for bar in end.patches if isinstance(bar, Rectangle)]
        bands = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in bars]
        np.testing.assert_allclose(
            bands, 36 * np.array([evidence.low_AE[position], evidence.high_AE[position]]).T
        )
    (matrix,) = (axes for axes in figure.axes if axes.get_title().startswith("every operation"))
    drawn_EE = 2 ** np.asarray(matrix.images[0].get_array())
    np.testing.assert_allclose(drawn_EE.ravel(), policy.probabilities.numpy() * 1296, rtol=1e-9)
    assert evidence.verdict in figure.get_suptitle()
    # what noise alone does has at most a third of the full colour
    low_AE, high_AE = 36 * np.array(evidence.low_AE), 36 * np.array(evidence.high_AE)
    for picture, low, high in (
        *((axes.images[0], low_AE.min(), high_AE.max()) for axes in over_time),
        (matrix.images[0], *(evidence.operation_band or ())),
    ):
        assert picture.norm.vmin <= 3 * np.log2(max(low, 2**-10)) + 1e-9
        assert picture.norm.vmax >= 3 * np.log2(high) - 1e-9


def test_the_command(small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main("figure4", [str(small_run), "--output", str(tmp_path / "f.png"), "--every", "3"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'f.png'}\n"
    with Image.open(tmp_path / "f.png") as image:
        assert min(image.size) > 1000
    axes = figure_4(read_run(small_run), every=3).axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "4"], (
        "the first, each third, the last"
    )


def test_an_older_run_and_one_without_a_policy(
    small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "old"
    shutil.copytree(small_run, folder)
    policy = json.loads((folder / "policy.json").read_text())
    del policy["provenance"]["evidence"]
    (folder / "policy.json").write_text(json.dumps(policy))
    (folder / "digests.json").unlink()
    assert "noise was not measured" in figure_4(read_run(folder)).get_suptitle()
    lines = read_metrics(folder / "metrics.jsonl")
    for line in lines:
        del line["element_probabilities"]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert cli.main("figure4", [str(folder)]) == 2
    assert "no outer step has the policy's probabilities" in capsys.readouterr().err
    assert cli.main("figure4", [str(tmp_path / "none")]) == 2
    assert cli.main("figure4", [str(small_run), "--output", str(tmp_path / "no" / "f.png")]) == 2
    assert "choose another --output" in capsys.readouterr().err
