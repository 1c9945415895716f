"""Real images: the oracle by hand (static policies by family), then what estimators find, through `ohl_accel.compare`.

Every run is a separate process in the folder of the comparison; the same call continues an interrupted one. Each
estimator has a comparison of its own, because its settings are the recipe's; seeds pair them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.outer_loop_shared import (
    BEST_OF_N,
    FAMILIES,
    UNIFORM,
    Contestant,
    Known,
    Trial,
    elements_of,
    family_policy,
    interval_of,
)
from ohl_accel.comparison.compare import compare
from ohl_accel.comparison.contenders import FRESH, OHL, contender
from ohl_accel.comparison.summary import Row
from ohl_accel.policy import Policy
from ohl_accel.run_folder.files import METRICS_FILE, RESULT_FILE
from ohl_accel.run_folder.metrics import read_metrics


@dataclass(frozen=True)
class Real:
    """What is compared, and where."""

    recipe: str
    overrides: tuple[str, ...]
    seeds: tuple[int, ...]
    """In a row."""
    out: Path
    static: tuple[str, ...] = ()
    """Families (`outer_loop_shared.transforms_of`) whose uniform policy is trained with."""
    fixed: tuple[str, ...] = ()
    """Further policies of `compare`, such as trivialaugment."""
    contestants: tuple[Contestant, ...] = ()
    known: Known | None = None
    jobs: int = 1

    def run(self) -> dict[str, list[Trial]]:
        """All comparisons, one after the other; the trials of each contender by its name.

        Raises:
            UserError: if something cannot work.
            RunFailedError: if runs failed; the same call runs them again.
        """
        policies = self._write_policies()
        trained = [UNIFORM, *policies.values(), *self.fixed]
        trials = {
            name: [Trial(seed, fresh=score) for seed, score in row.accuracy.items()]
            for name, row in zip(
                [UNIFORM, *policies, *self.fixed], self._compare("static", trained, ()), strict=True
            )
        }
        if self.contestants:
            (row,) = self._compare(BEST_OF_N, [BEST_OF_N], ())
            trials[BEST_OF_N] = [Trial(seed, network=score) for seed, score in row.accuracy.items()]
        for one in self.contestants:
            trials[one.label] = self._searched(one)
        return trials

    def policies(self, label: str) -> dict[int, Policy]:
        """The policies that a contestant learned, by seed; those of finished runs."""
        folders = {seed: self._search_folder(label, seed) for seed in self.seeds}
        return {seed: Policy.load(folder) for seed, folder in folders.items() if folder.is_dir()}

    def _write_policies(self) -> dict[str, str]:
        folder = self.out / "policies"
        folder.mkdir(parents=True, exist_ok=True)
        paths = {name: str(folder / f"{name}.json") for name in self.static}
        for name, path in paths.items():
            family_policy(name).save(path)
        return paths

    def _compare(self, folder: str, policies: Sequence[str], overrides: Sequence[str]) -> list[Row]:
        return compare(
            self.recipe,
            policies,
            len(self.seeds),
            first_seed=self.seeds[0],
            overrides=[*self.overrides, *overrides],
            out=self.out / folder,
            jobs=self.jobs,
        )

    def _search_folder(self, label: str, seed: int) -> Path:
        return self.out / contender(label).folder / "runs" / OHL / f"seed-{seed}"

    def _searched(self, one: Contestant) -> list[Trial]:
        searched, fresh = self._compare(contender(one.label).folder, [OHL, f"{OHL}{FRESH}"], one.overrides())
        found = []
        for seed, score in searched.accuracy.items():
            folder = self._search_folder(one.label, seed)
            lines = read_metrics(folder / METRICS_FILE)
            factors, steps, images = [], None, None
            if self.known is not None:
                factors = [self.known.factor(torch.tensor(line["element_probabilities"])) for line in lines]
                steps = self.known.first_found(factors)
            if steps is not None:
                result = json.loads((folder / RESULT_FILE).read_text())
                images = steps * result["images_trained_on"] // result["outer_steps"]
            found.append(
                Trial(seed, factors[-1] if factors else None, steps, images, score, fresh.accuracy.get(seed))
            )
        return found


def family_masses(policies: Mapping[str, Mapping[int, Policy]]) -> list[str]:
    """A Markdown table: probability of each family in learned policies, times uniform.

    Args:
        policies: by contestant and seed.
    """
    names = [name for name in FAMILIES if name != "identity"]
    lines = ["| contestant | " + " | ".join(f"{name}, times uniform" for name in names) + " |"]
    lines += ["|---" * (len(names) + 1) + "|"]
    for label, by_seed in policies.items():
        cells = []
        for name in names:
            factors = []
            for policy in by_seed.values():
                elements = tuple(elements_of(FAMILIES[name], policy.space))
                factors.append(Known(name, elements, True, 1.0).factor(policy.element_probabilities))
            cells.append(interval_of(factors) if factors else "")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return lines
