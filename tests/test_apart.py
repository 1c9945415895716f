"""Trajectories that keep states of their own: the same on any layout, and resumed where all N of them differ."""

import os
import shutil
from datetime import timedelta
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from conftest import KEEP, final_state, latest, launch, rewind
from forked import call_on_ranks

from ohl_accel.distributed.groups import Groups
from ohl_accel.engine import checkpoint

pytestmark = pytest.mark.slow

SCREENING = (
    *KEEP,
    "outer.steps=6",
    "outer.inner_steps=1",
    "outer.average=0.5",
    "outer.estimator=screening",
    "outer.estimator_args={rounds: 1, share: 0.7}",
)
"""A round of four outer steps, scored after the second and the fourth; then two with the policy learned."""
POPULATION = (
    *KEEP,
    "outer.steps=4",
    "outer.inner_steps=1",
    "outer.average=0.5",
    "outer.estimator=pbt",
    "outer.estimator_args={ready: 2, window: 1, begin: 0}",
)
"""The worst becomes a copy of the best after the second outer step, all of the winner after the fourth."""


def resumed(run: Path, name: str, folder: Path, processes: int, *overrides: str) -> Path:
    """A copy of a run taken back to a checkpoint, and finished from there."""
    shutil.copytree(run, folder)
    rewind(folder, name)
    output = launch(processes, f"run.dir={folder}", "run.resume=auto", *overrides)
    assert any("resuming after outer step" in line for line in output)
    assert latest(folder) == latest(run)
    return folder


def tensors(folder: Path, step: int) -> dict[str, bytes]:
    """The files with tensors of the checkpoint after an outer step."""
    files = (folder / "checkpoints" / f"step-{step:06d}").glob("*.safetensors")
    return {path.name: path.read_bytes() for path in files}


def test_a_round_of_screening_in_one_process_and_in_two(tmp_path: Path) -> None:
    launch(1, f"run.dir={tmp_path / 'one'}", *SCREENING)
    one = {step: tensors(tmp_path / "one", step) for step in range(7)}
    assert [len(files) for files in one.values()] == [1, 5, 5, 5, 1, 1, 1]
    assert len(set(one[3].values())) == 5
    _a_part_that_is_missing_is_found(tmp_path / "one", tmp_path / "damaged")
    two = resumed(tmp_path / "one", "step-000001", tmp_path / "two", 2, *SCREENING)
    assert {step: tensors(two, step) for step in range(7)} == one
    assert final_state(two) == final_state(tmp_path / "one")


def _a_part_that_is_missing_is_found(run: Path, folder: Path) -> None:
    shutil.copytree(run, folder)
    rewind(folder, "step-000003")
    (folder / "checkpoints" / "step-000003" / "trajectory-000002.safetensors").unlink()
    warnings: list[str] = []
    contents = checkpoint.newest_whole(folder / "checkpoints", warnings.append)
    assert contents is not None
    assert contents.document["outer_step"] == 2
    assert "trajectory-000002.safetensors" in warnings[0]


@pytest.mark.long
def test_a_population_in_groups_of_two_processes(tmp_path: Path) -> None:
    """One group hosts all four trajectories, or two groups host two each, whole or sharded."""
    pair = tmp_path / "pair"
    launch(2, f"run.dir={pair}", "outer.groups=1", *POPULATION)
    written = {step: tensors(pair, step) for step in range(5)}
    assert [len(files) for files in written.values()] == [1, 5, 5, 5, 1]
    first, second = (line["parents"] for line in final_state(pair)["metrics"] if "parents" in line)
    assert len(set(first)) == 3
    assert len(set(second)) == 1
    for shard in ("false", "true"):
        groups = ("outer.groups=2", f"model.shard={shard}", *POPULATION)
        folder = resumed(pair, "step-000001", tmp_path / shard, 4, *groups)
        assert {step: tensors(folder, step) for step in range(5)} == written
        assert final_state(folder) == final_state(pair)


def every_adoption(processes_per_node: int) -> None:
    """On each of four processes: all 41 ways in which four trajectories can continue from each other."""
    os.environ["LOCAL_WORLD_SIZE"] = str(processes_per_node)
    dist.init_process_group("gloo")
    for number in (1, 2, 4):
        groups = Groups.build(
            trajectories=4,
            processes=4,
            rank=dist.get_rank(),
            device=torch.device("cpu"),
            timeout=timedelta(seconds=60),
            groups=number,
        )
        ways = [way for way in product(range(4), repeat=4) if all(way[parent] == parent for parent in way)]
        assert len(ways) == 41
        for parents in ways:
            hosted = [[torch.full((3,), n), torch.full((2, 2), n / 4)] for n in groups.hosted]
            groups.adopt(parents, hosted)
            for n, tensors in zip(groups.hosted, hosted, strict=True):
                assert all(
                    bool((tensor == value).all())
                    for tensor, value in zip(tensors, (parents[n], parents[n] / 4), strict=True)
                )
            groups.assert_equal(parents, hosted, "states")
            whole = [groups.tensors_on_main(n, {"a": hosted[n % len(hosted)][0]}) for n in range(4)]
            assert whole == [{}] * 4 if groups.rank else [int(one["a"][0]) for one in whole] == [*parents]
            if len(set(parents)) > 1:
                with pytest.raises(AssertionError, match="states differ on processes"):
                    groups.assert_equal([parents[0]] * 4, hosted, "states")
    dist.destroy_process_group()


@pytest.mark.parametrize("processes_per_node", [4, 2, 1])
def test_any_trajectory_continues_from_any_other(processes_per_node: int) -> None:
    call_on_ranks(4, every_adoption, processes_per_node)
