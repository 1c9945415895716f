"""The augmentation policy: one categorical distribution over the operations of a space.

Shapes: K operations (1296 in the paper), A elements of an operation, E elements of the space, B images of a group's
batch, b of this process, C channels, H rows, W columns, n draws. theta is float64 on the CPU, so that
every process computes the same policy to the last bit.
"""

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from ohl_accel.hub.download import fetch_file
from ohl_accel.operations.space import PAPER, Space
from ohl_accel.policy.protocol import BatchDraw
from ohl_accel.run_folder.atomic import write_text
from ohl_accel.run_folder.files import POLICY_FILE

FORMAT = "ohl_accel.policy"
SCHEMA_VERSION = 2
"""1, which is still read, has the paper's space and lists its elements."""
_SIGNS = ("first sign", "second sign", "third sign")
"""Purposes of draws, for each position of an operation."""
_MAX_FILE_BYTES = 4 * 1024 * 1024
# user/name, unless it looks like a path
_HUB_ID = re.compile(r"(?![.~])[^/\\\s]+/(?!.*\.json$)[^/\\\s]+")


def probabilities_of(theta_K: Tensor) -> Tensor:
    """Eq 7: `p_k = sigmoid(theta_k) / sum_i sigmoid(theta_i)`. float64 [K], sums to 1."""
    sigmoid_K = theta_K.sigmoid()
    return sigmoid_K / sigmoid_K.sum()


class Policy:
    """A distribution over the operations of a search space, learned or uniform.

    Args:
        theta: K finite numbers; None for theta_0 = 0, the uniform policy.
        provenance: where it was learned (data, network, seed, ...); kept in `policy.json`.
        space: the operations; the paper's unless given.

    Raises:
        ValueError: if theta has another length, is not finite, or leaves no operation a probability.
    """

    def __init__(
        self,
        theta: Tensor | None = None,
        provenance: Mapping[str, Any] | None = None,
        *,
        space: Space = PAPER,
    ) -> None:
        if theta is None:
            theta = torch.zeros(space.num_operations, dtype=torch.float64)
        if theta.shape != (space.num_operations,):
            raise ValueError(
                f"theta must hold {space.num_operations} numbers for space {space.name}, got shape {list(theta.shape)}"
            )
        if not bool(theta.isfinite().all()):
            bad = int((~theta.isfinite()).nonzero()[0])
            raise ValueError(f"theta must be finite, but theta[{bad}] is {theta[bad].item()}")
        self.space = space
        self.theta = theta.detach().to("cpu", torch.float64).clone()
        if not bool(self.theta.sigmoid().sum() > 0):
            raise ValueError(
                f"theta is so low (at most {self.theta.max():g}) that every probability is 0 / 0"
            )
        self.provenance: dict[str, Any] = dict(provenance or {})

    @property
    def probabilities(self) -> Tensor:
        """p(operation), float64 [K] (Eq 7)."""
        return probabilities_of(self.theta)

    @property
    def element_probabilities(self) -> Tensor:
        """p(element) at each position of an operation, float64 [A, E]: the marginals of Figure 4."""
        return self.space.marginals(self.probabilities)

    @property
    def entropy(self) -> float:
        """Entropy of the distribution in nats; `space.max_entropy` when uniform, log(1296) = 7.167 in the paper."""
        return float(torch.special.entr(self.probabilities).sum())

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n operations: int64 [n] on the CPU."""
        return torch.multinomial(self.probabilities, n, replacement=True, generator=generator)

    def apply(self, images_bCHW: Tensor, draw: BatchDraw) -> tuple[Tensor, Tensor]:
        """Transform each image by an operation of its own (`policy.protocol.AugmentationPolicy`).

        Operations differ between trajectories, the signs of their elements do not (footnote 1 of the paper).

        Args:
            images_bCHW: uint8 on any device, C = 1 or 3; left unchanged.
            draw: keys the random numbers.

        Returns:
            uint8 [b, C, H, W] on the same device, and the operations of the group's whole batch, int64 [B].
        """
        operation_B = self.sample(draw.batch_size, draw.generator("operations"))
        signs = [draw.shared_integers(purpose, 2) for purpose in _SIGNS[: self.space.arity]]
        negative_bA = torch.stack(signs, 1).bool()
        return self.space.apply(images_bCHW, operation_B[draw.own], negative_bA), operation_B

    def top(self, n: int) -> list[tuple[str, float]]:
        """The n most probable operations, as (name, probability)."""
        ranked = sorted(enumerate(self.probabilities.tolist()), key=lambda pair: (-pair[1], pair[0]))
        return [(self.space.operation_name(operation), p) for operation, p in ranked[:n]]

    def bottom(self, n: int) -> list[tuple[str, float]]:
        """The n least probable operations, as (name, probability), the least first."""
        ranked = sorted(enumerate(self.probabilities.tolist()), key=lambda pair: (pair[1], pair[0]))
        return [(self.space.operation_name(operation), p) for operation, p in ranked[:n]]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `policy.json`, whole or not at all (written aside, then renamed)."""
        write_text(Path(path), json.dumps(self._document(), allow_nan=False))

    def _document(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "schema_version": SCHEMA_VERSION,
            "space": self.space.document(),
            "theta": self.theta.tolist(),
            "provenance": self.provenance,
        }

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a policy from `policy.json` or from the run folder that holds it.

        Raises:
            ValueError: for a missing, malformed or foreign file; the message says what is wrong.
        """
        path = Path(path)
        if os.path.isdir(path):
            if not (path / POLICY_FILE).is_file():
                raise ValueError(f"{path} holds no {POLICY_FILE}: {_why_no_policy(path)}")
            path = path / POLICY_FILE
        try:
            document = _read_json(path)
            space = _space_of(document)
            theta = _theta_of(document, space)
            return cls(theta, document.get("provenance"), space=space)
        except RecursionError:
            raise ValueError(f"{path} is not a policy that can be used: it is nested too deeply") from None
        except ValueError as error:
            raise ValueError(f"{path} is not a policy that can be used: {error}") from None

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], revision: str | None = None) -> Self:
        """A finished policy: of a run folder, of a `policy.json`, or of a repository on the Hub.

        Args:
            name: a path, or else a Hub id `user/name`. What exists on the disk is taken from there.
            revision: branch, tag or commit on the Hub.

        Raises:
            ValueError: if there is none, it cannot be used, or the search in the run folder goes on still.
        """
        path = Path(os.path.expanduser(name))
        if os.path.exists(path):
            if revision is not None:
                raise ValueError(f"{path} is on this machine and has no revisions: leave out {revision=}")
            policy = cls.load(path)
            if path.is_dir():
                policy._check_finished(path)
            return policy
        if not _HUB_ID.fullmatch(str(name)):
            raise ValueError(f"there is no file or folder {name} (and a Hub id has the form user/name)")
        try:
            return cls.load(fetch_file(str(name), POLICY_FILE, revision, _MAX_FILE_BYTES))
        except ValueError as error:
            raise ValueError(f"there is no file or folder {name}, and as a Hub id: {error}") from error

    def _check_finished(self, folder: Path) -> None:
        """Raise ValueError if the policy says that it is one of an unfinished search."""
        done, steps = (self.provenance.get(key) for key in ("outer_steps_done", "outer_steps"))
        if done is not None and steps is not None and done != steps:
            raise ValueError(
                f"{folder}: its search stands at outer step {_short(done)} of {_short(steps)}; "
                f"give {folder / POLICY_FILE} to use the policy as it is"
            )


def _read_json(path: Path) -> dict[str, Any]:
    """Parse a JSON object from a file that may come from anywhere.

    Raises:
        ValueError: if it is missing, too large, no JSON, holds NaN or a key twice, or is no object.
        RecursionError: if it is nested too deeply.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
        if len(content) > _MAX_FILE_BYTES:
            raise ValueError(f"more than {_MAX_FILE_BYTES} bytes is too large; a policy has some 30,000")
        document = json.loads(
            content.decode(),
            parse_constant=_finite_number,
            parse_float=_finite_number,
            object_pairs_hook=_with_unique_keys,
        )
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from None
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"malformed JSON: {error}") from None
    if not isinstance(document, dict):
        raise ValueError(f"expected a JSON object, got {type(document).__name__}")
    return document


