"""What a run knows about what it learned: whether it can be told from noise, and why not.

A policy moves away from its start whatever the rewards are. `Evidence` holds what the rewards must beat: the range in
which each probability would lie if rewards taught nothing. An estimator measures it (`Estimator.evidence`), and it is
kept in the provenance of `policy.json` under `evidence`. Everything that shows a policy asks here before it calls
anything gained or lost.

Shapes: K operations, A positions in an operation, E elements.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

LEVEL = 0.05
"""What is learned is called distinguishable from noise if noise alone gets as far with at most this probability."""
MANY_TIES = 0.5
"""Share of tied rewards above which they hardly teach."""
UNIFORM, START = "uniform", "the policy it started from"
"""What the learned policy is compared with, in words."""
ORDINALS = ("first", "second", "third")
"""Positions of an operation's elements."""

_LEAST_P = 1e-4
"""Smaller p-values are called so: what noise is like is not known so well."""
_LISTED = 8
"""Elements that are named one by one; more are counted by transform."""

_MORE_IMAGES = (
    "more held-out images (data.heldout): scores on n images move in steps of 1/n, so fewer of them tie"
)
_LONGER = (
    "longer outer steps (outer.inner_steps), in which trajectories come to differ by more than noise",
    "less noise in the scores (outer.average)",
    "more trajectories (outer.trajectories) or more outer steps (outer.steps)",
)

Rows = tuple[tuple[float, ...], ...]


class Moved(NamedTuple):
    """An element whose probability noise does not explain."""

    name: str
    """Such as `Rotate 20 first`: the element and its position; without a position in spaces of arity 1."""
    ratio: float
    """Its probability as a multiple of the uniform policy's."""
    low: float
    """Lower end of the noise band, likewise as a multiple."""
    high: float
    """Upper end of the noise band."""

    @property
    def gained(self) -> bool:
        """Whether it lies above the band; otherwise below."""
        return self.ratio > self.high

    def __str__(self) -> str:
        """Such as `Rotate 20 first: 1.80 x uniform (noise: 0.71 to 1.41)`."""
        noise = f"noise: {multiple(self.low)} to {multiple(self.high)}"
        return f"{self.name}: {multiple(self.ratio)} x uniform ({noise})"


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What is known about a policy after some outer steps; None for what an estimator does not measure."""

    p_value: float
    """Probability, in 0..1, that a policy gets at least this far from its start if rewards teach nothing."""
    outer_steps: int
    """Outer steps that it is based on, those whose trajectories were scored."""
    reference: str = UNIFORM
    """The start, in words: `UNIFORM` or `START`."""
    tied_share: float | None = None
    """Share of the pairs of trajectories whose rewards are equal, in 0..1, mean over the outer steps."""
    signal_to_noise: float | None = None
    """Signal to noise of an outer step, mean over the run: about 0 if rewards teach nothing; at a mean of s, about
    `(2 / s)^2` outer steps tell it from 0."""
    step_tied_share: float | None = None
    """`tied_share` of the last outer step alone."""
    step_signal_to_noise: float | None = None
    """`signal_to_noise` of the last outer step alone."""
    low_AE: Rows | None = None
    """Lower ends of the noise band: what each element's probability would fall to at most. All elements together stay
    inside the band with probability 1 - `LEVEL` if rewards teach nothing."""
    high_AE: Rows | None = None
    """Upper ends of the noise band."""
    operation_band: tuple[float, float] | None = None
    """The band for single operations, the same for all of them, in multiples of the uniform probability."""
    advice: tuple[str, ...] = ()
    """What would help the rewards to teach more; empty if nothing is amiss."""

    @property
    def distinguishable(self) -> bool:
        """Whether what was learned can be told from noise."""
        return self.p_value <= LEVEL

    @property
    def verdict(self) -> str:
        """Such as `indistinguishable from uniform (p = 0.35)`."""
        what = "distinguishable" if self.distinguishable else "indistinguishable"
        return f"{what} from {self.reference} ({self.p_in_words})"

    @property
    def p_in_words(self) -> str:
        """Such as `p = 0.35`, or `p < 0.0001`."""
        return f"p < {_LEAST_P:.4f}" if self.p_value < _LEAST_P else f"p = {self.p_value:.3g}"

    @property
    def measurements(self) -> str:
        """The measured shares in words, such as `12 % of rewards tied, signal to noise 0.10 per outer step`; or ""."""
        parts = []
        if self.tied_share is not None:
            parts.append(f"{100 * self.tied_share:.0f} % of rewards tied")
        if self.signal_to_noise is not None:
            parts.append(f"signal to noise {self.signal_to_noise:.2f} per outer step")
        return ", ".join(parts)

    @property
    def short(self) -> str:
        """For a line of progress: such as `p 0.35, 12 % tied`, of the run up to here."""
        tied = "" if self.tied_share is None else f", {100 * self.tied_share:.0f} % tied"
        return f"{self.p_in_words.replace('= ', '')}{tied}"

    @property
    def many_ties(self) -> bool:
        """Whether more than half of the rewards are tied."""
        return self.tied_share is not None and self.tied_share > MANY_TIES

    @property
    def teaches(self) -> bool:
        """Whether rewards taught something that shows, and are not mostly tied."""
        return self.distinguishable and not self.many_ties

    def sides(self, probability_AE: Tensor) -> Tensor:
        """Where the probabilities of elements lie: 1 above the noise band, -1 below, 0 inside. int64 [A, E].

        All are inside if the policy as a whole is indistinguishable from its start, or there is no band.
        """
        if self.low_AE is None or self.high_AE is None or not self.distinguishable:
            return torch.zeros(probability_AE.shape, dtype=torch.int64)
        low_AE, high_AE = (torch.tensor(rows, dtype=torch.float64) for rows in (self.low_AE, self.high_AE))
        return (probability_AE > high_AE).long() - (probability_AE < low_AE).long()

    def side_of_operation(self, ratio: float) -> int:
        """Where an operation's probability, as a multiple of the uniform one, lies: 1, -1 or 0, as in `sides`."""
        if self.operation_band is None or not self.distinguishable:
            return 0
        low, high = self.operation_band
        return int(ratio > high) - int(ratio < low)

    def line(self) -> dict[str, float]:
        """The short form for a line of `metrics.jsonl`: the numbers that were measured."""
        names = (
            "p_value",
            "tied_share",
            "signal_to_noise",
            "step_tied_share",
            "step_signal_to_noise",
        )
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}

    def document(self) -> dict[str, Any]:
        """Everything as plain data for `policy.json`; `read_evidence` reads it."""
        values = asdict(self)
        values = {name: value for name, value in values.items() if value is not None}
        for name in ("low_AE", "high_AE"):
            if name in values:
                values[name] = [list(row) for row in values[name]]
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def advice_for(p_value: float, tied_share: float | None) -> tuple[str, ...]:
    """What would help rewards to teach more: each entry names fields of the recipe.

    Args:
        p_value: as in `Evidence`.
        tied_share: as in `Evidence`.
    """
    ties = (_MORE_IMAGES,) if tied_share is not None and tied_share > MANY_TIES / 2 else ()
    return (*ties, *_LONGER) if p_value > LEVEL else ties if tied_share and tied_share > MANY_TIES else ()


