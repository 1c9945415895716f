"""Make a file of the zoo: a learned policy with the evidence that training with it beats the uniform policy.

First measure it, with seeds that were not used to choose it, then

    python -m benchmarks.zoo_entry cifar10-reduced runs/search/policy.json runs/compare-theirs/comparison.json \\
        --data "reduced CIFAR-10: 1,000 images, 240 epochs, resnet8_cifar"

where the comparison is that of `ohl-accel compare RECIPE --policies uniform,runs/search/policy.json --first-seed 100
--seeds 10`. It writes `ohl_accel/policy/zoo/NAME.json`, or nothing if the 95 % interval is not above 0.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ohl_accel.comparison.statistics import paired_difference
from ohl_accel.errors import UserError
from ohl_accel.policy import Policy, zoo


def gain(comparison: dict[str, Any], contender: str, data: str) -> dict[str, Any]:
    """What a policy gained, as the zoo wants it.

    Args:
        comparison: `comparison.json`.
        contender: the policy's name in it.
        data: what was trained on, in words.

    Raises:
        UserError: if the comparison lacks the policy, the uniform one, or two seeds of both.
    """
    accuracy = {row["policy"]: row["accuracy"] for row in comparison["rows"]}
    missing = [name for name in (contender, "uniform") if name not in accuracy]
    if missing:
        raise UserError(f"the comparison has no {' and no '.join(missing)}, only {', '.join(accuracy)}")
    learned, uniform = accuracy[contender], accuracy["uniform"]
    seeds = sorted(learned.keys() & uniform.keys(), key=int)
    if len(seeds) < 2:
        raise UserError(f"the comparison has {len(seeds)} seeds of both, at least 2 are needed")
    found = paired_difference([learned[seed] for seed in seeds], [uniform[seed] for seed in seeds])
    assert found.t_interval is not None
    return {
        "command": comparison["command"],
        "data": data,
        "seeds": [int(seed) for seed in seeds],
        "learned": [learned[seed] for seed in seeds],
        "uniform": [uniform[seed] for seed in seeds],
        "difference": found.mean,
        "interval": list(found.t_interval),
    }


def main(argv: Sequence[str] | None = None) -> Path:
    """Write the file; returns it.

    Raises:
        ValueError: if the evidence is not enough.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="as in zoo:NAME")
    parser.add_argument("policy", help="the policy.json, as named in the comparison")
    parser.add_argument("comparison", type=Path, help="comparison.json")
    parser.add_argument("--data", required=True, help="what was trained on, in words")
    given = parser.parse_args(argv)
    policy = Policy.load(given.policy)
    comparison = json.loads(given.comparison.read_text(encoding="utf-8"))
    policy.provenance["gain"] = gain(comparison, given.policy, given.data)
    print(zoo.gain_of(policy.provenance))
    file = zoo.FOLDER / f"{given.name}.json"
    policy.save(file)
    return file


if __name__ == "__main__":
    print(main())