def _finite_number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"it contains {text[:60]}; all numbers must be finite")
    return number


def _with_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for key, value in pairs:
        if key in document:
            raise ValueError(f"it has the key {_short(key)} twice in one object")
        document[key] = value
    return document


def _space_of(document: Mapping[str, Any]) -> Space:
    """Check format and version of a parsed `policy.json`, and return its space."""
    if document.get("format") != FORMAT:
        raise ValueError(f'"format" must be "{FORMAT}", got {_short(document.get("format"))}')
    version = document.get("schema_version")
    if type(version) is not int or version not in (1, SCHEMA_VERSION):
        raise ValueError(
            f"schema_version {_short(version)} is unknown; this version reads 1 and {SCHEMA_VERSION}"
        )
    if version == SCHEMA_VERSION:
        try:
            return Space.from_document(document.get("space"))
        except ValueError as error:
            raise ValueError(f'"space": {error}') from None
    elements, known = document.get("elements"), PAPER.document()["elements"]
    if not isinstance(elements, list) or len(elements) != len(known):
        found = f"{len(elements)}" if isinstance(elements, list) else _short(elements)
        raise ValueError(f'"elements" must list the {len(known)} elements of Table 1, got {found}')
    for index, (found, wanted) in enumerate(zip(elements, known, strict=True)):
        if found != wanted:
            raise ValueError(f"element {index} must be {PAPER.elements[index].name}, got {_short(found)}")
    return PAPER


def _theta_of(document: Mapping[str, Any], space: Space) -> Tensor:
    """Check the other fields of a parsed `policy.json`, and return its theta."""
    theta = document.get("theta")
    if not isinstance(theta, list) or len(theta) != space.num_operations:
        found = f"{len(theta)}" if isinstance(theta, list) else _short(theta)
        raise ValueError(f'"theta" must list {space.num_operations} numbers, got {found}')
    for index, value in enumerate(theta):
        if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
            raise ValueError(f"theta[{index}] must be a finite number, got {_short(value)}")
    if not isinstance(document.get("provenance", {}), dict):
        raise ValueError(f'"provenance" must be an object, got {_short(document["provenance"])}')
    return torch.tensor(theta, dtype=torch.float64)


def _why_no_policy(folder: Path) -> str:
    if (folder / "recipe.yaml").exists():  # every run folder has it, the policy comes with the checkpoints
        return "its search has not come to its first checkpoint, or the run learned no policy"
    return "it is no run folder, or its search has not begun"


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond float64
        return False


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
