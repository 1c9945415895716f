"""Files damaged at random: whatever reads them must succeed or raise a ValueError, in bounded time and memory.

`python -m benchmarks.endurance` does it with all of them; tests with a few.
"""

import random
import resource
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from ohl_accel.data import open_data
from ohl_accel.data.cache import cached
from ohl_accel.data.index import build_index
from ohl_accel.data.source import files_of_split
from ohl_accel.engine import checkpoint
from ohl_accel.engine.evaluate import open_network
from ohl_accel.engine.same_run import check_images
from ohl_accel.operations.space_file import open_space
from ohl_accel.policy import Policy
from ohl_accel.recipe import Recipe
from ohl_accel.report.read import read_run
from ohl_accel.run_folder.files import (
    CHECKPOINTS,
    CONFIG_FILE,
    DIGESTS_FILE,
    HELDOUT_FILE,
    METRICS_FILE,
    POLICY_FILE,
    RECIPE_FILE,
    RESULT_FILE,
)
from ohl_accel.run_folder.metrics import lines_before

MAX_SECONDS, MAX_BYTES = 5.0, 500 * 2**20
"""Of one mutation: CPU time, and by how much the process may have grown at its peak."""
_SPACE = """name: mine
combine: distinct
elements:
  - {transform: Rotate, magnitudes: [10, 20, 30]}
  - {transform: Identity}
  - &flip {transform: Invert}
"""
_PIECES = (
    *(
        b"\x00",
        b"\x07",
        b"\xff",
        b"\n",
        b"[" * 300,
        b"{" * 20,
        b"*a",
        b"&a ",
        b"<<: ",
        b"? ",
        b"!!binary ",
        b"!!int ",
    ),
    *(
        b"2020-99-99",
        b"9" * 500,
        b"1e308",
        b".nan",
        b"-1",
        b'"\\ud800"',
        b'"\\0"',
        b"null",
        b"- ",
        b": ",
        b"'",
        b"|",
    ),
)


def mutated(content: bytes, random_: random.Random) -> bytes:
    """Content with one to three damages: a bit flipped, a part lost or doubled, or something strange put in."""
    for _ in range(random_.randint(1, 3)):
        place = random_.randrange(len(content) + 1)
        end = place + random_.randrange(1, 30)
        match random_.randrange(4):
            case 0 if place < len(content):
                flipped = content[place] ^ 1 << random_.randrange(8)
                content = content[:place] + bytes([flipped]) + content[place + 1 :]
            case 1:
                content = content[:place] + content[end:]
            case 2:
                content = content[:end] + content[place:]
            case _:
                content = content[:place] + random_.choice(_PIECES) + content[place:]
    return content


def mutate(
    content: bytes, file: Path, read: Callable[[], object], count: int, seed: int = 0, first: int = 0
) -> Counter[str]:
    """Read a file that is damaged in `count` ways; how many were `read`, how many `refused`, how many `the same`.

    Args:
        content: of the sound file.
        file: to write to; it is sound again in the end.
        read: reads it; it may raise a ValueError, and nothing else.
        count: of mutations.
        seed: of all of them.
        first: number of the first one.

    Raises:
        AssertionError: naming the mutation that took too long or too much memory.
        Exception: whatever is not a ValueError, with a note that names the mutation.
    """
    outcomes: Counter[str] = Counter()
    before = _peak()
    for number in range(first, first + count):
        damaged = mutated(content, random.Random(f"{seed} {number}"))
        if damaged == content:
            outcomes["the same"] += 1
            continue
        file.write_bytes(damaged)
        began = time.process_time()
        try:
            read()
            outcomes["read"] += 1
        except ValueError:  # UserError is one
            outcomes["refused"] += 1
        except Exception as error:
            error.add_note(f"mutation {number} of seed {seed} of {file.name}")
            raise
        seconds, grown = time.process_time() - began, _peak() - before
        assert seconds < MAX_SECONDS, f"mutation {number} of seed {seed} of {file.name} took {seconds:.1f} s"
        assert grown < MAX_BYTES, f"mutation {number} of seed {seed} of {file.name} took {grown} bytes"
    file.write_bytes(content)
    return outcomes


