"""The published files of a run: a dictionary from the path in the repository to bytes or a file.

Each is a file of the run folder itself, not a link, and is read and checked before anything is uploaded. What it says
about this machine, absolute paths and secrets, stays here.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open

from ohl_accel.errors import UserError
from ohl_accel.hub.retry import secrets
from ohl_accel.operations.space_file import open_space
from ohl_accel.plain_json import parse_object, read_object
from ohl_accel.policy import Policy
from ohl_accel.recipe import HubSection, Recipe
from ohl_accel.report import figures
from ohl_accel.report.read import read_run
from ohl_accel.run_folder.digests import check_digest
from ohl_accel.run_folder.files import (
    CONFIG_FILE,
    HELDOUT_FILE,
    METRICS_FILE,
    NETWORK_FILES,
    POLICY_FILE,
    RECIPE_FILE,
    RESULT_FILE,
    WEIGHTS_FILE,
)
from ohl_accel.run_folder.metrics import read_metrics
from ohl_accel.run_folder.result import main_score, read_result

CARD_FILE = "README.md"
HEATMAP, MARGINALS, REWARDS = "figures/policy.png", "figures/marginals.png", "figures/rewards.png"
RECORDS = (RESULT_FILE, METRICS_FILE, HELDOUT_FILE)
PUBLISHED = (CARD_FILE, POLICY_FILE, *NETWORK_FILES, RECIPE_FILE, *RECORDS, HEATMAP, MARGINALS, REWARDS)
"""All files that are ever published or downloaded."""

Files = dict[str, bytes | Path]

_MAX_HELDOUT_BYTES = 2**30


class _HeldoutRecord(BaseModel):
    """`heldout.json`, as `Data.record` makes it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    split: str | None = None
    rows: list[int] = []
    hashes: list[str] = []
    fingerprint: str | None = None
    heldout_fingerprint: str | None = None
    copies: int = 0


class _NetworkConfig(BaseModel):
    """`config.json`, as timm reads it."""

    model_config = ConfigDict(extra="allow", strict=True)

    architecture: str
    num_classes: int
    pretrained_cfg: dict[str, Any]


@dataclass(frozen=True)
class Finished:
    """The contents of a finished run's folder."""

    path: Path
    recipe: Recipe
    """Of paths on this machine it has only the last part."""
    result: Mapping[str, Any]
    metrics: list[dict[str, Any]]
    policy: Policy | None
    """None if the run trained with a policy that has no policy.json."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a run folder.

        Raises:
            UserError: if it is not the folder of a finished run, one of its files is a link or damaged.
        """
        for name in (RECIPE_FILE, *RECORDS, POLICY_FILE, *NETWORK_FILES):
            _check_own(path / name)
        missing = [name for name in (RECIPE_FILE, RESULT_FILE, METRICS_FILE) if not (path / name).is_file()]
        if missing:
            raise UserError(f"{path} is not the folder of a finished run: {', '.join(missing)} missing")
        try:
            recipe = Recipe.load(str(path / RECIPE_FILE))
            if recipe.augment.space is not None:
                open_space(recipe.augment.space)  # it registers transforms of the user's own
            read_run(path)  # checks policy, metrics and result, as a report needs them
            policy = Policy.load(path) if (path / POLICY_FILE).exists() else None
            result = read_result(path) or {}
            for name in ("images_trained_on", *(["test_images"] if main_score(result) is not None else [])):
                if type(result.get(name)) is not int:
                    raise ValueError(f"{RESULT_FILE} has no whole number {name}")
            if (path / HELDOUT_FILE).exists():
                _check(path / HELDOUT_FILE, _HeldoutRecord, _MAX_HELDOUT_BYTES)
            metrics = read_metrics(path / METRICS_FILE)
        except ValueError as error:
            raise UserError(f"{path} cannot be read: {error}") from error
        public = Recipe.check(without_absolute_paths(recipe.model_dump()))
        return cls(path, public, result, metrics, policy)


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
    if not section.policy_only:
        files |= {name: run.path / name for name in NETWORK_FILES}
        check_digest(run.path, *NETWORK_FILES)
        _check(run.path / CONFIG_FILE, _NetworkConfig)
        files[CONFIG_FILE] = public_json((run.path / CONFIG_FILE).read_bytes())
        try:
            with safe_open(run.path / WEIGHTS_FILE, "pt"):
                pass
        except (OSError, SafetensorError) as error:
            raise UserError(f"{run.path / WEIGHTS_FILE} cannot be read: {error}") from error
    if run.policy is not None:
        files[POLICY_FILE] = public_json((run.path / POLICY_FILE).read_bytes())
        files[HEATMAP] = figures.policy_heatmap(run.policy)
        files[MARGINALS] = figures.policy_marginals(run.policy)
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


def _check_own(path: Path) -> None:
    """Refuse what is there under a file's name but is not a plain file.

    Raises:
        UserError: naming it.
    """
    if path.is_symlink():
        raise UserError(
            f"{path} is a link to {path.readlink()}; only files of the run folder itself are published: put a copy "
            "there"
        )
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is not a file: it cannot be published")


def _check(path: Path, model: type[BaseModel], max_bytes: int = 2**24) -> None:
    """Check a JSON file against a model.

    Raises:
        UserError: naming the file and the first value that is wrong.
    """
    try:
        model.model_validate(read_object(path, max_bytes))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise UserError(f"{path} is damaged, or not what a run writes: {field}: {first['msg']}") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from None


def public_json(content: bytes) -> bytes:
    """A JSON object without absolute paths; as it is if it has none."""
    document = parse_object(content)
    public = without_absolute_paths(document)
    return content if public == document else json.dumps(public).encode()


def without_absolute_paths(value: Any) -> Any:
    """Plain values in which of every absolute path only the last part is left, as `./name`.

    Also of one with a name behind it, such as `/home/me/mine.py:Estimator`.
    """
    if isinstance(value, Mapping):
        return {key: without_absolute_paths(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_absolute_paths(each) for each in value]
    if not isinstance(value, str):
        return value
    for kind in (PurePosixPath, PureWindowsPath):
        path = kind(value.removeprefix("file://"))
        if path.is_absolute() or value.startswith("~"):
            return f"./{path.name}"
    return value
