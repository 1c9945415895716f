"""Sharded networks (FSDP2) against whole ones (DDP), in real processes."""

import os
import shutil
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from conftest import SMALL, final_state, rewind
from forked import call_on_ranks, search_digits
from safetensors.torch import load_file
from torch import Tensor, nn

from ohl_accel.data import Schema
from ohl_accel.distributed.groups import Groups
from ohl_accel.distributed.sharding import own_part, whole_on_cpu
from ohl_accel.engine.network import outline_network
from ohl_accel.engine.trajectory import create_optimizer
from ohl_accel.errors import UserError
from ohl_accel.recipe import ModelSection, OptimizerSection
from ohl_accel.recipe.rules import SHARDED_OPTIMIZERS

pytestmark = pytest.mark.slow


class Block(nn.Module):
    """A layer with a buffer that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(7, 7)
        self.register_buffer("scale", torch.rand(7), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """[b, 7] to [b, 7]."""
        hidden: Tensor = self.linear(inputs).tanh() * self.scale
        return hidden


def build() -> nn.Module:
    """Of tensors that three processes cannot share evenly; the third gets nothing of the last ones."""
    stem = nn.Sequential(nn.Conv2d(2, 7, 2), nn.Flatten())
    return nn.Sequential(stem, nn.Sequential(Block(), Block()), nn.Linear(7, 2)).double()


def equal_whole_networks() -> None:
    """On each of three processes: some steps by every optimizer, in float64, with a third of each batch."""
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo")
    groups = Groups.build(
        trajectories=1,
        processes=3,
        rank=rank,
        device=torch.device("cpu"),
        timeout=timedelta(seconds=60),
        sharded=True,
    )
    for name in SHARDED_OPTIMIZERS:
        torch.manual_seed(0)
        whole = build().to(memory_format=torch.channels_last)  # FSDP2 takes contiguous weights only
        inputs, labels = torch.randn(6, 2, 2, 2).double(), torch.randint(2, (6,))
        with torch.device("meta"):
            sharded = build()
        groups.wrap(sharded)
        groups.broadcast_parameters([sharded], whole if rank == 0 else None)
        section = OptimizerSection(name=name, lr=0.01, weight_decay=0.1)
        own = slice(2 * rank, 2 * rank + 2)
        for network, images, classes in ((whole, inputs, labels), (sharded, inputs[own], labels[own])):
            optimizer = create_optimizer(section, network)
            for _ in range(3):
                nn.functional.cross_entropy(network(images), classes).backward()
                optimizer.step()
                optimizer.zero_grad()
        with torch.no_grad():
            assert torch.allclose(sharded(inputs), whole(inputs), rtol=1e-9), name
        gathered = whole_on_cpu(dict(sharded.named_parameters()), keep=True)
        for path, parameter in whole.named_parameters():
            torch.testing.assert_close(gathered[path], parameter.detach(), rtol=1e-9, atol=1e-12)
            held = own_part(sharded.get_parameter(path)).untyped_storage().nbytes()
            assert held <= -(-len(parameter) // 3) * parameter[0].nbytes, (name, path)
    dist.destroy_process_group()


def test_a_third_of_a_network_in_each_process() -> None:
    """First values, steps, validation: equal to those of the whole network, of which none holds more."""
    call_on_ranks(3, equal_whole_networks)


COMMON = (
    *SMALL,
    "model.args.width=7",  # tensors that cannot be split evenly, BatchNorm
    "outer.steps=2",
    "run.keep_checkpoints=9",
    "data.eval_batch_size=100",  # three chunks, the last one of 97: processes do not score equally many
    "inner.optimizer.name=adamw",
    "inner.optimizer.lr=0.003",
    "inner.optimizer.nesterov=false",
    "run.mixed_precision=bf16",
    "run.display=quiet",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DDP: one group of two processes that host four trajectories."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    call_on_ranks(2, search_digits, *COMMON, "outer.groups=1", f"run.dir={folder}")
    return folder


def again(processes: int, run: Path, folder: Path, *overrides: str) -> None:
    """Resume a copy of a run at its second outer step."""
    shutil.copytree(run, folder)
    rewind(folder, "step-000001")
    resume = (f"run.dir={folder}", "run.resume=auto")
    call_on_ranks(processes, search_digits, *COMMON, *resume, *overrides)


@pytest.mark.slow
def test_sharded_equals_whole(whole: Path, tmp_path: Path) -> None:
    """Two groups of two, two trajectories in each, bit for bit; also when DDP resumes from what they saved."""
    folder = tmp_path / "sharded"
    sharded = ("outer.groups=2", "model.shard=true")
    call_on_ranks(4, search_digits, *COMMON, *sharded, f"run.dir={folder}")
    first = "checkpoints/step-000000/state.safetensors"
    assert (folder / first).read_bytes() == (whole / first).read_bytes()
    assert final_state(folder) == final_state(whole)
    again(2, folder, tmp_path / "whole", "outer.groups=1")
    assert final_state(tmp_path / "whole") == final_state(whole)


@pytest.mark.long
def test_other_numbers_of_processes(whole: Path, tmp_path: Path) -> None:
    """Four processes in a group, sharded or not, resume from what two wrote.

    Four gradients are added in another order: after three steps weights differ by a few units of the last place.
    """
    final = {}
    for shard in ("false", "true"):
        again(4, whole, tmp_path / shard, "outer.groups=1", f"model.shard={shard}")
        final[shard] = load_file(tmp_path / shard / "checkpoints" / "step-000002" / "state.safetensors")
    start = load_file(whole / "checkpoints" / "step-000001" / "state.safetensors")
    for name, value in final["false"].items():
        if name.startswith("network.") and value.is_floating_point():
            moved = (value - start[name]).norm()
            assert (final["true"][name] - value).norm() < 1e-4 * moved, name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("coat_lite_tiny", "cpe1.proj.weight and serial_blocks1.0.cpe.proj.weight are one shared parameter"),
        ("dm_nfnet_f0", "stages.0.0.skipinit_gain of this network is a single number"),
        ("sequencer2d_s", "rnn_v._flat_weights of this network is neither a parameter nor a buffer"),
    ],
)
def test_networks_that_cannot_be_sharded_are_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        outline_network(ModelSection(name=name), Schema("image", "label", ("a", "b"), (224, 224), 3))
