"""The cost of an outer step: the model against known coefficients, closed forms and counted bytes; the pages."""

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, SMALL

from benchmarks import cost_model
from benchmarks.cost_model import Coefficients, Hardware, Layout, Row, Task
from benchmarks.hosts import TwoHosts
from benchmarks.scaling_pages import PHASES, results_page, slope
from benchmarks.scaling_projection import BEGIN, CHART, END, generated
from benchmarks.scaling_worker import launch, search
from ohl_accel.run_folder.metrics import read_metrics

MB = 1e6
LAYOUTS = [Layout(2, 2, 1, 2), Layout(4, 2, 2, 2), Layout(8, 2, 4, 2), Layout(4, 4, 2, 2), Layout(8, 8, 4, 2)]
"""On two hosts."""
TRUE = Coefficients(message=3e-4, link=1.07, copy=4e-10)


def synthetic(noise: float) -> list[Row]:
    """Exchanges of two sizes on two cables, as the true coefficients have them."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for layout in LAYOUTS:
        for bandwidth in (125 * MB, 31 * MB, math.inf):
            for work in (
                cost_model.adopt(layout, 40 * MB),
                cost_model.broadcast(layout, 90 * MB),
                cost_model.gather(layout, 8),
            ):
                factor = 1 + noise * (2 * float(torch.rand((), generator=generator)) - 1)
                rows.append(Row(layout, work, bandwidth, factor * TRUE.seconds(layout, work, bandwidth)))
    return rows


def test_the_fit_finds_known_coefficients() -> None:
    fitted = cost_model.fit(synthetic(noise=0.0))
    assert (fitted.message, fitted.link, fitted.copy) == pytest.approx((3e-4, 1.07, 4e-10), rel=1e-6)
    noisy = synthetic(noise=0.1)
    fitted = cost_model.fit(noisy)
    assert (fitted.message, fitted.link, fitted.copy) == pytest.approx((3e-4, 1.07, 4e-10), rel=0.1)
    assert max(map(abs, cost_model.relative_errors(fitted, noisy))) < 0.2


def test_cost_of_an_image() -> None:
    """A millisecond for an image, ten for a batch."""
    costs = cost_model.costs_of([[100, 1], [200, 2], [200, 8]], [0.11, 0.22, 0.28])
    assert costs == pytest.approx([0.001, 0.01])


def test_gloo_s_tree() -> None:
    assert cost_model.tree(4, 0) == [(0, 1), (0, 2), (1, 3)]
    assert cost_model.tree(3, 2) == [(2, 0), (2, 1)]
    for members in (2, 5, 8):
        receivers = [receiver for _, receiver in cost_model.tree(members, 1)]
        assert sorted([1, *receivers]) == list(range(members))


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout.groups}x{layout.group_size}")
def test_bytes_over_the_link(layout: Layout) -> None:
    """Adoption: once. Whole columns: once for each process of a host, or for a few senders nearly."""
    assert cost_model.adopt(layout, MB).link_bytes == MB
    whole = cost_model.columns_whole(layout, MB).link_bytes / (layout.machine_size * MB)
    assert whole == 1 if layout.groups < 8 else 0.9 < whole < 1


def test_bytes_over_many_links() -> None:
    """A ring goes through each link once; a tree leaves the winner's node log2(M) times."""
    layout = Layout(1024, 4, 8)
    assert cost_model.adopt(layout, MB, ring=True).link_bytes == MB
    assert cost_model.adopt(layout, MB).link_bytes == 7 * MB
    assert cost_model.adopt(Layout(8, 4, 8), MB).link_bytes == 0


def test_outer_loop_by_hand() -> None:
    """16 GPUs, 2 groups of 8 that host 2 trajectories each."""
    hardware = Hardware(
        inner_step=0.02,
        train_image=1e-3,
        validate_image=1e-4,
        link=1e9,
        inside=1e10,
        memory=1e11,
        disk=1e8,
        message=0.0,
        update=0.003,
    )
    task = Task(1e8, 4, 64, heldout=1000, eval_batch_size=50, checkpoint_every=10)
    layout = Layout(16, 2, 8)
    parts = cost_model.outer_loop(task, layout, hardware, link=1.1)
    assert parts["validate"] == pytest.approx(2 * 3 * 50 * 1e-4)  # 20 chunks on 8 GPUs
    assert parts["adopt"] == pytest.approx(0.11 + 0.00875 + 0.004)
    assert parts["check"] == pytest.approx(0.002)
    assert parts["save"] == pytest.approx(0.1)
    assert parts["update"] == 0.003
    assert cost_model.inner_step(task, layout, hardware) == pytest.approx(2 * 0.02)
    assert cost_model.inner_steps_for(0.1, outer=1.0, inner=0.25) == 36


def test_slope() -> None:
    assert slope([9.0, 0.0, 2.0, 4.0, 6.0], first=1) == pytest.approx(2)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_what_a_search_measures(tmp_path: Path) -> None:
    """Every phase separately, in the same seconds as in metrics.jsonl, where `save` is that of the step before."""
    search(tmp_path, str(REPOSITORY / "recipes" / "digits.yaml"), [*SMALL, f"run.dir={tmp_path / 'run'}"])
    noted = json.loads((tmp_path / "rank0.json").read_text())
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    for line, step in zip(lines, noted["steps"], strict=True):
        assert {*PHASES, "track"} == set(step)
        for name in set(PHASES) - {"save"}:
            wall, processor = step[name]
            assert wall == pytest.approx(line["seconds"][name])
            assert processor >= 0
    assert all(0 < at["resident"] <= at["peak"] for at in noted["memory"])
    assert (noted["hosted"], noted["state_bytes"] > 2 * noted["gradient_bytes"]) == (4, True)


@pytest.fixture
def hosts() -> Iterator[TwoHosts]:
    """With a cable of limited bandwidth."""
    try:
        made = TwoHosts(rate="1gbit")
    except OSError as error:
        pytest.skip(f"network namespaces cannot be made here: {error}")
    yield made
    made.remove()


@pytest.mark.long
@pytest.mark.network
@pytest.mark.slow
def test_each_byte_crosses_the_cable_once(hosts: TwoHosts, tmp_path: Path) -> None:
    """Four groups of two, two of them on each host, each wins once; the kernel counts, the worker checks the values."""
    (tmp_path / "state.json").write_text(json.dumps([[1000, 501], [99_999], []]))
    launch(8, "exchange", str(tmp_path), "4", "4", hosts=hosts, forks=True)
    measured = json.loads((tmp_path / "exchange.json").read_text())
    size = measured["bytes"]  # headers are 4.6 % of full frames, and a barrier counts, too
    assert size == 4 * (501_000 + 99_999 + 1)
    assert all(size <= crossed <= 1.08 * size for crossed in measured["cable_bytes"]["adopt"])
    assert all(crossed > 1.9 * size for crossed in measured["cable_bytes"]["broadcast"])


def test_pages_are_those_of_the_measurements() -> None:
    """Every number of the pages comes from scaling.json."""
    results = REPOSITORY / "benchmarks" / "results"
    measured = json.loads((results / "scaling.json").read_text())
    assert set(measured) == {"phases", "exchange", "cable", "memory"}
    assert (results / "scaling.md").read_text() == results_page(measured)
    text = (REPOSITORY / "docs" / "scaling.md").read_text()
    between = text[text.index(BEGIN) + len(BEGIN) : text.index(END)]
    assert between.strip() == generated(measured).strip()
    assert "I = 601" in (REPOSITORY / "docs" / CHART).read_text()
