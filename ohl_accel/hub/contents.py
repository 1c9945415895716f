"""The published files of a run: a dictionary from the path in the repository to bytes or a file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from safetensors import SafetensorError, safe_open

from ohl_accel.errors import UserError
from ohl_accel.hub.retry import secrets
from ohl_accel.operations.space_file import open_space
from ohl_accel.policy import Policy
from ohl_accel.recipe import HubSection, Recipe
from ohl_accel.report import figures
from ohl_accel.run_folder.files import (
    HELDOUT_FILE,
    METRICS_FILE,
    NETWORK_FILES,
    POLICY_FILE,
    RECIPE_FILE,
    RESULT_FILE,
)
from ohl_accel.run_folder.metrics import read_metrics

CARD_FILE = "README.md"
HEATMAP, MARGINALS, REWARDS = "figures/policy.png", "figures/marginals.png", "figures/rewards.png"
RECORDS = (RESULT_FILE, METRICS_FILE, HELDOUT_FILE)
PUBLISHED = (CARD_FILE, POLICY_FILE, *NETWORK_FILES, RECIPE_FILE, *RECORDS, HEATMAP, MARGINALS, REWARDS)
"""All files that are ever published or downloaded."""

Files = dict[str, bytes | Path]


@dataclass(frozen=True)
class Finished:
    """The contents of a finished run's folder."""

    path: Path
    recipe: Recipe
    result: Mapping[str, Any]
    metrics: list[dict[str, Any]]
    policy: Policy | None
    """None if the run trained with a policy that has no policy.json."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a run folder.

        Raises:
            UserError: if it is not the folder of a finished run.
        """
        missing = [name for name in (RECIPE_FILE, RESULT_FILE, METRICS_FILE) if not (path / name).is_file()]
        if missing:
            raise UserError(f"{path} is not the folder of a finished run: {', '.join(missing)} missing")
        try:
            recipe = Recipe.load(str(path / RECIPE_FILE))
            if recipe.augment.space is not None:
                open_space(recipe.augment.space)  # it registers transforms of the user's own
            policy = Policy.load(path) if (path / POLICY_FILE).exists() else None
            result = json.loads((path / RESULT_FILE).read_text(encoding="utf-8"))
            metrics = read_metrics(path / METRICS_FILE)
        except ValueError as error:
            raise UserError(f"{path} cannot be read: {error}") from error
        return cls(path, recipe, result, metrics, policy)


def files_of(run: Finished, section: HubSection) -> Files:
    """The files of a run to publish, without the card.

    Raises:
        UserError: if something is missing, or a file contains a secret.
    """
    files: Files = {name: run.path / name for name in RECORDS if (run.path / name).is_file()}
    # whoever runs the published recipe must not overwrite this repository
    again = Recipe.check({**run.recipe.model_dump(), "hub": {}})
    files[RECIPE_FILE] = again.to_yaml().encode()
    if section.policy_only and run.policy is None:
        raise UserError(f"hub.policy_only: {run.path} has no {POLICY_FILE}")
    if run.policy is not None:
        files[POLICY_FILE] = run.path / POLICY_FILE
        files[HEATMAP] = figures.policy_heatmap(run.policy)
        files[MARGINALS] = figures.policy_marginals(run.policy)
    if not section.policy_only:
        files |= {name: run.path / name for name in NETWORK_FILES}
        try:
            with safe_open(run.path / NETWORK_FILES[0], "pt"):
                pass
        except (OSError, SafetensorError) as error:
            raise UserError(f"{run.path / NETWORK_FILES[0]} cannot be read: {error}") from error
    files[REWARDS] = figures.reward_curves(run.metrics)
    check_for_secrets(files)
    return files


def check_for_secrets(files: Files) -> None:
    """Raise UserError if a text file contains a secret of the local user."""
    for path, source in files.items():
        if not path.endswith((".safetensors", ".png")):
            content = source.read_bytes() if isinstance(source, Path) else source
            for name, value in secrets().items():
                if value.encode() in content:
                    raise UserError(f"{path} contains the value of {name}: it is not published")
