"""What the three parts of the bench for outer loops have in common: contestants, known answers, trials, the page.

Shapes: A elements of an operation, E elements of the space, n seeds.
"""

import json
import os
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Self

import torch
import yaml
from torch import Tensor

from ohl_accel.comparison.statistics import paired_difference
from ohl_accel.comparison.summary import environment
from ohl_accel.errors import UserError
from ohl_accel.operations.space import PAPER, PAPER_IDENTITY, Space
from ohl_accel.policy import Policy
from ohl_accel.policy.structure import product_of_elements, theta_of
from ohl_accel.run_folder.atomic import write_text

BEST_OF_N = "uniform-best-of-n"
"""The frozen search: the compute and the selection of a search, nothing learned."""
UNIFORM = "uniform"
"""Plain training with the uniform policy."""

_FAMILY_OF = {
    element.transform.name: element.transform.family or element.transform.name.lower()
    for element in PAPER_IDENTITY.elements
}
FAMILIES: dict[str, frozenset[str]] = {
    family: frozenset(name for name, own in _FAMILY_OF.items() if own == family)
    for family in dict.fromkeys(_FAMILY_OF.values())
}
"""The transforms of Table 1 by family: geometry, enhance, tone; and identity, on its own."""
_COLOUR = "colour"
_REMOVED = -12.0
"""theta of an operation that a static policy never applies: probability 6e-6 of the others'."""
_SECTION_FIELDS = ("lr", "betas", "average")
"""Fields of the recipe's outer section that a contestant can set; its other settings go to the estimator."""


def transforms_of(families: str) -> frozenset[str]:
    """The transforms of families joined by `+`; `colour` is enhance+tone.

    Raises:
        UserError: for a name that is none.
    """
    names = [
        part for name in families.split("+") for part in (("enhance", "tone") if name == _COLOUR else (name,))
    ]
    unknown = [name for name in names if name not in FAMILIES]
    if unknown:
        raise UserError(
            f"{families}: no family {unknown[0]}; known: {', '.join(FAMILIES)}, {_COLOUR}; joined by +"
        )
    return frozenset().union(*(FAMILIES[name] for name in names))


def elements_of(transforms: frozenset[str] | set[str], space: Space = PAPER) -> list[int]:
    """Indices of the elements of a space whose transforms are among these, in order."""
    return [index for index, element in enumerate(space.elements) if element.transform.name in transforms]


def family_policy(families: str, space: Space = PAPER) -> Policy:
    """The policy that is uniform over the operations whose elements all belong to these families.

    Args:
        families: as for `transforms_of`.
        space: must have an element of them.

    Raises:
        UserError: for an unknown family, or if the space has no operation of these alone.
    """
    kept_E = torch.zeros(space.num_elements, dtype=torch.bool)
    kept_E[elements_of(transforms_of(families), space)] = True
    kept_K = kept_E[space.elements_of(torch.arange(space.num_operations))].all(1)
    if not bool(kept_K.any()):
        raise UserError(f"{families}: space {space.name} has no operation of these families alone")
    theta_K = torch.where(kept_K, 0.0, _REMOVED).double()
    return Policy(theta_K, {"made_by": "benchmarks/outer_loop.py", "families": families}, space=space)


def independent_policy(share_E: Tensor, space: Space = PAPER) -> Policy:
    """The policy whose elements are independent, each position with these probabilities.

    Exact in `ordered` spaces.

    Args:
        share_E: float64, all positive, sum 1.
        space: of the policy.
    """
    return Policy(theta_of(product_of_elements(share_E.log(), space)), space=space)


