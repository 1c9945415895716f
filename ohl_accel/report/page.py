"""The pages: the files of a run, or what a policy does to an image, as one HTML text that works offline.

Text from files is untrusted: the templates escape all of it, and the page's content security policy lets it load
nothing and run only its own script.
"""

import base64
import hashlib
import itertools
import math
import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import torch
from markupsafe import Markup

from ohl_accel import __version__
from ohl_accel.policy import Policy
from ohl_accel.policy.evidence import LEVEL, Evidence, moved_in_words, multiple
from ohl_accel.report import beside
from ohl_accel.report.charts import (
    entropy_chart,
    learning_rate_chart,
    loss_chart,
    noise_chart,
    operation_chart,
    phase_chart,
    phases_of,
    reward_chart,
)
from ohl_accel.report.classes import class_table
from ohl_accel.report.comparisons import comparisons_of
from ohl_accel.report.examples import TrainingExamples, originals, rows_of
from ohl_accel.report.gallery import Gallery, Tile
from ohl_accel.report.heatmaps import LEVELS, Heatmap, Scale, heatmap, palette
from ohl_accel.report.next_steps import next_steps
from ohl_accel.report.operations import (
    NOISE,
    POSITIONS,
    element_band,
    least_probable,
    most_probable,
    ratio_grid,
)
from ohl_accel.report.pictures import data_uri
from ohl_accel.report.read import OuterStep, Run
from ohl_accel.run_folder.files import REPORT_FILE
from ohl_accel.run_folder.result import in_words

_SHOWN_OPERATIONS = 6
_GALLERY_SIDE = 320
_PROVENANCE = {
    "training_images": "training images",
    "heldout_images": "held-out images",
    "ohl_accel": "ohl_accel",
    "torch": "torch",
}
"""Provenance of a policy shown in the header, with labels."""

