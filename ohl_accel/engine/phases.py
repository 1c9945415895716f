"""Timing of the phases of an outer step."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Phases:
    """Seconds spent in each phase of an outer step. On CUDA a phase ends when its kernels have finished."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds: dict[str, float] = {}
        self._on_device: list[tuple[str, str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def __call__(self, name: str, within: str | None = None) -> Iterator[None]:
        """Add the time of the block to a phase.

        Args:
            name: of the phase.
            within: the enclosing phase, from which the time is subtracted. On CUDA it is then measured with
                events on the device, without synchronizing.
        """
        if within is not None and self._device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self._on_device.append((name, within, begin, end))
            return
        start = time.perf_counter()
        yield
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._add(name, time.perf_counter() - start, within)
        for part, whole, begin, end in self._on_device:
            self._add(part, begin.elapsed_time(end) / 1000, whole)
        self._on_device.clear()

    def take(self, images: int) -> dict[str, Any]:
        """The measurements since the last call, for a line of `metrics.jsonl`.

        Saving follows after the line is written, so `save` is that of the previous step.

        Args:
            images: trained on since the last call, over all trajectories.
        """
        seconds, self._seconds = self._seconds, {}
        return {"seconds": seconds, "images_per_second": images / sum(seconds.values())}

    def _add(self, name: str, seconds: float, within: str | None) -> None:
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds
        if within is not None:
            self._add(within, -seconds, None)