@dataclass(frozen=True)
class Known:
    """A known answer: which elements a policy must come to apply more often, or less often."""

    name: str
    elements: tuple[int, ...]
    more: bool
    threshold: float
    """The factor that counts as found: at least this (more), or at most 1 / this (less)."""

    @classmethod
    def family(cls, families: str, more: bool, threshold: float, space: Space = PAPER) -> Self:
        """Families, as for `transforms_of`, that are to become more, or less, probable."""
        return cls(families, tuple(elements_of(transforms_of(families), space)), more, threshold)

    def factor(self, marginals_AE: Tensor) -> float:
        """Probability of these elements, averaged over the positions of an operation, relative to the uniform policy.

        Args:
            marginals_AE: float, as `Policy.element_probabilities`.
        """
        mass_A = marginals_AE[:, list(self.elements)].sum(1)
        return float(mass_A.mean()) * marginals_AE.shape[1] / len(self.elements)

    def is_found(self, factor: float) -> bool:
        """Whether a factor reaches the threshold in the known direction."""
        return factor >= self.threshold if self.more else factor <= 1 / self.threshold

    def first_found(self, factors: Sequence[float]) -> int | None:
        """Outer steps until the threshold was first reached, from 1; None if it never was."""
        return next((step for step, factor in enumerate(factors, 1) if self.is_found(factor)), None)

    def __str__(self) -> str:
        bound = f">= {self.threshold:g}" if self.more else f"<= {1 / self.threshold:g}"
        return f"{'more' if self.more else 'less'} {self.name}: factor {bound}"


@dataclass(frozen=True)
class Contestant:
    """An estimator with its settings, as given on the command line: `NAME,key=value,...`.

    `lr`, `betas` and `average` are fields of the recipe's outer section; all other keys are `outer.estimator_args`.
    """

    label: str
    estimator: str
    outer: Mapping[str, Any] = field(default_factory=dict)
    args: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Such as `reinforce,lr=0.1` or `path/to/file.py:Mine,average=0.95,width=2`; values are YAML.

        Raises:
            UserError: for what is not of this form.
        """
        name, *pairs = re.split(r",(?=[A-Za-z_]\w*=)", text)
        settings: dict[str, Any] = {}
        for pair in pairs:
            key, _, value = pair.partition("=")
            try:
                settings[key] = yaml.safe_load(value)
            except yaml.YAMLError:
                raise UserError(f"--estimator {text}: the value of {key} is not YAML: {value}") from None
        if not name or "=" in name:
            raise UserError(
                f"--estimator {text}: must be NAME or NAME,key=value,..., such as reinforce,lr=0.1"
            )
        outer = {key: settings.pop(key) for key in _SECTION_FIELDS if key in settings}
        return cls(text, name, outer, settings)

    def overrides(self) -> list[str]:
        """The overrides of a recipe that make its search this contestant's."""
        fields = {"estimator": self.estimator, "estimator_args": dict(self.args), **self.outer}
        return [f"outer.{key}={json.dumps(value)}" for key, value in fields.items()]


@dataclass(frozen=True)
class Trial:
    """One contestant with one seed."""

    seed: int
    factor: float | None = None
    """`Known.factor` of the policy in the end; None if there is no policy or no known answer."""
    steps: int | None = None
    """Outer steps until the known answer was first found; None if never."""
    images: int | None = None
    """Training images of all trajectories until then."""
    network: float | None = None
    """Test accuracy, in 0..1, of the search's network; None if there is no search."""
    fresh: float | None = None
    """Test accuracy, in 0..1, of training with the policy from the beginning; None if that was not run."""


Trials = Mapping[str, Sequence[Trial]]
"""By contestant. `uniform-best-of-n` (its network) and `uniform` (its training) are the references."""


def interval_of(values_n: Sequence[float], scale: float = 1.0, sign: str = "") -> str:
    """Mean and 95 % t interval, such as `0.52 (0.31 to 0.73)`; only the mean if n = 1."""
    found = paired_difference(values_n, [0.0] * len(values_n))
    text = f"{scale * found.mean:{sign}.2f}"
    if found.t_interval is None:
        return text
    low, high = found.t_interval
    return f"{text} ({scale * low:{sign}.2f} to {scale * high:{sign}.2f})"


def differences(trials: Trials, label: str, reference: str, what: str) -> list[float]:
    """Paired differences of `network` or `fresh` from a reference at the seeds in common, in order of seeds."""
    if label == reference:
        return []
    own, other = (
        {trial.seed: value for trial in trials.get(name, ()) if (value := getattr(trial, what)) is not None}
        for name in (label, reference)
    )
    return [own[seed] - other[seed] for seed in sorted(own.keys() & other.keys())]