_environment = jinja2.Environment(
    loader=jinja2.PackageLoader("ohl_accel.report"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.globals["in_words"] = in_words
_environment.globals["level"] = LEVEL


_environment.globals["ratio"] = lambda value: f"{multiple(value)} ×"


def run_page(run: Run, examples: TrainingExamples | None, no_examples: str, refresh: float) -> str:
    """The report of a run.

    Args:
        run: finished or not.
        examples: images of its training split; None if they are not available.
        no_examples: why not.
        refresh: seconds after which the page of an unfinished run reloads.
    """
    ranked = (most_probable, least_probable)
    compared = comparisons_of(run.folder, run.recipe) if run.is_run else []
    return _page(
        "run.html",
        run=run,
        name=run.folder.resolve().name,
        refresh=None if run.finished else f"{refresh:g}",
        facts=_facts(run),
        cards=_cards(run),
        charts=_charts(run),
        classes=class_table(run.classes) if run.classes is not None else None,
        compared=[(found, _address(found.folder, run.folder)) for found in compared],
        next_steps=next_steps(run, compared),
        phases=_phases(run.steps),
        evidence=run.policy.evidence if run.policy else None,
        moved=moved_in_words(run.policy.moved_elements) if run.policy else [],
        elements=_element_maps(run),
        matrix=_matrix(run.policy) if run.policy else None,
        changes=[rows_of(examples, run.policy.space, rank(run.policy, _SHOWN_OPERATIONS)) for rank in ranked]
        if run.policy
        else None,
        originals=originals(examples) if examples else [],
        class_names=examples.class_names if examples else [],
        no_examples=no_examples,
    )


def beside_page(first: Run, second: Run) -> str:
    """Two runs side by side."""
    pair = first, second
    names = [run.folder.resolve().name for run in pair]
    if names[0] == names[1]:
        names = [str(run.folder) for run in pair]
    return _page(
        "beside.html",
        names=names,
        folders=[run.folder for run in pair],
        notes=[f"{name}: {note}" for name, run in zip(names, pair, strict=True) for note in run.notes],
        refresh=None,
        results=beside.result_lines(pair),
        settings=beside.recipe_lines(pair),
        charts=beside.charts(pair),
        elements=beside.element_chart(pair),
        classes=beside.class_lines(pair),
    )


def gallery_page(policy: Policy, gallery: Gallery, name: str, image_name: str, seed: int) -> str:
    """What a policy does to an image."""

    def pictures(tiles: Sequence[Tile]) -> list[tuple[Tile, str]]:
        return [(tile, data_uri(tile.image, _GALLERY_SIDE)) for tile in tiles]

    return _page(
        "gallery.html",
        name=name,
        image_name=image_name,
        seed=seed,
        refresh=None,
        policy=policy,
        evidence=policy.evidence,
        provenance={key: value for key, value in policy.provenance.items() if key != "evidence"},
        uniform_entropy=policy.space.max_entropy,
        original=data_uri(gallery.original, _GALLERY_SIDE),
        size=gallery.original.size,
        likely=pictures(gallery.likely),
        unlikely=pictures(gallery.unlikely),
        drawn=pictures(gallery.drawn),
    )


def _page(template: str, **values: Any) -> str:
    script = _source("script.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return _environment.get_template(template).render(
        style=Markup(_source("style.css")),
        script=Markup(script),
        script_digest=digest,
        palette=palette(),
        version=__version__,
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %Z"),
        **values,
    )


def _source(name: str) -> str:
    assert _environment.loader is not None
    return _environment.loader.get_source(_environment, name)[0]


def _facts(run: Run) -> list[tuple[str, str]]:
    """Data, network and settings of the run, in pairs of a name and a value."""
    facts: list[tuple[str, str]] = []
    if run.recipe is not None:
        recipe = run.recipe
        facts += [
            ("data", recipe.data.path),
            ("network", recipe.model.name),
            ("trajectories", f"{recipe.outer.trajectories}"),
            ("inner steps", f"{recipe.outer.inner_steps}".replace("epoch", "one epoch")),
            ("mini-batch", f"{recipe.inner.batch_size} images"),
            ("seed", f"{recipe.run.seed}"),
        ]
    if run.policy is not None:
        known = run.policy.provenance
        facts += [(name, str(known[key])) for key, name in _PROVENANCE.items() if key in known]
    return facts


def _cards(run: Run) -> list[tuple[str, str, str]]:
    """The numbers at the top: (name, value, what to compare it with)."""
    cards: list[tuple[str, str, str]] = []
    metric = run.result.metric if run.result is not None else "accuracy"
    if run.result is not None and run.result.test is not None:
        images = f"of {run.result.test_images:,} images" if run.result.test_images else ""
        cards.append((f"Test {metric}", in_words(metric, run.result.test), images))
    looked = [step.reward[step.winner or 0] for step in run.steps]
    rewards = [reward for reward in looked if reward is not None]
    if rewards:
        hint = "used to choose the winner, so optimistic" if run.learned else "of the last validation"
        cards.append((f"Held-out {metric}", in_words(metric, rewards[-1]), hint))
    if run.steps and run.steps[-1].entropy is not None:
        uniform = run.space.max_entropy
        cards.append(("Entropy", f"{run.steps[-1].entropy:.4f}", f"nats; uniform is {uniform:.4f}"))
    if run.policy is not None:
        (top,) = most_probable(run.policy, 1)
        evidence = run.policy.evidence
        if evidence is None or evidence.side_of_operation(top.ratio) > 0:
            noise = top.noise or "whether that is noise was not measured"
            cards.append(
                ("Most probable operation", f"{multiple(top.ratio)} ×", f"uniform, {top.name}; {noise}")
            )
        if evidence is not None:
            what = "distinguishable" if evidence.distinguishable else "indistinguishable"
            cards.append(("Evidence", evidence.p_in_words, f"{what} from {evidence.reference}"))
    if run.steps:
        seconds = sum(sum(step.seconds.values()) for step in run.steps)
        speed = sum(step.images_per_second for step in run.steps) / len(run.steps)
        cards.append(("Time", duration(seconds), f"{speed:,.0f} training images/s"))
    return cards


def duration(seconds: float) -> str:
    """A duration as text: `42 s`, `3 min 20 s`, `5 h 12 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _charts(run: Run) -> dict[str, Markup | None]:
    steps, policy = run.steps, run.policy
    if not steps:
        return {}
    looked = [step for step in steps if None not in step.reward]
    learned = [step for step in steps if step.entropy is not None]
    return {
        "reward": reward_chart(looked, run.result.metric if run.result else "score") if looked else None,
        "loss": loss_chart(steps),
        "learning_rate": learning_rate_chart(steps),
        "noise": noise_chart(policy) if policy and run.learned else None,
        "entropy": entropy_chart(learned, run.space.max_entropy) if learned else None,
        "phases": phase_chart(steps),
        "operations": operation_chart(policy) if policy and policy.space.arity != 2 else None,
    }


def _address(comparison: Path, run: Path) -> str | None:
    """The address of a comparison's own page, from the page in a run folder; None if there is no such page."""
    if not (comparison / REPORT_FILE).is_file():
        return None
    path = os.path.relpath(comparison.resolve() / REPORT_FILE, run.resolve())
    return quote(path.replace(os.sep, "/"))


def _phases(steps: Sequence[OuterStep]) -> list[tuple[str, float, float]]:
    """(phase, total seconds, fraction of the total) in the order of the chart."""
    totals = {name: sum(step.seconds.get(name, 0.0) for step in steps) for name in phases_of(steps)}
    whole = sum(totals.values()) or 1.0
    return [(name, seconds, seconds / whole) for name, seconds in totals.items()]


def _element_maps(run: Run) -> dict[str, Any] | None:
    """The marginals of Figure 4 over time: a heatmap for each position, and the ratios for the slider."""
    known = [step for step in run.steps if step.element_probabilities is not None]
    if not known:
        return None
    space = run.space
    probabilities_TAE = torch.tensor([step.element_probabilities for step in known], dtype=torch.float64)
    ratios_TAE = probabilities_TAE / space.uniform_marginals
    scale = Scale.of(ratios_TAE, element_band(run.policy) if run.policy is not None else None)
    maps: dict[str, Heatmap] = {
        position: heatmap(ratios_TAE[:, number].T, scale)
        for number, position in enumerate(POSITIONS[: space.arity])
    }
    groups = itertools.groupby(space.elements, key=lambda element: element.transform.name)
    return {
        "count": space.num_elements,
        "positions": maps,
        "groups": [(name, [element.magnitude for element in group]) for name, group in groups],
        "scale": scale,
        "now": ratios_TAE[-1].tolist(),
        "levels": scale.levels(ratios_TAE[-1]).tolist(),
        "steps": [step.outer_step + 1 for step in known],
        "data": {
            "below": scale.below,
            "above": scale.above,
            "levels": LEVELS,
            "names": [element.name for element in space.elements],
            "ratios": [[[round(ratio, 4) for ratio in row] for row in step] for step in ratios_TAE.tolist()],
            "steps": [step.outer_step + 1 for step in known],
            "rewards": [step.reward for step in known],
            "winners": [step.winner for step in known],
            "entropies": [step.entropy for step in known],
        },
    }


def _noise_in_words(evidence: Evidence | None) -> list[str] | None:
    """What is said of an operation below, inside and above the noise band; None if there is no band."""
    if evidence is None or evidence.operation_band is None:
        return None
    return [NOISE[side if evidence.distinguishable else 0] for side in (-1, 0, 1)]


def _matrix(policy: Policy) -> dict[str, Any] | None:
    """All operations of two elements as an E x E heatmap: rows are the first element, columns the second.

    None for a space of different arity. Pairs that are not in the space are empty.
    """
    space = policy.space
    if space.arity != 2:
        return None
    ratios_EE = ratio_grid(policy)
    evidence = policy.evidence
    band = evidence.operation_band if evidence is not None else None
    scale = Scale.of(ratios_EE[ratios_EE.isfinite()], band)
    percent_EE = 100 * ratios_EE / space.num_operations
    names = [element.name for element in space.elements]
    percent = [None if math.isnan(p) else float(f"{p:.6g}") for p in percent_EE.flatten().tolist()]
    return {
        "map": heatmap(ratios_EE, scale),
        "count": space.num_operations,
        "names": names,
        "scale": scale,
        "data": {
            "names": names,
            "percent": percent,
            "operations": space.num_operations,
            "band": band,
            "noise": _noise_in_words(evidence),
        },
    }
