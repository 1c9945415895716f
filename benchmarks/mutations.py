"""Files damaged at random: whatever reads them must succeed or raise a UserError, in bounded time.

python -m benchmarks.mutations RECIPE [COUNT]
"""

import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from ohl_accel.errors import UserError
from ohl_accel.recipe import Recipe

_MAX_SECONDS = 5.0
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


def mutate_recipe(content: bytes, file: Path, count: int, seed: int) -> Counter[str]:
    """Read a recipe that is damaged in `count` ways; how many were `read` and how many `refused`.

    Args:
        content: of a sound recipe.
        file: to write to.
        count: of mutations.
        seed: of all of them.

    Raises:
        AssertionError: naming the mutation that took too long.
        Exception: whatever is not a UserError.
    """
    outcomes: Counter[str] = Counter()
    for number in range(count):
        file.write_bytes(mutated(content, random.Random(f"{seed} {number}")))
        began = time.process_time()
        try:
            Recipe.load(str(file)).to_yaml()
            outcomes["read"] += 1
        except UserError:
            outcomes["refused"] += 1
        seconds = time.process_time() - began
        assert seconds < _MAX_SECONDS, f"mutation {number} of seed {seed} took {seconds:.1f} s"
    return outcomes


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        source = Path(sys.argv[1]).read_bytes()
        print(
            dict(mutate_recipe(source, Path(folder) / "recipe.yaml", int((sys.argv[2:] or ["5000"])[0]), 0))
        )
