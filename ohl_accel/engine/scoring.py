"""Scoring networks on a split: the same number on any layout of processes.

Shapes: R networks, n images of the split, M numbers kept per image (`Objective.outcomes`).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ohl_accel.data import WAIT, Images, evaluation_batches
from ohl_accel.engine.augment import Augmentation
from ohl_accel.engine.objective import Objective


@torch.no_grad()
def outcomes_of(
    networks: Sequence[nn.Module],
    images: Images,
    *,
    objective: Objective,
    augmentation: Augmentation,
    batch_size: int,
    workers: int,
    timeout: float = WAIT,
    rank: int = 0,
    num_replicas: int = 1,
    in_step: bool = False,
    advanced: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """`Objective.outcomes` for each network and image: float64 [R, n, M] on the CPU, zero for other processes' images.

    Each chunk of the split is decoded once for all networks.

    Args:
        networks: on their device.
        images: of the split.
        objective: of the run.
        augmentation: for the normalization.
        batch_size: images of a chunk.
        workers: decoding processes.
        timeout: seconds to wait for one of them.
        rank, num_replicas: of this process, among those that share the split.
        in_step: run the networks equally often on every process, as sharded ones require.
        advanced: called with the number of chunks that this process has scored, and of all that it will.
    """
    for network in networks:
        network.eval()
    rows: Tensor | None = None
    blank = torch.zeros(1, images.decoding.channels, *images.decoding.size, dtype=torch.uint8)
    own = -(-(-(-len(images) // batch_size) - rank) // num_replicas)
    batches = evaluation_batches(images, batch_size, rank, num_replicas, workers, timeout)
    for done, (chunk, (pixels, labels)) in enumerate(batches, 1):
        inputs = augmentation.normalize(pixels)
        labels = labels.to(inputs.device, non_blocking=True)
        first = chunk * batch_size
        for number, network in enumerate(networks):
            found = objective.outcomes(network(inputs), labels).cpu()
            if rows is None:
                rows = torch.zeros(len(networks), len(images), found.shape[1], dtype=torch.float64)
            rows[number, first : first + len(found)] = found
        advanced(done, own)
    if rows is None or in_step:
        chunks = -(-len(images) // batch_size)
        if rows is None or 0 < chunks % num_replicas <= rank:  # others have one more chunk
            for network in networks:
                logits = network(augmentation.normalize(blank))
            if rows is None:
                width = objective.outcomes(logits, images.labels[:1].to(logits.device)).shape[1]
                rows = torch.zeros(len(networks), len(images), width, dtype=torch.float64)
    return rows
