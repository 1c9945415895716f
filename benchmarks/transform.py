"""What PolicyTransform costs, against torchvision's AutoAugment on the same images: writes a Markdown table.

    OMP_NUM_THREADS=1 python benchmarks/transform.py

One thread. Each round times both, one after the other, so that what else the machine does meets both;
the table has the medians over the rounds and the median, least and greatest of the rounds' ratios.
"""

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image
from torchvision.transforms import v2

from ohl_accel import Policy, PolicyTransform
from ohl_accel.comparison.summary import processor

RESULT = Path(__file__).parent / "results" / "transform.md"


def main() -> None:
    """Time all cases and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", help="where batches of tensors are")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--images", type=int, default=192, help="images of 32 x 32 per round; of 224 x 224 a quarter"
    )
    parser.add_argument("--result", type=Path, default=RESULT, help="the Markdown file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        measured(name, ours, theirs, images_per_call, options.rounds)
        for side, batch in ((32, 128), (224, 32))
        for name, ours, theirs, images_per_call in cases(
            side, batch, options.images if side == 32 else options.images // 4, torch.device(options.device)
        )
    ]
    options.result.write_text(page(rows, options), encoding="utf-8")
    print(options.result.read_text(encoding="utf-8"))


def cases(
    side: int, batch: int, count: int, device: torch.device
) -> list[tuple[str, Callable[[], Any], Callable[[], Any], int]]:
    """(name, our call, torchvision's, images of each call): smooth pictures, each image transformed once."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(max(count, batch), 3, 8, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1)
    tensors = (255 * smooth).to(torch.uint8)
    pictures = [
        Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy())) for image in tensors[:count]
    ]
    singles = list(tensors[:count])
    arrays = list(map(np.asarray, pictures))
    images_BCHW = tensors[:batch].to(device)
    policy, auto_augment = PolicyTransform(Policy(), seed=0), v2.AutoAugment()

    def one_by_one(transform: Callable[[Any], Any], images: Any) -> Callable[[], Any]:
        return lambda: [transform(image) for image in images]

    size = f"{side} x {side}"
    return [
        (f"PIL image, {size}", one_by_one(policy, pictures), one_by_one(auto_augment, pictures), count),
        (f"array, {size}", one_by_one(policy, arrays), one_by_one(auto_augment, pictures), count),
        (f"uint8 tensor, {size}", one_by_one(policy, singles), one_by_one(auto_augment, singles), count),
        (
            f"batch [{batch}, 3, {side}, {side}], {device.type}",
            lambda: policy(images_BCHW),
            one_by_one(auto_augment, images_BCHW),
            batch,
        ),
    ]


def measured(name: str, ours: Callable[[], Any], theirs: Callable[[], Any], images: int, rounds: int) -> str:
    """A row of the table: images/s of both and the ratio, from paired rounds."""
    for warm_up in (ours, theirs):
        warm_up()
    rates = [(images / seconds(ours), images / seconds(theirs)) for _ in range(rounds)]
    ratios = [a / b for a, b in rates]
    medians = [statistics.median(rate) for rate in zip(*rates, strict=True)]
    return (
        f"| {name} | {medians[0]:,.0f} | {medians[1]:,.0f} "
        f"| {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |"
    )


def seconds(call: Callable[[], Any]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def page(rows: list[str], options: argparse.Namespace) -> str:
    """The whole result file."""
    device = torch.cuda.get_device_name() if options.device == "cuda" else processor()
    return "\n".join(
        [
            "# PolicyTransform: images/s, and against torchvision",
            "",
            "The uniform policy against `torchvision.transforms.v2.AutoAugment` on the same images. AutoAugment",
            "applies each of its two functions with a probability, PolicyTransform always applies two. torchvision",
            "draws once per call, so for an operation of its own each image of a batch is a call, and it takes no",
            "arrays: there it has the PIL images.",
            "",
            "| input | PolicyTransform, images/s | AutoAugment, images/s | ratio, median (least to greatest) |",
            "|---|---|---|---|",
            *rows,
            "",
            f"- command: `OMP_NUM_THREADS=1 python {' '.join(['benchmarks/transform.py', *sys.argv[1:]])}`",
            f"- {device}, one thread; {options.rounds} rounds, both timed in each; load average at the end "
            f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores",
            f"- Python {platform.python_version()}, torch {torch.__version__}, torchvision {torchvision.__version__}, "
            f"Pillow {PIL.__version__}",
            f"- {date.today()}",
            "",
        ]
    )


if __name__ == "__main__":
    main()
