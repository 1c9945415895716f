"""What a network learns and how it is scored: loss, prediction and scores.

Shapes: b images of a batch, n images of a split, C classes, M numbers kept per image.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ohl_accel.errors import UserError
from ohl_accel.extensions import find_class, why_refused


class Objective(ABC):
    """The task of a run. Derive from it and name the class in the recipe: `objective: my_module.py:MyObjective`.

    Args:
        num_classes: C, the outputs of the network.
    """

    metric: ClassVar[str]
    """The score of a trajectory on the held-out images, one of the keys of `scores`."""
    greater_is_better: ClassVar[bool] = True
    """Whether a higher `metric` is better; otherwise the reward is its negative."""
    multi_label: ClassVar[bool] = False
    """Whether an image may have several labels: float32 [n, C] of 0 and 1 instead of int64 [n]."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes

    @abstractmethod
    def loss(self, logits_bC: Tensor, targets_b: Tensor) -> Tensor:
        """The mean training loss of a batch: float32 []. Targets are labels, or mixtures of them [b, C]."""

    @abstractmethod
    def outcomes(self, logits_bC: Tensor, labels_b: Tensor) -> Tensor:
        """What `scores` and `table` need to know about each image: float64 [b, M]."""

    @abstractmethod
    def scores(self, outcomes_nM: Tensor, labels_n: Tensor) -> dict[str, float]:
        """The scores of a whole split: `loss` (mean, in nats), `metric`, and any others."""

    def losses(self, outcomes_nM: Tensor, labels_n: Tensor) -> Tensor:
        """The loss of each image, whose mean is that of `scores`: float64 [n]. By default, scores of each by itself."""
        rows = zip(outcomes_nM.split(1), labels_n.split(1), strict=True)
        return torch.tensor([self.scores(*row)["loss"] for row in rows], dtype=torch.float64)

    @abstractmethod
    def table(
        self, outcomes_nM: Tensor, labels_n: Tensor, class_names: Sequence[str]
    ) -> list[dict[str, Any]]:
        """A row for each class: `class`, `images` and scores, which are None for a class without images."""

    def confusions(self, outcomes_nM: Tensor, labels_n: Tensor) -> Tensor | None:
        """Which classes were taken for which others: int64 [P, 3], rows of class, class it was taken for, and images.

        None, as by default, for tasks in which an image is not taken for one class.
        """
        return None

    def reward(self, scores: Mapping[str, float]) -> float:
        """What the policy is to maximize: the metric, or its negative."""
        return scores[self.metric] if self.greater_is_better else -scores[self.metric]


class Classification(Objective):
    """One label for each image: cross-entropy, accuracy (the paper's).

    Args:
        num_classes: C.
        label_smoothing: share of the target, in 0..1, that is spread over all classes in training; scores are without.

    Raises:
        ValueError: for a share outside 0..1.
    """

    metric = "accuracy"

    def __init__(self, num_classes: int, label_smoothing: float = 0.0) -> None:
        super().__init__(num_classes)
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing={label_smoothing}: must be in 0..1")
        self._label_smoothing = label_smoothing

    def loss(self, logits_bC: Tensor, targets_b: Tensor) -> Tensor:
        """Cross-entropy in nats."""
        return F.cross_entropy(logits_bC, targets_b, label_smoothing=self._label_smoothing)

    def outcomes(self, logits_bC: Tensor, labels_b: Tensor) -> Tensor:
        """Correct (0 or 1), correct among the best five, cross-entropy, predicted class: float64 [b, 4]."""
        logits_bC = logits_bC.float()
        best = logits_bC.topk(min(5, logits_bC.shape[1]), dim=1).indices
        correct = best == labels_b[:, None]
        loss_b = F.cross_entropy(logits_bC, labels_b, reduction="none")
        return torch.stack(
            [correct[:, 0].double(), correct.any(1).double(), loss_b.double(), best[:, 0].double()], 1
        )

    def scores(self, outcomes_nM: Tensor, labels_n: Tensor) -> dict[str, float]:
        """Accuracy, top-5 accuracy (both in 0..1) and loss."""
        correct, top5, loss, _ = outcomes_nM.mean(0).tolist()
        return {"accuracy": correct, "top5_accuracy": top5, "loss": loss}

    def losses(self, outcomes_nM: Tensor, labels_n: Tensor) -> Tensor:
        """Cross-entropy of each image."""
        return outcomes_nM[:, 2]

    def table(
        self, outcomes_nM: Tensor, labels_n: Tensor, class_names: Sequence[str]
    ) -> list[dict[str, Any]]:
        """Top-1, top-5, loss, and the class that images were most often mistaken for."""
        rows: list[dict[str, Any]] = []
        for number, name in enumerate(class_names):
            own = outcomes_nM[labels_n == number]
            mistaken = torch.bincount(own[:, 3].long(), minlength=self.num_classes)
            mistaken[number] = 0
            count = int(mistaken.max())
            top1, top5, loss = own[:, :3].mean(0).tolist() if len(own) else (None, None, None)
            rows.append(
                {
                    "class": name,
                    "images": len(own),
                    "top1": top1,
                    "top5": top5,
                    "loss": loss,
                    "most_often_taken_for": class_names[int(mistaken.argmax())] if count else None,
                    "mistaken": count,
                }
            )
        return rows

    def confusions(self, outcomes_nM: Tensor, labels_n: Tensor) -> Tensor:
        """From the predicted classes: int64 [P, 3], in the order of the classes."""
        pairs_n2 = torch.stack([labels_n.long(), outcomes_nM[:, 3].long()], 1)
        mistaken_P2, count_P = pairs_n2[pairs_n2[:, 0] != pairs_n2[:, 1]].unique(dim=0, return_counts=True)
        return torch.cat([mistaken_P2, count_P[:, None]], 1)


