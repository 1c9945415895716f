"""What benchmarks share: parts of pages between two marks, and time on any device."""

import time
from pathlib import Path

import torch


def replace_between(file: Path, begin: str, end: str, content: str) -> None:
    """Replace what a page has between two marks."""
    before, _, rest = file.read_text(encoding="utf-8").partition(begin)
    file.write_text(before + begin + content + end + rest.partition(end)[2], encoding="utf-8")


def now(device: str) -> float:
    """Wall time in seconds, when a GPU has finished its work."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
