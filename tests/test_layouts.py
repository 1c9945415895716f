"""The same result on any layout of real processes, and after any interruption, bit for bit on the CPU."""

import os
import signal
import socket
from pathlib import Path

import pytest
import torch
from conftest import final_state, launch, start, wait_for_checkpoint

from ohl_accel.distributed.collectives import buckets, checksum
from ohl_accel.distributed.launch import check_launch
from ohl_accel.distributed.layout import choose_groups
from ohl_accel.errors import UserError

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.long)])
def test_four_trajectories_on_more_processes(undisturbed: Path, tmp_path: Path, processes: int) -> None:
    output = launch(processes, f"run.dir={tmp_path}")
    assert final_state(tmp_path) == final_state(undisturbed)
    assert sum("outer step 1/4" in line for line in output) == 1  # the main process speaks alone


def test_two_processes_in_each_group(undisturbed_pair: Path, tmp_path: Path) -> None:
    """G = 2: one group that hosts four trajectories, or two groups that host two each."""
    launch(4, f"run.dir={tmp_path}", "outer.groups=2")
    assert final_state(tmp_path) == final_state(undisturbed_pair)


def test_a_killed_run_resumes_on_different_processes(undisturbed: Path, tmp_path: Path) -> None:
    """Killed without warning after two outer steps in two processes, finished in one."""
    process = start(2, f"run.dir={tmp_path}")
    wait_for_checkpoint(process, tmp_path, "step-000002")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    output = launch(1, f"run.dir={tmp_path}", "run.resume=auto", config="cpu")
    assert any("resuming after outer step" in line for line in output)
    assert final_state(tmp_path) == final_state(undisturbed)
    output = launch(
        1, f"run.dir={tmp_path}", "run.resume=auto", config="cpu"
    )  # nothing left to do but the test
    assert not any("outer step 4/4" in line for line in output)
    assert final_state(tmp_path) == final_state(undisturbed)


@pytest.mark.long
def test_a_stopped_run_resumes_on_more_processes(undisturbed: Path, tmp_path: Path) -> None:
    """Stopped by SIGTERM, as a cluster does, then finished in two processes."""
    process = start(1, f"run.dir={tmp_path}", config="cpu")
    wait_for_checkpoint(process, tmp_path, "step-000001")
    os.killpg(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    stopped = "saved; run.resume=auto goes on from there"
    assert stopped in output
    assert "Traceback" not in output.split(stopped)[0]
    launch(2, f"run.dir={tmp_path}", "run.resume=auto")
    assert final_state(tmp_path) == final_state(undisturbed)


@pytest.mark.long
def test_two_machines_on_one(undisturbed: Path, tmp_path: Path) -> None:
    """nodes.yaml as it is but for its numbers: two launches that meet over TCP; only rank 0 has the folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launches = [
        start(
            2,
            f"run.dir={tmp_path / f'machine{rank}'}",
            "run.mixed_precision=no",
            config="nodes",
            flags=["--num_machines", "2", "--machine_rank", str(rank), "--main_process_port", port],
            ACCELERATE_USE_CPU="true",
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=200)[0] for process in launches]
    assert [process.returncode for process in launches] == [0, 0], outputs
    assert final_state(tmp_path / "machine0") == final_state(undisturbed)
    assert not (tmp_path / "machine1").exists()


def test_one_message_from_many_processes(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    process = start(2, f"run.dir={tmp_path}")
    output, _ = process.communicate(timeout=100)
    assert process.returncode != 0
    assert output.count(f"error: run.dir={tmp_path} is not empty (it has thesis.tex)") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "thesis.tex"]


def test_unrelated_processes_are_refused(tmp_path: Path) -> None:
    """What a launcher does that starts processes without telling them of each other."""
    process = start(1, f"run.dir={tmp_path}", config="cpu", SLURM_STEP_NUM_TASKS="4", SLURM_NTASKS="4")
    output, _ = process.communicate(timeout=100)
    assert process.returncode != 0
    assert "the launcher started 4 processes (SLURM_STEP_NUM_TASKS), but they cannot see each other" in output


def test_check_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
        monkeypatch.delenv(variable, raising=False)
    check_launch(1)
    monkeypatch.setenv("WORLD_SIZE", "4")
    check_launch(4)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")  # srun started a launcher on each of two machines
    check_launch(4)
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS")
    with pytest.raises(UserError, match=r"started 4 processes \(WORLD_SIZE\)"):
        check_launch(1)


@pytest.mark.parametrize(
    ("trajectories", "processes", "asked", "groups"),
    [
        (8, 1, None, 1),
        (8, 8, None, 8),
        (8, 64, None, 8),
        (8, 2, None, 2),
        (4, 6, 2, 2),
        (4, 3, 1, 1),
        (1, 5, None, 1),
    ],
)
def test_groups_that_fit(trajectories: int, processes: int, asked: int | None, groups: int) -> None:
    assert choose_groups(trajectories, processes, asked) == groups


def test_groups_that_do_not_fit() -> None:
    with pytest.raises(UserError) as caught:
        choose_groups(4, 6, None)
    assert str(caught.value) == (
        "world size 6 does not fit 4 trajectories: use 1, 2 or 4 processes, or a multiple of 4; or set "
        "outer.groups to 1 or 2, so that several processes share the batches of each trajectory"
    )
    with pytest.raises(UserError, match=r"outer.groups=4 must divide both .* use one of \[1, 2\], or null"):
        choose_groups(4, 6, 4)


def test_checksum_sees_any_single_change() -> None:
    """A bit of any tensor, the order of tensors, of rows, and of what is beyond the last whole row."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(n, generator=generator) for n in (3, 5000, 1030, 5000)] + [torch.arange(7)]
    sums = {int(checksum(tensors))}
    for place, tensor in enumerate(tensors):
        for position in (0, len(tensor) // 2, len(tensor) - 1):
            changed = [other.clone() for other in tensors]
            changed[place].view(torch.uint8)[position * tensor.element_size()] ^= 1
            sums.add(int(checksum(changed)))
    sums.add(int(checksum([tensors[0], tensors[3], tensors[2], tensors[1], tensors[4]])))
    rolled = [tensors[0], tensors[1].roll(1024), *tensors[2:]]
    sums.add(int(checksum(rolled)))
    assert len(sums) == 1 + 3 * 5 + 2
    assert int(checksum([tensor.clone() for tensor in tensors])) in sums


def test_buckets_keep_order_and_bound() -> None:
    tensors = [torch.zeros(n, dtype=t) for n in (3, 10**7, 5) for t in (torch.float32, torch.int64)]
    cut = buckets(tensors)
    assert sorted(id(t) for bucket in cut for t in bucket) == sorted(map(id, tensors))
    for bucket in cut:
        assert len({tensor.dtype for tensor in bucket}) == 1
        assert len(bucket) == 1 or sum(tensor.nbytes for tensor in bucket) <= 25 * 2**20
