"""How early do held-out scores tell which policy will be best, and which score tells it? Writes a Markdown table.

    python -m benchmarks.horizon recipes/cifar10_reduced.yaml data.path=PATH --seed 30 --out runs/horizon-30
    python -m benchmarks.horizon --table runs/horizon-30 runs/horizon-31

N trajectories each keep a policy of their own to the end: each of a space's transforms has its weight raised or lowered
by a factor e, in a two-level design (a Hadamard matrix), so that no two are alike. During the run every trajectory is
scored on 1,000 held-out images; at its end on all others. The table has, for each time, the correlation over the
trajectories of three scores with that final accuracy: accuracy, minus the loss, and minus the loss extrapolated along
the learning curve as in `ohl_accel.policy.estimators.screening`. Scores are of averaged weights (`outer.average`).
"""

import argparse
import json
import platform
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any, ClassVar

import torch
from scipy.linalg import hadamard
from torch import Tensor

from ohl_accel import search
from ohl_accel.comparison.summary import processor
from ohl_accel.policy import Policy
from ohl_accel.policy.estimators import Estimator, FinishedStep
from ohl_accel.policy.estimators.screening import learning_curve_slope
from ohl_accel.policy.structure import product_of_elements, theta_of
from ohl_accel.run_folder.files import METRICS_FILE
from ohl_accel.run_folder.metrics import read_metrics

RESULT = Path(__file__).parent / "results" / "horizon.md"
SCORED_IMAGES = 1000
"""Held-out images that score; the others tell the final accuracy."""
CORRECT, LOSS = 0, 2
"""Columns of `Classification.outcomes`."""


class KeptToTheEnd(Estimator):
    """A policy of its own for each trajectory, from the first outer step to the last; nothing is learned or copied.

    Args:
        policy: of the space; not used otherwise.
        every: outer steps between two scores.
        settings: common to all estimators.
    """

    records: ClassVar[frozenset[str]] = frozenset({"heldout_outcomes", "training_loss"})

    def __init__(self, policy: Policy, *, every: int = 10, **settings: Any) -> None:
        super().__init__(policy, **settings)
        self._every = every
        names = [element.transform.name for element in policy.space.elements]
        transforms = list(dict.fromkeys(names))
        size = 1 << max(len(transforms), self.trajectories - 1).bit_length()
        signs = torch.tensor(
            hadamard(size)[: self.trajectories, 1 : len(transforms) + 1], dtype=torch.float64
        )
        number_E = torch.tensor([transforms.index(name) for name in names])
        self._policies = [
            Policy(theta_of(product_of_elements(row_E, policy.space)), space=policy.space)
            for row_E in signs[:, number_E]
        ]

    def is_scored(self, outer_step: int) -> bool:
        """After every `every`-th outer step."""
        return (outer_step + 1) % self._every == 0

    def policy_of(self, trajectory: int) -> Policy:
        """Its own."""
        return self._policies[trajectory]

    def parents(self, finished: FinishedStep) -> list[int]:
        """Every trajectory itself."""
        return list(range(self.trajectories))

    def step(self, finished: FinishedStep) -> dict[str, Any]:
        """Only records: scores on some held-out images, accuracy on the others."""
        outcomes_NnM = finished.recorded["heldout_outcomes"]
        scoring_NnM, others_NnM = outcomes_NnM[:, :SCORED_IMAGES], outcomes_NnM[:, SCORED_IMAGES:]
        return {
            "scored_accuracy": scoring_NnM[:, :, CORRECT].mean(1).tolist(),
            "scored_loss": scoring_NnM[:, :, LOSS].mean(1).tolist(),
            "training_image_loss": finished.recorded["training_loss"].tolist(),
            "other_accuracy": others_NnM[:, :, CORRECT].mean(1).tolist(),
        }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one seed, or make the table from the run folders of several."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", nargs="*", help="a recipe and overrides")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trajectories", type=int, default=16)
    parser.add_argument("--heldout", type=int, default=6000, help=f"images; {SCORED_IMAGES} of them score")
    parser.add_argument("--every", type=int, default=10, help="outer steps between two scores")
    parser.add_argument("--out", type=Path, default=Path("runs/horizon"), help="the run folder")
    parser.add_argument("--table", nargs="+", type=Path, metavar="RUN", help="run folders of several seeds")
    parser.add_argument("--result", type=Path, default=RESULT, help="the Markdown file")
    options = parser.parse_intermixed_args(arguments)
    if options.table:
        options.result.write_text(page(options.table), encoding="utf-8")
        print(options.result.read_text(encoding="utf-8"))
        return
    if not options.recipe:
        parser.error("give a recipe, or --table and run folders")
    recipe, *overrides = options.recipe
    search(
        recipe,
        [
            *overrides,
            f"run.dir={options.out}",
            "run.resume=auto",
            f"run.seed={options.seed}",
            f"data.heldout={options.heldout}",
            f"outer.trajectories={options.trajectories}",
            f"outer.estimator={Path(__file__).resolve()}:KeptToTheEnd",
            f"outer.estimator_args={{every: {options.every}}}",
        ],
    )


