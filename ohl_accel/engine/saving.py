"""What a run writes to its folder, on a disk that may be full or gone for a while.

A checkpoint that cannot be written does not end the run: it goes on, and the next one is tried. What it began with and
what it ends with must be written.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor
from torch.optim import Optimizer

from ohl_accel.engine import checkpoint
from ohl_accel.errors import RunFailedError, UserError, first_line
from ohl_accel.policy import Policy
from ohl_accel.policy.estimators import Estimator
from ohl_accel.recipe import Recipe
from ohl_accel.run_folder.digests import write_digests
from ohl_accel.run_folder.files import (
    CHECKPOINTS,
    DIGESTS_FILE,
    HELDOUT_FILE,
    NETWORK_FILES,
    POLICY_FILE,
    RECIPE_FILE,
)
from ohl_accel.run_folder.folder import RunFolder


class Saver:
    """Writes the files of a run, on the main process.

    Args:
        folder: of the run.
        recipe: resolved.
        record: of the images (`Data.record`), for `heldout.json`.
        processes: those that host all trajectories.
        warn: shows a line to the user.
    """

    def __init__(
        self,
        folder: RunFolder,
        recipe: Recipe,
        record: Mapping[str, Any],
        processes: int,
        warn: Callable[[str], None],
    ) -> None:
        self._folder, self._recipe, self._record, self._warn = folder, recipe, record, warn
        self._processes = processes
        self.is_failing = False
        """Whether the last checkpoint could not be written."""

    def begin(
        self,
        states: Iterator[dict[str, Tensor]] | None,
        optimizer: Optimizer,
        policy: object,
        estimator: Estimator | None,
    ) -> None:
        """Write the first files of a run: its recipe, its images, and unless it is resumed the checkpoint of step 0.

        Args:
            states: of the network, from `checkpoint.collect`; None if the run is resumed.
            optimizer: of any trajectory.
            policy: written if it is a `Policy`.
            estimator: None if nothing is learned.

        Raises:
            UserError: if they cannot be written.
        """
        folder, recipe = self._folder, self._recipe
        try:
            if states is not None:
                folder.clear()
            (folder / DIGESTS_FILE).unlink(missing_ok=True)  # of files that will be written again
            self._write_records()
            if states is not None:
                if isinstance(policy, Policy):
                    policy.save(folder / POLICY_FILE)
                # last: from then on the run is resumed, for which it must say which images it has
                checkpoint.save(
                    folder / CHECKPOINTS,
                    (0, 0),
                    states,
                    False,
                    optimizer,
                    estimator,
                    recipe,
                    {},
                    self._processes,
                )
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"run.dir={recipe.run.dir} cannot be written: {_reason(error)}; nothing was trained; the same "
                "command begins again"
            ) from error

    def checkpoint(
        self,
        position: checkpoint.Position,
        states: Iterator[dict[str, Tensor]],
        apart: bool,
        optimizer: Optimizer,
        estimator: Estimator | None,
        decoded: Mapping[str, Any],
    ) -> None:
        """Write a checkpoint and the learned policy; if that fails, say so once, and let the run go on.

        Args:
            position: where the run is.
            states, apart, optimizer, estimator, decoded: as in `checkpoint.save`.
        """
        folder = self._folder
        try:
            checkpoint.save(
                folder / CHECKPOINTS,
                position,
                states,
                apart,
                optimizer,
                estimator,
                self._recipe,
                decoded,
                self._processes,
            )
            if estimator is not None:
                estimator.policy.provenance["outer_steps_done"] = position[0]
                estimator.policy.save(folder / POLICY_FILE)
            if not (folder / RECIPE_FILE).exists():  # the folder was gone
                self._write_records()
        except (OSError, SafetensorError) as error:
            for _ in states:  # the other processes take part in collecting
                pass
            if not self.is_failing:
                self._warn(
                    f"the checkpoint after {checkpoint.in_words(position)} cannot be written to "
                    f"{self._recipe.run.dir}: {_reason(error)}. The run goes on, and tries again after each "
                    f"outer step; {self._resumes_from()}"
                )
            self.is_failing = True
            return
        if self.is_failing:
            self._warn(
                f"the checkpoint after {checkpoint.in_words(position)} is written: checkpoints work again"
            )
        self.is_failing = False

    def finish(self, save_network: Callable[[Path], None], policy: object) -> None:
        """Write the network and the policy of a finished run, and their digests.

        Args:
            save_network: writes the network to a folder.
            policy: written if it is a `Policy`.

        Raises:
            RunFailedError: if they cannot be written.
        """
        folder = self._folder
        try:
            save_network(folder.path)
            if isinstance(policy, Policy):
                policy.save(folder / POLICY_FILE)
            write_digests(folder.path, (POLICY_FILE, *NETWORK_FILES))
        except (OSError, SafetensorError) as error:
            raise RunFailedError(
                f"the trained network cannot be written to {self._recipe.run.dir}: {_reason(error)}; once it can, "
                f"{self._resumes_from()}"
            ) from error

    def _write_records(self) -> None:
        self._folder.write_text(RECIPE_FILE, self._recipe.to_yaml())
        if self._record:
            self._folder.write_json(HELDOUT_FILE, self._record)

    def _resumes_from(self) -> str:
        done = checkpoint.position_on_disk(self._folder / CHECKPOINTS)
        if done is None:
            return "there is no checkpoint to resume from"
        return f"the same command with run.resume=auto resumes after {checkpoint.in_words(done)}"


def _reason(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
