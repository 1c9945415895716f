"""What a dashboard plots: few numbers of each outer step, under names that a person reads, and their layout."""

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ohl_accel.policy import Policy
from ohl_accel.policy.evidence import ORDINALS

LEARNED = 6
"""Elements, and operations, that noise does not explain: logged at most in an outer step."""


def scalars_of(line: Mapping[str, Any], policy: Policy | None) -> dict[str, float]:
    """The numbers of an outer step that a person reads, by the names of their series; those not measured are omitted.

    | series | what |
    |---|---|
    | score/best, score/mean, score/spread | of the trajectories on the held-out images; spread: best minus worst |
    | loss/train, loss/heldout | means over the trajectories, in nats |
    | learning_rate | at the end of the outer step |
    | policy/entropy | in nats |
    | policy/first/Rotate 20, ... | an element's probability over uniform, if noise does not explain it |
    | policy/operation/Rotate 20 > Invert, ... | likewise of an operation |
    | evidence/p_value, evidence/tied_share, evidence/signal_to_noise | what `Evidence` measures |
    | speed/images_per_second, speed/seconds, memory/... | of the whole outer step, and the peaks so far |
    | trouble/diverged, trouble/lost_trajectories, trouble/replaced_images | trajectories and images |

    Everything else is in `metrics.jsonl`, and all probabilities in the images and in the tables at the end.

    Args:
        line: of `metrics.jsonl`.
        policy: in its state after the outer step; None if nothing is learned.
    """
    rewards = [reward for reward in line.get("reward") or () if reward is not None]
    known = [reward for reward in rewards if math.isfinite(reward)]
    values: dict[str, Any] = {"outer_step": line["outer_step"], "learning_rate": line.get("learning_rate")}
    if known:
        values |= {"score/best": max(known), "score/mean": _mean(known)}
        if len(rewards) > 1:
            values["score/spread"] = max(known) - min(known)
    values |= {"loss/train": _mean(line.get("train_loss")), "loss/heldout": _mean(line.get("heldout_loss"))}
    values["policy/entropy"] = line.get("entropy")
    for name in ("p_value", "tied_share", "signal_to_noise"):
        values[f"evidence/{name}"] = line.get("evidence", {}).get(name)
    values["speed/images_per_second"] = line.get("images_per_second")
    if "seconds" in line:
        values["speed/seconds"] = sum(line["seconds"].values())
    if "diverged" in line:
        values["trouble/diverged"] = len(line["diverged"])
    values["trouble/lost_trajectories"] = line.get("lost_trajectories")
    values["trouble/replaced_images"] = line.get("replaced_images")
    if policy is not None:
        values |= _learned(policy)
    return {key: float(value) for key, value in values.items() if value is not None and math.isfinite(value)}


def _learned(policy: Policy) -> dict[str, float]:
    """The elements and operations that noise does not explain, in multiples of uniform, those moved furthest."""
    evidence, number = policy.evidence, policy.space.num_operations
    found = {f"policy/{_series(each.name)}": each.ratio for each in policy.moved_elements[:LEARNED]}
    for name, probability in [*policy.top(LEARNED // 2), *policy.bottom(LEARNED // 2)]:
        if evidence is not None and evidence.side_of_operation(probability * number):
            found[f"policy/operation/{name}"] = probability * number
    return found


def _series(moved: str) -> str:
    """`Rotate 20 first` as `first/Rotate 20`; without a position, in spaces of arity 1, as `element/Rotate 20`."""
    name, _, position = moved.rpartition(" ")
    return f"{position}/{name}" if position in ORDINALS else f"element/{moved}"


def _mean(values: Sequence[float | None] | None) -> float | None:
    known = [value for value in values or () if value is not None and math.isfinite(value)]
    return sum(known) / len(known) if known else None


def memory() -> dict[str, float]:
    """Peak memory of this process so far, in GiB: on the host, and on its GPU if there is one."""
    if sys.platform == "win32":
        return {}
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB; bytes on macOS
    found = {"memory/host_peak_gib": peak / 2 ** (30 if sys.platform == "darwin" else 20)}
    if torch.cuda.is_available():
        found["memory/gpu_peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return found


def results_of(result: Mapping[str, Any]) -> dict[str, float | str]:
    """The result of the run as `result/NAME`."""
    known = {name: value for name, value in result.items() if isinstance(value, int | float | str)}
    return {
        f"result/{name}": value
        for name, value in known.items()
        if isinstance(value, str) or math.isfinite(value)
    }


LAYOUT = {
    "Learning": {
        "Held-out score": ["Multiline", ["score/best", "score/mean"]],
        "Loss": ["Multiline", ["loss/train", "loss/heldout"]],
        "Learning rate": ["Multiline", ["learning_rate"]],
    },
    "Policy": {
        "p-value: 1 is noise, 0.05 is not": ["Multiline", ["evidence/p_value"]],
        "Tied rewards": ["Multiline", ["evidence/tied_share"]],
        "Entropy, nats": ["Multiline", ["policy/entropy"]],
        "Elements that noise does not explain, x uniform": [
            "Multiline",
            ["policy/(first|second|third|element)/.*"],
        ],
        "Operations that noise does not explain, x uniform": ["Multiline", ["policy/operation/.*"]],
    },
    "Speed": {
        "Training images/s": ["Multiline", ["speed/images_per_second"]],
        "Seconds of an outer step": ["Multiline", ["speed/seconds"]],
        "Peak memory, GiB": ["Multiline", ["memory/.*"]],
    },
}
"""TensorBoard's custom scalars: section -> chart -> its series, as regular expressions."""
