"""Memory of each process, with DDP and with `model.shard=true`.

python -m benchmarks.sharding [section.key=value ...]

Four processes in one group that hosts two trajectories of a ViT-B/4 (85 million weights, 340 MB) on the digits; Linux
only. Prints a Markdown table of peaks above the memory of a process before the run is set up, in MB.
"""

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.scaling_worker import launch

PROCESSES = 4
RECIPE = [
    "recipes/digits.yaml",
    "model.name=vit_base_patch16_224",
    "model.args={img_size: 8, patch_size: 4}",
    "inner.batch_size=8",
    "outer.groups=1",
    "outer.trajectories=2",
    "outer.steps=2",
    "outer.inner_steps=2",
    "run.display=quiet",
]
PARTS = ("start", "train", "validate", "save", "finish")


def resident(kind: str) -> int:
    """Memory of this process in bytes: `VmRSS` now, or `VmHWM`, the peak since `clear_refs`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(kind))


def worker(folder: str, *arguments: str) -> None:
    """A search that records the peak of each of its parts."""
    from ohl_accel.engine import session
    from ohl_accel.engine.run import Run
    from ohl_accel.engine.search import search

    before, peaks = 0, dict.fromkeys(PARTS, 0)

    def noting(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            nonlocal before
            before = before or resident("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")
            result = function(*given, **named)
            peaks[part] = max(peaks[part], resident("VmHWM") - before)
            return result

        return call

    for part, name in (("start", "set_up"), ("finish", "finish")):
        vars(session)[name] = noting(part, vars(session)[name])
    for part in PARTS[1:-1]:
        setattr(Run, part, noting(part, getattr(Run, part)))
    search(arguments[0], arguments[1:])
    (Path(folder) / f"{os.environ['RANK']}.json").write_text(json.dumps(peaks))


def main() -> None:
    """The command."""
    if sys.argv[1:2] == ["worker"]:
        worker(*sys.argv[2:])
        return
    os.environ["MALLOC_MMAP_THRESHOLD_"] = (
        "1000000"  # glibc gives freed tensors back, so that peaks are their own
    )
    print(f"| model.shard | process | {' | '.join(PARTS)} |\n|---|---|{'---|' * len(PARTS)}")
    for shard in ("false", "true"):
        with tempfile.TemporaryDirectory() as folder:
            given = [*RECIPE, f"model.shard={shard}", f"run.dir={folder}/run", *sys.argv[1:]]
            launch(PROCESSES, "worker", folder, *given, module="benchmarks.sharding")
            peaks = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(PROCESSES)]
        others = {part: max(other[part] for other in peaks[1:]) for part in PARTS}
        for name, row in (("0", peaks[0]), ("each other", others)):
            values = " | ".join(f"{row[part] / 1e6:,.0f}" for part in PARTS)
            print(f"| {shard} | {name} | {values} |", flush=True)


if __name__ == "__main__":
    main()
