"""Options of the inner loop and of the winner that the paper does not have, each against a closed form."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import final_state, latest, rewind
from forked import DIGITS
from safetensors.torch import load_file
from torch import Tensor, nn

from ohl_accel.engine.objective import Classification, open_objective
from ohl_accel.engine.search import search
from ohl_accel.engine.train import train
from ohl_accel.errors import UserError
from ohl_accel.run_folder.metrics import read_metrics

SMALL = ("outer.trajectories=2", "outer.inner_steps=2", "inner.batch_size=16", "data.heldout=50")
QUIET = ("run.display=quiet", "data.test_split=null", "inner.schedule={name: constant}")


class TwoHeads(nn.Module):
    """Linear, with an auxiliary head while it trains; it notes how far the training is."""

    training_progress: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("training_progress", torch.zeros(()), persistent=False)
        self.main, self.other = nn.Linear(64, 10), nn.Linear(64, 10)
        self.seen: list[float] = []

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Logits, in training of both heads."""
        flat = images.flatten(1)
        if not self.training:
            return self.main(flat)  # type: ignore[no-any-return]
        self.seen.append(float(self.training_progress))
        return self.main(flat), self.other(flat)


def trained(folder: Path, *overrides: str) -> TwoHeads:
    plain = "inner.optimizer={name: sgd, lr: 1.0, momentum: 0.0}"
    arguments = [plain, *SMALL[1:], *QUIET, "outer.steps=1", "augment.policy=none", f"run.dir={folder}"]
    network: Any = train(DIGITS, [*arguments, *overrides], model=TwoHeads()).network
    assert isinstance(network, TwoHeads)
    return network


def test_the_loss_of_an_auxiliary_head_is_added_with_its_weight(tmp_path: Path) -> None:
    torch.manual_seed(0)
    start = TwoHeads()
    torch.manual_seed(0)
    without = trained(tmp_path / "without", "inner.auxiliary_weight=0")
    assert torch.equal(without.other.weight, start.other.weight)
    assert without.seen == [0.0, 0.5]
    steps = {}
    for weight in (0.5, 1.0):
        torch.manual_seed(0)
        options = (f"inner.auxiliary_weight={weight}", "outer.inner_steps=1")
        step = trained(tmp_path / f"{weight}", *options).other.weight - start.other.weight
        steps[weight] = step.detach()
    torch.testing.assert_close(2 * steps[0.5], steps[1.0])
    assert float(steps[1.0].norm()) > 0.1


@pytest.mark.parametrize("clip", ["null", "0.01"])
def test_micro_batches_give_the_gradient_of_the_batch(clip: str, tmp_path: Path) -> None:
    ends = {}
    for parts in (1, 4):
        torch.manual_seed(0)
        options = (f"inner.micro_batches={parts}", f"inner.clip_grad={clip}")
        ends[parts] = trained(tmp_path / str(parts), *options)
    assert len(ends[4].seen) == 4 * len(ends[1].seen)
    losses = [read_metrics(tmp_path / part / "metrics.jsonl")[0]["train_loss"] for part in ("1", "4")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for whole, parted in zip(ends[1].parameters(), ends[4].parameters(), strict=True):
        torch.testing.assert_close(parted, whole, rtol=1e-4, atol=1e-6)
    with pytest.raises(UserError, match=r"batch_size=16 .* among 3 micro-batches: use 15 or 18"):
        trained(tmp_path / "3", "inner.micro_batches=3")


def test_gradients_are_clipped_to_a_norm(tmp_path: Path) -> None:
    torch.manual_seed(0)
    start = TwoHeads()
    torch.manual_seed(0)
    end = trained(tmp_path / "run", "inner.clip_grad=0.01", "outer.inner_steps=1")
    moved = [(a - b).detach() for a, b in zip(end.parameters(), start.parameters(), strict=True)]
    assert float(torch.cat([each.flatten() for each in moved]).norm()) == pytest.approx(0.01, rel=1e-3)


def test_label_smoothing_by_hand() -> None:
    logits, labels = torch.randn(7, 5), torch.randint(5, (7,))
    log_p = logits.log_softmax(1)
    by_hand = -(0.9 * log_p[range(7), labels] + 0.1 * log_p.mean(1)).mean()
    objective = open_objective("classification", 5, {"label_smoothing": 0.1})
    torch.testing.assert_close(objective.loss(logits, labels), by_hand)
    scores = objective.scores(objective.outcomes(logits, labels), labels)
    assert scores["loss"] == pytest.approx(float(F.cross_entropy(logits, labels)), abs=1e-6)
    assert float(Classification(5).loss(logits, labels)) == pytest.approx(scores["loss"], abs=1e-6)
    with pytest.raises(UserError, match="label_smoothing=2: must be in"):
        open_objective("classification", 5, {"label_smoothing": 2})


def test_only_the_winners_weights_are_adopted(tmp_path: Path) -> None:
    """Momenta then differ between trajectories, which a checkpoint keeps apart; a run resumes from it."""
    small = [*SMALL, *QUIET, "outer.steps=2", "model.args.width=4", "run.keep_checkpoints=9"]
    search(DIGITS, [*small, f"run.dir={tmp_path / 'weights'}", "outer.adopt=weights"])
    whole = final_state(tmp_path / "weights")
    rewind(tmp_path / "weights", "step-000001")
    files = (tmp_path / "weights" / "checkpoints" / "step-000001").glob("trajectory-*.safetensors")
    first, second = (load_file(file) for file in files)
    differ = {name.split(".")[0] for name, value in first.items() if not torch.equal(value, second[name])}
    assert differ == {"optimizer"}
    search(DIGITS, [*small, f"run.dir={tmp_path / 'weights'}", "outer.adopt=weights", "run.resume=auto"])
    assert final_state(tmp_path / "weights") == whole


@pytest.mark.parametrize("run", [search, train])
def test_the_finished_network_has_the_average(run: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = [
        *SMALL,
        *QUIET,
        "outer.steps=1",
        "model.args.width=4",
        "outer.average=0.9",
        f"run.dir={folder}",
    ]
    options += ["augment.policy=none"] if run is train else []
    result = run(DIGITS, [*options, "outer.keep_average=true"])
    state = load_file(folder / "checkpoints" / latest(folder).strip() / "state.safetensors")
    network = load_file(folder / "model.safetensors")
    averaged = {name.split("average.")[1]: value for name, value in state.items() if "average." in name}
    assert averaged.keys() == network.keys()
    for name, value in network.items():
        assert torch.equal(value, averaged[name]), name
        assert torch.equal(value, result.network.state_dict()[name].cpu())
