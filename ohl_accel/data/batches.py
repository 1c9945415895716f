"""Mini-batches in an order that is the same for every trajectory and every layout of processes.

The order of an epoch is keyed by (seed, epoch), so training can start at any inner step. A process
takes some columns of the epoch's table of [inner steps, positions in the batch], and each of its workers some
of those: the batches do not depend on the number of processes or workers.

Shapes: B images of the group's batch, b of this process, S inner steps of an epoch, L lanes of X images each.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from ohl_accel.data.crops import RandomResizedCrop
from ohl_accel.data.images import Crop, Decoding, Images, Replaced
from ohl_accel.errors import ProcessFailedError, UserError
from ohl_accel.operations.kernels.around import send
from ohl_accel.rng import keyed_generator

Batch = tuple[Tensor, Tensor]
"""Images, uint8 [b, C, H, W], and labels: int64 [b], or for multi-label data float32 [b, classes], 0 or 1."""
Part = tuple[np.ndarray, list[Replaced]] | UserError
"""What a worker sends: the labels of its part of a batch and the images that were replaced, or an error.

An array goes through a pipe; a tensor would need shared memory, and wait forever where that is full.
"""

WAIT = 1800.0
"""Seconds after which a worker that sends nothing is given up, as by `run.timeout`."""

_BATCHES_AHEAD, _CHUNKS_AHEAD = 4, 1
_MOST_LANES = 64
_OPEN_BYTES = 2**32


@dataclass(frozen=True)
class Blocks:
    """How a stream is shuffled, so that each of its blocks is read by few workers, and within a short time.

    `of_image`, int64 [images], is the block of each image. A batch has images from `lanes` parts of the stream,
    sampled from a window of `window` images in total.
    """

    of_image: Tensor
    lanes: int
    window: int

    @classmethod
    def of(cls, images: Images, batch_size: int, window: int) -> "Blocks":
        """With the most lanes that divide the batch: up to 64, the number of blocks, and 4 GiB of open blocks."""
        assert images.blocks is not None
        open_at_once = int(_OPEN_BYTES / images.source.bytes_per_block)
        most = max(1, min(_MOST_LANES, len(images.blocks.unique()), open_at_once))
        lanes = max(lanes for lanes in range(1, most + 1) if batch_size % lanes == 0)
        return cls(images.blocks.long(), lanes, window)


class TrainingOrder:
    """Which image is at which position of every mini-batch.

    An epoch is `num_images // batch_size` batches without repetition; the remaining images are left out, different
    ones in each epoch. Without blocks, images are permuted. A stream's blocks are permuted, laid
    end to end and cut into lanes of equal length; inside a lane images are shuffled within windows of
    neighbours; and each batch takes equally many images from each lane. So its columns read different blocks.

    Args:
        num_images: training images.
        batch_size: B, over the whole group.
        seed: of the run.
        first, last: the range of inner steps, counted over the whole run, `last` excluded.
        rank, num_replicas: this process takes the rank-th of `num_replicas` equal slices of each batch.
        blocks: of a stream; None for images that are read one by one.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        seed: int,
        *,
        first: int,
        last: int,
        rank: int = 0,
        num_replicas: int = 1,
        blocks: Blocks | None = None,
    ) -> None:
        self.num_images, self.batch_size, self.seed = num_images, batch_size, seed
        self.first, self.last, self._blocks = first, last, blocks
        own = batch_size // num_replicas
        self.own = range(rank * own, (rank + 1) * own)

    def __len__(self) -> int:
        return self.last - self.first

    def __iter__(self) -> Iterator[list[int]]:
        """This process's images of each batch."""
        for _, rows_Sb in self.epochs(self.own):
            yield from rows_Sb.tolist()

    def epochs(self, columns: range) -> Iterator[tuple[int, Tensor]]:
        """For each remaining (part of an) epoch: its first remaining step, and int64 [steps, columns]."""
        per_epoch, step = self.num_images // self.batch_size, self.first
        while step < self.last:
            epoch, done = divmod(step, per_epoch)
            end = min(per_epoch, done + self.last - step)
            yield step, self._table(epoch)[done:end, columns.start : columns.stop]
            step += end - done

    def _table(self, epoch: int) -> Tensor:
        """int64 [S, B]."""
        generator = keyed_generator(self.seed, "order", epoch)
        steps = self.num_images // self.batch_size
        if self._blocks is None:
            order = torch.randperm(self.num_images, generator=generator)
            return order[: steps * self.batch_size].view(steps, self.batch_size)
        block_n, lanes = self._blocks.of_image, self._blocks.lanes
        rank = torch.randperm(int(block_n.max()) + 1, generator=generator)
        end_to_end = rank[block_n].argsort(stable=True)[: steps * self.batch_size]
        lane_LX = end_to_end.view(lanes, -1)
        # windows of different lanes begin at different steps, so that reads do not come in bursts
        window = max(1, self._blocks.window // lanes)
        begin_L1 = torch.arange(lanes)[:, None] * window // lanes
        window_LX = (begin_L1 + torch.arange(lane_LX.shape[1])) // window
        within_LX = torch.rand(lane_LX.shape, generator=generator, dtype=torch.float64)
        lane_LX = lane_LX.gather(1, (window_LX + within_LX).argsort(dim=1, stable=True))
        return lane_LX.view(lanes, steps, -1).transpose(0, 1).reshape(steps, self.batch_size)


def training_batches(
    images: Images,
    order: TrainingOrder,
    workers: int,
    pin: bool,
    crop: RandomResizedCrop | None = None,
    timeout: float = WAIT,
) -> Iterator[Batch]:
    """The batches of `order`, decoded ahead by `workers` processes unless pixels are in memory.

    Args:
        images: of the training split; replaced ones are counted in their tally.
        order: of this process.
        workers: processes; 0 decodes here.
        pin: whether to put batches into pinned memory.
        crop: crops each image; None: as in other splits.
        timeout: seconds to wait for a worker.

    Raises:
        ProcessFailedError: if an image or a file cannot be read, or a worker sends nothing.
    """
    if images.kept:
        yield from (images.__getitems__(rows) for rows in order)
        return
    workers = min(workers, len(order.own))
    buffers = _BatchBuffers(images.decoding, len(order.own), _BATCHES_AHEAD + 1 if workers else 1)
    parts = _loader(_Columns(images, order, crop, buffers), workers, _BATCHES_AHEAD, timeout)
    for index in range(len(order)):
        yield buffers.take(index, len(order.own), images, islice(parts, max(1, workers)), pin)


def ahead_on_device(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The same batches on the device; on CUDA, each is copied during training on the previous one."""
    if device.type != "cuda":
        yield from batches
        return
    copies = torch.cuda.Stream(device)

    def copied() -> Iterator[Batch]:
        for images, labels in batches:
            with torch.cuda.stream(copies):
                on_device = send(images, device), send(labels, device)
            yield on_device

    coming = copied()
    batch = next(coming, None)
    while batch is not None:
        torch.cuda.current_stream(device).wait_stream(copies)
        for tensor in batch:
            tensor.record_stream(torch.cuda.current_stream(device))
        ready, batch = batch, next(coming, None)
        yield ready


def evaluation_batches(
    images: Images, batch_size: int, rank: int, num_replicas: int, workers: int = 0, timeout: float = WAIT
) -> Iterator[tuple[int, Batch]]:
    """Every `num_replicas`-th chunk of a split, starting at the `rank`-th, as (index of the chunk, batch).

    Raises:
        ProcessFailedError: if an image or a file cannot be read, or a worker sends nothing for `timeout` seconds.
    """
    chunks = range(rank, num_chunks(images, batch_size), num_replicas)
    if images.kept:
        for chunk in chunks:
            first = chunk * batch_size
            yield chunk, images.__getitems__(range(first, min(first + batch_size, len(images))))
        return
    workers = min(workers, len(chunks))
    buffers = _BatchBuffers(images.decoding, min(batch_size, len(images)), workers * (_CHUNKS_AHEAD + 1) or 1)
    parts = _loader(_Chunks(images, batch_size, chunks, buffers), workers, _CHUNKS_AHEAD, timeout)
    for index, chunk in enumerate(chunks):
        size = min(batch_size, len(images) - chunk * batch_size)
        yield chunk, buffers.take(index, size, images, islice(parts, 1))


def num_chunks(images: Images, batch_size: int) -> int:
    """How many chunks of `batch_size` a split has; the last one may be smaller."""
    return -(-len(images) // batch_size)


class _BatchBuffers:
    """A ring of buffers for decoded images, in memory shared with the workers; reused, because new pages are slow.

    With k batches decoded ahead, a worker begins its part of a batch when the k-th batch before is requested, and by
    then the batch before that one has been taken: so k + 1 buffers are needed.

    Args:
        decoding: of the images.
        batch_size: maximum number of images per batch.
        batches: number of buffers; a single one is not shared.

    Raises:
        ProcessFailedError: if there is not enough shared memory.
    """

    def __init__(self, decoding: Decoding, batch_size: int, batches: int) -> None:
        self._pixels = torch.empty(batches, batch_size, decoding.channels, *decoding.size, dtype=torch.uint8)
        if batches > 1:
            try:
                self._pixels.share_memory_()
            except RuntimeError as error:
                size = f"{self._pixels.nbytes / 2**20:.0f} MiB"
                raise ProcessFailedError(
                    f"data.workers: batches decoded ahead need {size} of shared memory, which is not "
                    "available: enlarge /dev/shm (docker run --shm-size; on Kubernetes an emptyDir of medium Memory), "
                    "or set data.workers=0 or a smaller data.eval_batch_size"
                ) from error

    def __getitem__(self, index: int) -> Tensor:
        """The buffer of a batch: uint8 [b, C, H, W].

        Args:
            index: of the batch, in the order in which they are yielded.
        """
        return self._pixels[index % len(self._pixels)]

    def take(self, index: int, size: int, images: Images, parts: Iterable[Part], pin: bool = False) -> Batch:
        """A copy of a batch whose parts have arrived, in pinned memory if `pin`; its images are added to the tally.

        Raises:
            ProcessFailedError: if an image or a file cannot be read, or fewer than `size` images arrived.
        """
        all_labels = []
        for part in parts:
            if isinstance(part, UserError):
                raise ProcessFailedError(str(part))
            labels, replaced = part
            images.tally.add(len(labels), replaced)
            all_labels.append(torch.from_numpy(labels))
        arrived = sum(map(len, all_labels))
        if arrived != size:
            raise ProcessFailedError(
                f"only {arrived} of the {size} images of a batch came from the processes that decode them"
            )
        labels_b = torch.cat(all_labels)
        pixels = self[index][: len(labels_b)]
        return torch.empty(pixels.shape, dtype=torch.uint8, pin_memory=pin).copy_(pixels), labels_b


class _Columns(IterableDataset[Part]):
    """What one worker decodes: some adjacent positions of every batch of its process."""

    def __init__(
        self, images: Images, order: TrainingOrder, crop: RandomResizedCrop | None, buffers: _BatchBuffers
    ) -> None:
        self._images, self._order, self._crop, self._buffers = images, order, crop, buffers

    def __iter__(self) -> Iterator[Part]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        own = self._order.own
        positions = slice(len(own) * number // workers, len(own) * (number + 1) // workers)
        columns = own[positions]
        try:
            for first, rows_Sb in self._order.epochs(columns):
                planned = self._images.numbers[rows_Sb.flatten()]
                with self._images.source.planned(planned) as opener:
                    for step, rows in enumerate(rows_Sb.tolist(), first):
                        buffer = self._buffers[step - self._order.first][positions]
                        crop = self._crop_of(step, columns.start)
                        yield _part(self._images.decode(rows, buffer, crop, opener))
        except UserError as error:
            yield error

    def _crop_of(self, step: int, first: int) -> Crop | None:
        random = self._crop
        return None if random is None else lambda image, index: random(image, step, first + index)


class _Chunks(Dataset[Part]):
    """Chunks of a split, decoded."""

    def __init__(self, images: Images, batch_size: int, chunks: range, buffers: _BatchBuffers) -> None:
        self._images, self._batch_size, self._chunks, self._buffers = images, batch_size, chunks, buffers

    def __len__(self) -> int:
        return len(self._chunks)

    def __getitem__(self, index: int) -> Part:
        first = self._chunks[index] * self._batch_size
        indices = range(first, min(first + self._batch_size, len(self._images)))
        try:
            return _part(self._images.decode(indices, self._buffers[index][: len(indices)]))
        except UserError as error:
            return error


def _part(decoded: tuple[Tensor, list[Replaced]]) -> Part:
    labels, replaced = decoded
    return labels.numpy(), replaced


def _loader(dataset: Dataset[Part], workers: int, ahead: int, timeout: float) -> Iterator[Part]:
    loader = DataLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_is,
        prefetch_factor=ahead if workers else None,
        generator=torch.Generator(),
        timeout=timeout if workers else 0,
    )
    try:
        yield from loader
    except RuntimeError as error:
        if "timed out" not in str(error):
            raise
        raise ProcessFailedError(
            f"no images came for {timeout:g} s (run.timeout) from the processes that decode them (data.workers)"
        ) from error
    except (ConnectionError, EOFError, FileNotFoundError) as error:  # during the transfer of a batch
        raise RuntimeError(f"DataLoader worker is gone: {error}") from error


def _as_is(batch: Any) -> Any:
    return batch