def table(trials: Trials, known: Known | None) -> list[str]:
    """The Markdown table: a row for each contestant, in order."""
    lines = [
        "| contestant | n | factor on the known elements | found | outer steps | images | network, % "
        f"| minus {BEST_OF_N} | fresh training, % | minus {UNIFORM} |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for label, own in trials.items():
        factors = [trial.factor for trial in own if trial.factor is not None]
        steps = [trial.steps for trial in own if trial.steps is not None]
        images = [trial.images for trial in own if trial.images is not None]
        cells = [label, str(len(own)), interval_of(factors) if factors else ""]
        if known is not None and any(trial.network is not None for trial in own):
            found = sum(known.is_found(factor) for factor in factors)
            cells += [f"{found} of {len(factors)}"]
            cells += [
                f"{statistics.median(values):,.0f} ({len(values)})" if values else "never"
                for values in (steps, images)
            ]
        else:
            cells += ["", "", ""]
        for what, reference in (("network", BEST_OF_N), ("fresh", UNIFORM)):
            values = [value for trial in own if (value := getattr(trial, what)) is not None]
            minus = differences(trials, label, reference, what)
            cells += [f"{100 * statistics.fmean(values):.2f}" if values else ""]
            cells += [interval_of(minus, 100, "+") if minus else ""]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


NOTES = (
    "Intervals are Student's, 95 %, over paired seeds. `found`: seeds whose policy reaches the factor in the end; "
    "outer steps and images (of all trajectories): median until it was first reached, and in how many seeds it was. "
    f"`network`: the one that the search trained; it and {BEST_OF_N} have the same compute. `fresh training`: a new "
    "network with the policy as it was in the end."
)


@dataclass(frozen=True)
class Page:
    """A part's results, as Markdown and as JSON beside it."""

    title: str
    about: Sequence[str]
    """Paragraphs before the tables: what was run, and how it was set."""
    sections: Mapping[str, tuple[Known | None, Trials]]
    """Tables by their headings."""
    settings: Mapping[str, Any]
    command: str
    after: Sequence[str] = ()
    """Paragraphs, or lines of a table, after the tables."""

    def markdown(self) -> str:
        """The whole page."""
        lines = [f"# {self.title}", ""]
        for paragraph in (*self.about, NOTES):
            lines += [paragraph, ""]
        for heading, (known, trials) in self.sections.items():
            lines += [f"## {heading}", ""]
            if known is not None:
                lines += [f"Known answer: {known}.", ""]
            lines += [*table(trials, known), ""]
        made = environment()
        versions = ", ".join(f"{name} {number}" for name, number in made["versions"].items())
        lines += [*self.after, *([""] if self.after else [])]
        seeds = sorted(
            {one.seed for _, trials in self.sections.values() for own in trials.values() for one in own}
        )
        return "\n".join(
            [
                *lines,
                f"- command: `{self.command}`",
                f"- seeds {', '.join(map(str, seeds))}; single values in the JSON file of the same name",
                f"- {made['device']}; load average at the end {os.getloadavg()[0]:.1f}",
                f"- Python {made['python']}, {versions}",
                f"- {date.today()}",
                "",
            ]
        )

    def write(self, path: Path) -> None:
        """Write `path` (Markdown) and, with the suffix .json, every single trial; folders are created."""
        path.parent.mkdir(parents=True, exist_ok=True)
        document = {
            "format": "ohl_accel.outer_loop",
            "schema_version": 1,
            "title": self.title,
            "command": self.command,
            "settings": dict(self.settings),
            **environment(),
            "sections": {
                heading: {
                    "known": known and asdict(known),
                    "trials": {label: [asdict(trial) for trial in own] for label, own in trials.items()},
                }
                for heading, (known, trials) in self.sections.items()
            },
        }
        write_text(path, self.markdown())
        write_text(path.with_suffix(".json"), json.dumps(document, indent=1, allow_nan=False) + "\n")