class MultiLabel(Objective):
    """Any number of labels for each image: binary cross-entropy, mean average precision."""

    metric = "mAP"
    multi_label = True

    def loss(self, logits_bC: Tensor, targets_b: Tensor) -> Tensor:
        """Binary cross-entropy in nats, mean over images and classes."""
        return F.binary_cross_entropy_with_logits(logits_bC.float(), targets_b.float())

    def outcomes(self, logits_bC: Tensor, labels_b: Tensor) -> Tensor:
        """The C logits, and the loss: float64 [b, C + 1]."""
        logits_bC = logits_bC.float()
        loss_bC = F.binary_cross_entropy_with_logits(logits_bC, labels_b.float(), reduction="none")
        return torch.cat([logits_bC, loss_bC.mean(1, keepdim=True)], 1).double()

    def scores(self, outcomes_nM: Tensor, labels_n: Tensor) -> dict[str, float]:
        """mAP in 0..1 over the classes that have images, and loss."""
        precisions = [row["average_precision"] for row in self._rows(outcomes_nM, labels_n)]
        found = [precision for precision in precisions if precision is not None]
        mean = sum(found) / len(found) if found else float("nan")
        return {"mAP": mean, "loss": float(outcomes_nM[:, -1].mean())}

    def losses(self, outcomes_nM: Tensor, labels_n: Tensor) -> Tensor:
        """Binary cross-entropy of each image."""
        return outcomes_nM[:, -1]

    def table(
        self, outcomes_nM: Tensor, labels_n: Tensor, class_names: Sequence[str]
    ) -> list[dict[str, Any]]:
        """Average precision of each class."""
        rows = self._rows(outcomes_nM, labels_n)
        return [{"class": name, **row} for name, row in zip(class_names, rows, strict=True)]

    def _rows(self, outcomes_nM: Tensor, labels_n: Tensor) -> list[dict[str, Any]]:
        return [
            {
                "images": int(labels_n[:, number].sum()),
                "average_precision": average_precision(outcomes_nM[:, number], labels_n[:, number]),
            }
            for number in range(self.num_classes)
        ]


def average_precision(score_n: Tensor, positive_n: Tensor) -> float | None:
    """Area under the precision-recall curve as a sum of steps, as in scikit-learn; None if there is no positive.

    Args:
        score_n: float; higher is more likely positive. Equal scores form one step.
        positive_n: 0 or 1.
    """
    positives = int(positive_n.sum())
    if not positives:
        return None
    sorted_n, order_n = score_n.sort(descending=True)
    true_n = positive_n[order_n].double().cumsum(0)
    ends = torch.cat([sorted_n[1:] != sorted_n[:-1], torch.ones(1, dtype=torch.bool)]).nonzero().squeeze(1)
    precision, recall = true_n[ends] / (ends + 1), true_n[ends] / positives
    return float((precision * recall.diff(prepend=torch.zeros(1, dtype=torch.float64))).sum())


OBJECTIVES: dict[str, type[Objective]] = {"classification": Classification, "multilabel": MultiLabel}
"""The built-in objectives by name."""


def open_objective(name: str, num_classes: int, options: Mapping[str, Any] | None = None) -> Objective:
    """The objective that a recipe names.

    Args:
        name: a key of `OBJECTIVES`, `package.module:Name` or `path/to/file.py:Name`.
        num_classes: C.
        options: `objective_args`, additional arguments of its constructor.

    Raises:
        UserError: if there is none, or it does not take the options.
    """
    kind = find_class("objective", name, OBJECTIVES, Objective)  # type: ignore[type-abstract]
    options = options or {}
    try:
        return kind(num_classes, **options)
    except (TypeError, ValueError) as error:
        why = why_refused(kind, options, ("self", "num_classes"), error)
        raise UserError(f"objective={name}, objective_args={dict(options)}: {why}") from error