def moved_elements(
    evidence: Evidence, names: Sequence[str], probability_AE: Tensor, uniform_AE: Tensor
) -> list[Moved]:
    """The elements outside the noise band, those moved furthest first.

    Args:
        evidence: of the policy.
        names: of the E elements.
        probability_AE: the policy's, float64.
        uniform_AE: the uniform policy's, float64.
    """
    found = []
    for position, element in evidence.sides(probability_AE).nonzero().tolist():
        assert evidence.low_AE is not None
        assert evidence.high_AE is not None
        uniform = float(uniform_AE[position, element])
        ratio, low, high = (
            float(rows[position][element]) / uniform
            for rows in (probability_AE, evidence.low_AE, evidence.high_AE)
        )
        where = f" {ORDINALS[position]}" if len(probability_AE) > 1 else ""
        found.append(Moved(names[element] + where, ratio, low, high))
    return sorted(found, key=lambda each: -abs(math.log(max(each.ratio, 1e-300))))


def moved_in_words(moved: Sequence[Moved]) -> list[str]:
    """The elements outside the noise band as text, those of a transform together if there are many.

    Such as `Rotate 20 first: 1.80 x uniform (noise: 0.71 to 1.41)`, or `Rotate: 6 elements below the noise band,
    0.027 to 0.031 x uniform`; an element counts at each position of an operation.
    """
    if len(moved) <= _LISTED:
        return [str(each) for each in moved]
    groups: dict[tuple[str, bool], list[Moved]] = {}
    for each in moved:
        groups.setdefault((each.name.split()[0], each.gained), []).append(each)
    lines = []
    for (transform, gained), members in groups.items():
        ends = [multiple(end([each.ratio for each in members])) for end in (min, max)]
        where = "above" if gained else "below"
        among = " to ".join(dict.fromkeys(ends))
        many = f"{transform}: {len(members)} elements {where} the noise band, {among} x uniform"
        lines.append(many if len(members) > 1 else str(members[0]))
    return lines


def multiple(ratio: float) -> str:
    """A multiple of the uniform probability: `1.25`, `0.027`, `36`, `1,303`; never 0.00 for what is more than 0."""
    return f"{ratio:.2f}" if 0.1 <= ratio < 10 else f"{ratio:.2g}" if ratio < 99.5 else f"{ratio:,.0f}"


def read_evidence(document: object, positions: int, elements: int) -> Evidence | None:
    """The evidence in a policy's provenance, which may come from an untrusted source or from another version.

    Args:
        document: from `Evidence.document`.
        positions: A of the policy's space.
        elements: E of the policy's space.

    Returns:
        None if there is none, or it is not what `Evidence.document` writes: then nothing is known about the policy.
    """
    if not isinstance(document, Mapping):
        return None
    p_value, steps = _number(document.get("p_value")), document.get("outer_steps")
    if p_value is None or not 0 <= p_value <= 1 or type(steps) is not int or steps < 0:
        return None
    shares = {
        name: _number(document.get(name))
        for name in ("tied_share", "signal_to_noise", "step_tied_share", "step_signal_to_noise")
    }
    low, high = (_rows(document.get(name), positions, elements) for name in ("low_AE", "high_AE"))
    band, advice = _rows([document.get("operation_band")], 1, 2), document.get("advice")
    return Evidence(
        p_value=p_value,
        outer_steps=steps,
        reference=UNIFORM if document.get("reference") == UNIFORM else START,
        **shares,
        low_AE=low if high is not None else None,
        high_AE=high if low is not None else None,
        operation_band=(band[0][0], band[0][1]) if band is not None else None,
        advice=tuple(map(str, advice)) if isinstance(advice, list) else (),
    )


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer beyond float64
        return None


def _rows(value: object, count: int, length: int) -> Rows | None:
    """Numbers in `count` lists of `length`; None if it is anything else."""
    if not isinstance(value, list) or len(value) != count:
        return None
    rows = []
    for row in value:
        if not isinstance(row, list) or len(row) != length:
            return None
        numbers = [number for number in map(_number, row) if number is not None]
        if len(numbers) != length:
            return None
        rows.append(tuple(numbers))
    return tuple(rows)
