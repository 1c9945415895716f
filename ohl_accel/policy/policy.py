"""The augmentation policy: one categorical distribution over the operations of a space.

Shapes: K operations (1296 in the paper), A elements of an operation, E elements of the space, B images of a group's
batch, b of this process, C channels, H rows, W columns, n samples. theta is float64 on the CPU, so that
every process computes the same policy to the last bit.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from ohl_accel.errors import UserError, did_you_mean, missing_extra
from ohl_accel.hub.download import fetch_file
from ohl_accel.operations.kernels.around import RawBatch
from ohl_accel.operations.space import PAPER, Space
from ohl_accel.policy import file, zoo
from ohl_accel.policy.evidence import Evidence, Moved, moved_elements, multiple, read_evidence
from ohl_accel.policy.protocol import BatchDraw
from ohl_accel.run_folder.atomic import write_text
from ohl_accel.run_folder.digests import check_digest
from ohl_accel.run_folder.files import POLICY_FILE, RECIPE_FILE, RUNS_FOLDER

_SIGNS = ("first sign", "second sign", "third sign")
"""Purposes that key the random signs, for each element of an operation."""
# user/name, unless it looks like a path
_HUB_PREFIX = "hf-hub:"  # timm's
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
        space: the operations; the paper's by default.

    Raises:
        ValueError: if theta has a wrong length, is not finite, or is so low that all probabilities vanish.
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
                f"theta must have {space.num_operations} numbers for space {space.name}, got shape {list(theta.shape)}"
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

    @property
    def evidence(self) -> Evidence | None:
        """Whether what was learned can be told from noise; None if that was not measured.

        It belongs to the theta with which the policy was saved.
        """
        return read_evidence(self.provenance.get("evidence"), self.space.arity, self.space.num_elements)

    @property
    def moved_elements(self) -> list[Moved]:
        """The elements whose probability noise does not explain, those moved furthest first."""
        evidence = self.evidence
        if evidence is None:
            return []
        names = [element.name for element in self.space.elements]
        return moved_elements(evidence, names, self.element_probabilities, self.space.uniform_marginals)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Sample n operations: int64 [n] on the CPU."""
        return torch.multinomial(self.probabilities, n, replacement=True, generator=generator)

    def apply(self, images_bCHW: Tensor, draw: BatchDraw) -> tuple[Tensor, Tensor]:
        """Apply a separately sampled operation to each image (`policy.protocol.AugmentationPolicy`).

        Operations differ between trajectories, the signs of their elements do not (footnote 1 of the paper).

        Args:
            images_bCHW: uint8 on any device, C = 1 or 3; left unchanged.
            draw: keys the random numbers.

        Returns:
            uint8 [b, C, H, W] on the same device, and the operations of the group's whole batch, int64 [B].
        """
        operation_B, negative_bA = self._drawn(draw)
        return self.space.apply(images_bCHW, operation_B[draw.own], negative_bA), operation_B

    def augment(self, batch: RawBatch, draw: BatchDraw) -> tuple[Tensor, Tensor]:
        """`apply` with what is done before and after it: `batch.finish(apply(batch.basic, draw)[0])`, bit for bit.

        Args:
            batch: this process's images before the basic transforms, and what was drawn for them.
            draw: keys the random numbers.

        Returns:
            The inputs of a network, float32 [b, C, H, W], and the operations, int64 [B].
        """
        operation_B, negative_bA = self._drawn(draw)
        return self.space.augment(batch, operation_B[draw.own], negative_bA), operation_B

    def _drawn(self, draw: BatchDraw) -> tuple[Tensor, Tensor]:
        """The operations of the group's whole batch, int64 [B], and this process's signs, bool [b, A]."""
        operation_B = self.sample(draw.batch_size, draw.generator("operations"))
        signs = [draw.shared_integers(purpose, 2) for purpose in _SIGNS[: self.space.arity]]
        return operation_B, torch.stack(signs, 1).bool()

    def top(self, n: int) -> list[tuple[str, float]]:
        """The n most probable operations, as (name, probability)."""
        ranked = sorted(enumerate(self.probabilities.tolist()), key=lambda pair: (-pair[1], pair[0]))
        return [(self.space.operation_name(operation), p) for operation, p in ranked[:n]]

    def bottom(self, n: int) -> list[tuple[str, float]]:
        """The n least probable operations, as (name, probability), the least first."""
        ranked = sorted(enumerate(self.probabilities.tolist()), key=lambda pair: (pair[1], pair[0]))
        return [(self.space.operation_name(operation), p) for operation, p in ranked[:n]]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `policy.json`, whole or not at all (to a temporary file, then renamed)."""
        write_text(Path(path), self._text())

    def _text(self) -> str:
        return file.to_text(file.Contents(self.space, self.theta, self.provenance))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a policy from `policy.json` or from the run folder with it.

        Raises:
            ValueError: for a missing or malformed file, or one of a finished run that is not what the run wrote; the
                message says what is wrong.
        """
        path = Path(path)
        if os.path.isdir(path):
            if not (path / POLICY_FILE).is_file():
                raise ValueError(f"{path} has no {POLICY_FILE}: {_why_no_policy(path)}")
            check_digest(path, POLICY_FILE)
            path = path / POLICY_FILE
        try:
            space, theta_K, provenance = file.read(path)
            return cls(theta_K, provenance, space=space)
        except ValueError as error:
            raise ValueError(f"{path} is not a valid policy: {error}") from None

    @classmethod
    def from_pretrained(
        cls, name: str | os.PathLike[str], revision: str | None = None, *, offline: bool = False
    ) -> Self:
        """A finished policy: from a run folder, a `policy.json`, the package, or a repository on the Hub.

        Args:
            name: `zoo:NAME` for a policy that comes with the package (`ohl_accel.policy.zoo`); a path, or else a Hub id
                `user/name`. Existing paths take precedence over the Hub, and what is probably a misspelt path is not
                asked of it; `hf-hub:user/name` is always a Hub id.
            revision: branch, tag or commit on the Hub.
            offline: do not ask the Hub; only a policy that was downloaded before is found.

        Raises:
            ValueError: if there is none, it is not valid, or the search in the run folder is not finished.
        """
        if str(name).startswith(zoo.PREFIX):
            return cls._from_zoo(str(name), revision)
        if str(name).startswith(_HUB_PREFIX):
            return cls._from_hub(str(name).removeprefix(_HUB_PREFIX), revision, offline)
        path = Path(os.path.expanduser(name))
        if os.path.exists(path):
            if revision is not None:
                raise ValueError(f"{path} is on this machine and has no revisions: omit {revision=}")
            policy = cls.load(path)
            if path.is_dir():
                policy._check_finished(path)
            return policy
        if not _HUB_ID.fullmatch(str(name)):
            raise ValueError(f"there is no file or folder {name} (and a Hub id has the form user/name)")
        _check_not_misspelt(str(name))
        try:
            return cls._from_hub(str(name), revision, offline)
        except ValueError as error:
            raise ValueError(f"there is no file or folder {name}, and as a Hub id: {error}") from error

    @classmethod
    def _from_hub(cls, name: str, revision: str | None, offline: bool) -> Self:
        return cls.load(fetch_file(name, POLICY_FILE, revision, file.MAX_FILE_BYTES, offline=offline))

    @classmethod
    def _from_zoo(cls, name: str, revision: str | None) -> Self:
        if revision is not None:
            raise ValueError(f"{name} comes with the package and has no revisions: omit {revision=}")
        policy = cls.load(path := zoo.path_of(name))
        try:
            zoo.gain_of(policy.provenance)
        except ValueError as error:
            raise ValueError(f"{path} cannot be in the zoo: {error}") from None
        return policy

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the policy to a folder, which is created if missing, for `from_pretrained`."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.save(Path(folder) / POLICY_FILE)

    def push_to_hub(
        self,
        repo: str,
        *,
        private: bool = False,
        license: str | None = None,
        tags: Sequence[str] = (),
        version: str | None = None,
    ) -> str:
        """Publish the policy on the Hugging Face Hub, with a card and its figures; needs `huggingface_hub`.

        Log in first, with `hf auth login` or HF_TOKEN.

        Args:
            repo: `user/name`, for `from_pretrained`; created if missing.
            private: make the repository private.
            license: in the Hub's spelling, such as `apache-2.0`.
            tags: additional tags of the card.
            version: a git tag for the commit, such as `v1`, which can then be used as a `revision`.

        Returns:
            The URL of the commit.

        Raises:
            UserError: for a name that the Hub does not accept.
            RunFailedError: if the Hub rejects it, or cannot be reached.
        """
        try:
            from ohl_accel.hub.policy import push_policy  # the only upward import: publishing draws figures
        except ModuleNotFoundError as error:
            raise UserError(f"push_to_hub: {missing_extra(error) or error}") from error
        return push_policy(
            self, self._text(), repo, private=private, license=license, tags=tuple(tags), version=version
        )

    def __eq__(self, other: object) -> bool:
        """Whether both have the same space and the same theta, to the last bit."""
        if not isinstance(other, Policy):
            return NotImplemented
        return self.space == other.space and torch.equal(self.theta, other.theta)

    __hash__ = None  # type: ignore[assignment]  # theta changes

    def __repr__(self) -> str:
        number, low, high = self.space.num_operations, float(self.theta.min()), float(self.theta.max())
        entropy = f"entropy {self.entropy:.2f} of {self.space.max_entropy:.2f} nats"
        if low == high:
            return f"Policy({self.space.name}: {number} operations, uniform, {entropy})"
        (name, probability), *_ = self.top(1)
        most = f"most probable: {name}, {multiple(probability * number)} x uniform"
        evidence = self.evidence
        if evidence is not None:
            most += f"; {evidence.verdict}"
        return f"Policy({self.space.name}: {number} operations, {entropy}; {most})"

    def _check_finished(self, folder: Path) -> None:
        """Raise ValueError if the policy's provenance says that the search is unfinished."""
        done, steps = (self.provenance.get(key) for key in ("outer_steps_done", "outer_steps"))
        if done is not None and steps is not None and done != steps:
            raise ValueError(
                f"{folder}: its search is at outer step {file.short(done)} of {file.short(steps)}; "
                f"give {folder / POLICY_FILE} to use the current policy"
            )


def _check_not_misspelt(name: str) -> None:
    """Raise ValueError if a name is more likely a path here than a Hub id: its folder exists, or is that of runs."""
    folder = name.split("/")[0]
    exists = os.path.isdir(folder)
    if exists or folder == RUNS_FOLDER:
        known = sorted(f"{folder}/{entry}" for entry in os.listdir(folder)) if exists else []
        hint = did_you_mean(
            name, known, otherwise=f"{folder}/ is {'a folder here' if exists else 'for runs'}"
        )
        raise ValueError(f"there is no file or folder {name}: {hint} (a Hub id? {_HUB_PREFIX}{name})")


def _why_no_policy(folder: Path) -> str:
    if (folder / RECIPE_FILE).exists():  # in every run folder; the policy is written with the checkpoints
        return "its search has not reached its first checkpoint, or the run did not learn a policy"
    return "it is not a run folder, or its search has not begun"
