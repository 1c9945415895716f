"""The augmentation policy: one categorical distribution over operations, and how it learns.

Shapes: K operations (1296 in the paper), N trajectories, n draws. theta is float64 on the CPU, so that
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
from ohl_accel.operations.elements import ELEMENTS, NUM_ELEMENTS, NUM_OPERATIONS, operation_name
from ohl_accel.run_folder.atomic import write_text
from ohl_accel.run_folder.files import POLICY_FILE

FORMAT = "ohl_accel.policy"
SCHEMA_VERSION = 1
_MAX_FILE_BYTES = 4 * 1024 * 1024
# user/name, unless it looks like a path
_HUB_ID = re.compile(r"(?![.~])[^/\\\s]+/(?!.*\.json$)[^/\\\s]+")


def probabilities_of(theta_K: Tensor) -> Tensor:
    """Eq 7: `p_k = sigmoid(theta_k) / sum_i sigmoid(theta_i)`. float64 [K], sums to 1."""
    sigmoid_K = theta_K.sigmoid()
    return sigmoid_K / sigmoid_K.sum()


class Policy:
    """A distribution over the 1296 operations of the paper, learned or uniform.

    Args:
        theta: 1296 finite numbers; None for theta_0 = 0, the uniform policy.
        provenance: where it was learned (data, network, seed, ...); kept in `policy.json`.

    Raises:
        ValueError: if theta has another length, is not finite, or leaves no operation a probability.
    """

    def __init__(self, theta: Tensor | None = None, provenance: Mapping[str, Any] | None = None) -> None:
        if theta is None:
            theta = torch.zeros(NUM_OPERATIONS, dtype=torch.float64)
        if theta.shape != (NUM_OPERATIONS,):
            raise ValueError(f"theta must hold {NUM_OPERATIONS} numbers, got shape {list(theta.shape)}")
        if not bool(theta.isfinite().all()):
            bad = int((~theta.isfinite()).nonzero()[0])
            raise ValueError(f"theta must be finite, but theta[{bad}] is {theta[bad].item()}")
        self.theta = theta.detach().to("cpu", torch.float64).clone()
        if not bool(self.theta.sigmoid().sum() > 0):
            raise ValueError(
                f"theta is so low (at most {self.theta.max():g}) that every probability is 0 / 0"
            )
        self.provenance: dict[str, Any] = dict(provenance or {})

    @property
    def probabilities(self) -> Tensor:
        """p(operation), float64 [1296] (Eq 7)."""
        return probabilities_of(self.theta)

    @property
    def element_probabilities(self) -> Tensor:
        """p(element) at each of the two places, float64 [2, 36]: the marginals of Figure 4."""
        table = self.probabilities.view(NUM_ELEMENTS, NUM_ELEMENTS)
        return torch.stack([table.sum(1), table.sum(0)])

    @property
    def entropy(self) -> float:
        """Entropy of the distribution in nats; log(1296) = 7.167 when uniform."""
        return float(torch.special.entr(self.probabilities).sum())

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n operations: int64 [n] on the CPU."""
        return torch.multinomial(self.probabilities, n, replacement=True, generator=generator)

    def top(self, n: int) -> list[tuple[str, float]]:
        """The n most probable operations, as (name, probability)."""
        ranked = sorted(enumerate(self.probabilities.tolist()), key=lambda pair: (-pair[1], pair[0]))
        return [(operation_name(operation), p) for operation, p in ranked[:n]]

    def bottom(self, n: int) -> list[tuple[str, float]]:
        """The n least probable operations, as (name, probability), the least first."""
        ranked = sorted(enumerate(self.probabilities.tolist()), key=lambda pair: (pair[1], pair[0]))
        return [(operation_name(operation), p) for operation, p in ranked[:n]]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `policy.json`, whole or not at all (written aside, then renamed)."""
        write_text(Path(path), json.dumps(self._document(), allow_nan=False))

    def _document(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "schema_version": SCHEMA_VERSION,
            "elements": [{"transform": e.transform, "magnitude": e.magnitude} for e in ELEMENTS],
            "operation": f"{NUM_ELEMENTS} * first + second",
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
            return cls(_theta_of(document), document.get("provenance"))
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


def _theta_of(document: Mapping[str, Any]) -> Tensor:
    """Check a parsed `policy.json` against this version's schema and return its theta."""
    if document.get("format") != FORMAT:
        raise ValueError(f'"format" must be "{FORMAT}", got {_short(document.get("format"))}')
    version = document.get("schema_version")
    if type(version) is not int or version != SCHEMA_VERSION:
        raise ValueError(f"schema_version {_short(version)} is unknown; this version reads {SCHEMA_VERSION}")
    elements = document.get("elements")
    if not isinstance(elements, list) or len(elements) != NUM_ELEMENTS:
        found = f"{len(elements)}" if isinstance(elements, list) else _short(elements)
        raise ValueError(f'"elements" must list the {NUM_ELEMENTS} elements of Table 1, got {found}')
    for place, (found, known) in enumerate(zip(elements, ELEMENTS, strict=True)):
        if found != {"transform": known.transform, "magnitude": known.magnitude}:
            raise ValueError(f"element {place} must be {known.name}, got {_short(found)}")
    theta = document.get("theta")
    if not isinstance(theta, list) or len(theta) != NUM_OPERATIONS:
        found = f"{len(theta)}" if isinstance(theta, list) else _short(theta)
        raise ValueError(f'"theta" must list {NUM_OPERATIONS} numbers, got {found}')
    for place, value in enumerate(theta):
        if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
            raise ValueError(f"theta[{place}] must be a finite number, got {_short(value)}")
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
