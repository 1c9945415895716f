"""What a run writes down: `metrics.jsonl`, one line for each outer step."""

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ohl_accel.errors import UserError
from ohl_accel.run_folder import write_whole


class Phases:
    """Seconds spent in the parts of an outer step. On CUDA a phase ends when its kernels have ended."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds: dict[str, float] = {}
        self._on_device: list[tuple[str, str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def __call__(self, name: str, within: str | None = None) -> Iterator[None]:
        """Add the time of the block to a phase.

        Args:
            name: of the phase.
            within: the phase that surrounds the block, whose time it is taken from. On CUDA its time is
                that between two events on the device, so nothing is waited for.
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
        """What was measured since the last call, for a line of `metrics.jsonl`.

        Saving comes after the line is written, so `save` is that of the step before.

        Args:
            images: trained on since the last call, over all trajectories.
        """
        seconds, self._seconds = self._seconds, {}
        return {"seconds": seconds, "images_per_second": images / sum(seconds.values())}

    def _add(self, name: str, seconds: float, within: str | None) -> None:
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds
        if within is not None:
            self._add(within, -seconds, None)


def keep_lines_before(path: Path, outer_step: int) -> None:
    """Drop lines that a resumed run will write again: those after its checkpoint."""
    if not path.exists():
        return
    kept = [line for line in read_metrics(path) if line["outer_step"] < outer_step]
    write_whole(path, "".join(map(json_line, kept)))


def append_line(path: Path, values: Mapping[str, Any]) -> None:
    """Write the line of an outer step."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json_line(values))


def amend_last_line(path: Path, values: Mapping[str, Any]) -> None:
    """Add to the last line what is known only when the run has ended."""
    lines = read_metrics(path)
    lines[-1] |= values
    write_whole(path, "".join(map(json_line, lines)))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics file, also while a run writes to it; none if there is no file.

    Raises:
        UserError: naming the first line that is damaged.
    """
    if not path.exists():
        return []
    content = path.read_bytes()
    lines: list[dict[str, Any]] = []
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), 1):
        try:
            lines.append(json.loads(line))
        except ValueError as error:
            raise UserError(
                f"{path}, line {number} is damaged: {error}; delete the line to do without it"
            ) from None
    return lines


def json_line(values: Mapping[str, Any]) -> str:
    """One line of JSON; null stands for NaN and infinity, which JSON has not."""
    return json.dumps({key: _finite(value) for key, value in values.items()}, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return [_finite(item) for item in value] if isinstance(value, list) else value
