"""Scoring networks on a split: the same number on any layout of processes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ohl_accel.data import Images, evaluation_batches, num_chunks
from ohl_accel.engine.augment import Augmentation


@dataclass(frozen=True)
class Score:
    """Of one network on one split: accuracies in 0..1 and mean cross-entropy in nats."""

    accuracy: float
    top5_accuracy: float
    loss: float
    images: int


@torch.no_grad()
def partial_scores(
    networks: Sequence[nn.Module],
    images: Images,
    augmentation: Augmentation,
    batch_size: int,
    share: int = 0,
    shares: int = 1,
    workers: int = 0,
    in_step: bool = False,
) -> Tensor:
    """What one process contributes: float64 [R networks, chunks, 3] on the CPU, zero where others score.

    The last axis holds correct, correct among the best five, and summed loss. Each chunk of the split
    is decoded once for all networks.

    Args:
        networks: of the hosted trajectories.
        images: of the split.
        augmentation: for the normalization.
        batch_size: of a chunk.
        share, shares: which of how many processes this one is.
        in_step: run the networks as often as every other process does, as sharded ones need.
    """
    scores = torch.zeros(len(networks), num_chunks(images, batch_size), 3, dtype=torch.float64)
    for network in networks:
        network.eval()
    for chunk, (pixels, labels) in evaluation_batches(images, batch_size, share, shares, workers):
        inputs = augmentation.normalize(pixels)
        labels = labels.to(inputs.device, non_blocking=True)
        for place, network in enumerate(networks):
            scores[place, chunk] = outcomes_of(network(inputs), labels).sum(0)
    if in_step and 0 < scores.shape[1] % shares <= share:  # others have a chunk more
        blank = torch.zeros(1, images.decoding.channels, *images.decoding.size, dtype=torch.uint8)
        for network in networks:
            network(augmentation.normalize(blank))
    return scores


def outcomes_of(logits_bC: Tensor, labels_b: Tensor) -> Tensor:
    """For each image 1 or 0 for correct, 1 or 0 for correct among the best five, and the loss: float64 [b, 3]."""
    logits_bC = logits_bC.float()
    best = logits_bC.topk(min(5, logits_bC.shape[1]), dim=1).indices == labels_b[:, None]
    loss_b = F.cross_entropy(logits_bC, labels_b, reduction="none")
    return torch.stack([best[:, 0].double(), best.any(1).double(), loss_b.double()], 1)


def total_scores(scores_RC3: Tensor, images: int) -> list[Score]:
    """Sum the chunks, always in the same order, once all processes' parts are added up."""
    return [
        Score(correct / images, among_best / images, loss / images, images)
        for correct, among_best, loss in scores_RC3.sum(1).tolist()
    ]