def correlations(lines: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """For each time, the correlation of three scores with the final accuracy.

    Args:
        lines: of `metrics.jsonl` that have scores.
    """
    final_N = torch.tensor(lines[-1]["other_accuracy"], dtype=torch.float64)
    loss_TNX = torch.tensor(
        [[line["scored_loss"], line["training_image_loss"]] for line in lines], dtype=torch.float64
    ).transpose(1, 2)
    rows = []
    for index, line in enumerate(lines):
        heldout_N, training_N = loss_TNX[index].T
        row = {
            "outer_step": line["outer_step"] + 1,
            "accuracy": _correlation(torch.tensor(line["scored_accuracy"], dtype=torch.float64), final_N),
            "loss": _correlation(-heldout_N, final_N),
        }
        # the score that a round of this length would have: the slope is that of its second half
        halfway = index // 2 - (index % 2 == 0)
        if halfway >= 0:
            slope = learning_curve_slope(loss_TNX[halfway].mean(0), loss_TNX[index].mean(0))
            row |= {"slope": slope, "extrapolated": _correlation(slope * training_N - heldout_N, final_N)}
        rows.append(row)
    return rows


def page(runs: Sequence[Path]) -> str:
    """The table as Markdown."""
    found = {
        run: [line for line in read_metrics(run / METRICS_FILE) if "scored_loss" in line] for run in runs
    }
    final = torch.tensor([lines[-1]["other_accuracy"] for lines in found.values()], dtype=torch.float64)
    tables = [correlations(lines) for lines in found.values()]
    facts = json.loads((runs[0] / "policy.json").read_text(encoding="utf-8"))["provenance"]
    text = [
        "# How early held-out scores tell which policy will be best",
        "",
        *(__doc__ or "").split("\n\n")[2].split("\n"),
        "",
        f"{date.today()}, {processor()}, Python {platform.python_version()}, torch {torch.__version__}; "
        f"{facts['network']} on {facts['training_images']} images, {facts['outer_steps']} outer steps, "
        f"{final.shape[1]} trajectories in each of {len(runs)} seeds; final accuracy {100 * final.min():.1f} to "
        f"{100 * final.max():.1f} %.",
        "",
        "Correlation with the final accuracy on other images, one number for each seed:",
        "",
        "| outer steps | accuracy | minus the loss | extrapolated | slope |",
        "|---|---|---|---|---|",
    ]
    for rows in zip(*tables, strict=True):
        cells = [
            " ".join(f"{row[name]:.2f}" if name in row else "-" for row in rows)
            for name in ("accuracy", "loss", "extrapolated", "slope")
        ]
        text.append(f"| {rows[0]['outer_step']} | {' | '.join(cells)} |")
    return "\n".join(text) + "\n"


def _correlation(one_N: Tensor, other_N: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([one_N, other_N]))[0, 1])


if __name__ == "__main__":
    main()