def _peak() -> int:
    """The most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


KINDS = (
    *("recipe", "policy", "policy of a run", "checkpoint state", "checkpoint tensors", "metrics", "heldout"),
    *("result", "config", "config without digests", "space", "index cache"),
)
"""Of files, as in `targets`."""
Target = tuple[Path, Callable[[], object]]
"""A sound file, and what reads it."""


def targets(sound: Path, work: Path) -> Mapping[str, Target]:
    """Every kind of file that a user or a stranger may hand over, by name.

    Args:
        sound: the folder of a finished run on scikit-learn's digits.
        work: an empty folder, for a copy of it and for further files.
    """
    folder = Path(shutil.copytree(sound, work / "run"))
    newest = max((folder / CHECKPOINTS).glob("step-*"))
    (work / "space.yaml").write_text(_SPACE)
    whole = Path(shutil.copy(folder / RECIPE_FILE, work / RECIPE_FILE))
    recipe = Recipe.load(str(whole))
    changed = recipe.model_dump(mode="json", exclude_defaults=True)
    (folder / RECIPE_FILE).write_text(
        yaml.safe_dump(changed)
    )  # to parse all of it would take most of the time
    data = open_data(recipe)
    alone = Path(shutil.copytree(folder, work / "without digests"))
    (alone / DIGESTS_FILE).unlink()
    return {
        "recipe": (whole, lambda: Recipe.load(str(whole)).to_yaml()),
        "policy": (folder / POLICY_FILE, lambda: Policy.load(folder / POLICY_FILE)),
        "policy of a run": (folder / POLICY_FILE, lambda: _must_refuse(lambda: Policy.load(folder))),
        "checkpoint state": (newest / "state.json", lambda: _must_fall_back(newest)),
        "checkpoint tensors": (newest / "state.safetensors", lambda: _must_fall_back(newest)),
        "metrics": (folder / METRICS_FILE, lambda: _read_metrics(folder)),
        "heldout": (folder / HELDOUT_FILE, lambda: check_images(folder / HELDOUT_FILE, data)),
        "result": (folder / RESULT_FILE, lambda: read_run(folder)),
        "config": (folder / CONFIG_FILE, lambda: _must_refuse(lambda: open_network(str(folder)))),
        "config without digests": (alone / CONFIG_FILE, lambda: open_network(str(alone))),
        "space": (work / "space.yaml", lambda: open_space(str(work / "space.yaml"))),
        "index cache": _index_cache(work, recipe),
    }


def _must_refuse(read: Callable[[], Any]) -> None:
    """Damage must be found."""
    read()
    raise AssertionError("a damaged file was read as if it were whole")


def _must_fall_back(newest: Path) -> None:
    """The checkpoint before must be taken, with a warning."""
    warnings: list[str] = []
    contents = checkpoint.newest_whole(newest.parent, warnings.append)
    assert contents is not None
    assert int(contents.document["outer_step"]) < int(newest.name.removeprefix("step-"))
    assert warnings


def _read_metrics(folder: Path) -> None:
    """For a resumed run, which may rewrite the file, and for a report."""
    lines_before(folder / METRICS_FILE, 4)
    read_run(folder)


def _index_cache(work: Path, recipe: Recipe) -> Target:
    """The index of a streamed split: made again if it is damaged."""
    levels = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    for number, image in enumerate(levels):
        file = work / "images" / "train" / str(number % 10) / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    section = recipe.data.model_copy(update={"path": str(work / "images")})
    files = files_of_split(section, section.train_split)
    sound = build_index(files, "image", "label", 0).fingerprint

    def read() -> None:
        assert build_index(files, "image", "label", 0).fingerprint == sound

    return cached(*files.urls, *files.stamps, "image", "label", ending="npz"), read
