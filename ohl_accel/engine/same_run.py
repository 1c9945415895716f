"""Whether a checkpoint may be resumed: by the same recipe, or one that only goes on for longer; on the same images."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ohl_accel.data import Data
from ohl_accel.data.stream import Shards
from ohl_accel.engine.checkpoint import Contents
from ohl_accel.errors import UserError
from ohl_accel.plain_json import read_object
from ohl_accel.policy.estimators import Estimator
from ohl_accel.recipe import HubSection, Recipe

_MAX_HELDOUT_BYTES = 2**30
"""Of `heldout.json`, with a row and a hash for each held-out image."""
_FREE_FIELDS = frozenset(
    {
        *(f"run.{name}" for name in ("dir", "resume", "overwrite", "checkpoint_every", "keep_checkpoints")),
        *(f"run.{name}" for name in ("checkpoint_minutes", "grace", "on_loss")),
        *(f"run.{name}" for name in ("timeout", "project", "name", "group", "tags", "display", "report")),
        *(f"hub.{name}" for name in HubSection.model_fields),
        "track",
        "outer.groups",
        "model.shard",
        "data.workers",
        "data.in_memory",
        "data.retries",
    }
)
"""Fields that may change when a run is resumed: the result does not depend on them."""


def check_recipe(contents: Contents, recipe: Recipe, estimator: Estimator | None) -> None:
    """Refuse the checkpoint of a run with another recipe, unless this one only goes on for longer.

    Args:
        contents: of the checkpoint.
        recipe: of the run that would resume it.
        estimator: of the run; None if nothing is learned.

    Raises:
        UserError: naming the values that differ.
    """
    document = contents.document
    # through the recipe of this version: fields that did not exist then get their defaults
    then = _flat(
        type(recipe).check(document["recipe"], f"the checkpoint in {recipe.run.dir}").model_dump(mode="json")
    )
    now = _flat(recipe.model_dump(mode="json"))
    different = [
        key for key in sorted({*then, *now}) if then.get(key) != now.get(key) and key not in _FREE_FIELDS
    ]
    changed = [f"{key} was {then.get(key)!r}, now {now.get(key)!r}" for key in different]
    if different == ["outer.steps"] and now["outer.steps"] > then["outer.steps"]:
        planned = _what_plans_ahead(recipe, estimator)
        if planned is None:
            return
        start = (
            " and augment.policy=RUN starts from the policy that it learned" if estimator is not None else ""
        )
        raise UserError(
            f"run.dir={recipe.run.dir}: {changed[0]}. It cannot be made longer, because {planned}: a longer run is "
            f"another one from the beginning. Another run.dir begins that{start}; runs with inner.schedule.name="
            "constant or multistep and outer.estimator=reinforce can be made longer"
        )
    if changed:
        raise UserError(
            f"run.dir={recipe.run.dir} has a run with a different recipe ({'; '.join(changed)}): give the same "
            "values to resume it, or choose another run.dir"
        )


def _what_plans_ahead(recipe: Recipe, estimator: Estimator | None) -> str | None:
    """What in a run depends on how many outer steps it will have, in words; None if its beginning does not."""
    if recipe.inner.schedule.name == "cosine":
        return "inner.schedule.name=cosine spreads the learning rate over the whole run"
    if estimator is not None and estimator.plans_ahead:
        return f"outer.estimator={recipe.outer.estimator} plans for outer.steps"
    return None


def check_images(file: Path, data: Data) -> None:
    """Refuse to resume with images, labels or an order that are not those the run began with.

    Folders of earlier versions know the images of streams alone.

    Raises:
        UserError: if they are not, or the file is damaged.
    """
    try:
        then = read_object(file, _MAX_HELDOUT_BYTES) if file.exists() else {}
    except ValueError as error:
        raise UserError(
            f"{file} is damaged: {error}; it says which images the run began with: copy it back, or start again with "
            "run.resume=never run.overwrite=true"
        ) from None
    if not isinstance(data.train.source, Shards) and "fingerprint" not in then:
        if data.copies:
            raise UserError(
                f"run.dir={file.parent} holds a run of an earlier version, which trained on {data.copies} copies of "
                "held-out images; this version leaves them out, so it cannot resume that run: choose another run.dir"
            )
        return
    for key, images in (("fingerprint", data.train), ("heldout_fingerprint", data.heldout)):
        if images is not None and then.get(key) != data.record.get(key):
            raise UserError(
                f"run.dir={file.parent} has a run on different images: those of {images.description} have changed "
                "since it began; give the same files to resume it, or choose another run.dir"
            )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
