"""The run folder: its files, locking, and atomic writes.

Only the main process uses it.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ohl_accel.errors import UserError
from ohl_accel.run_folder.atomic import make_folder, write_text
from ohl_accel.run_folder.files import (
    CHECKPOINTS,
    CLASSES_FILE,
    DIGESTS_FILE,
    HELDOUT_FILE,
    LOCK_FILE,
    METRICS_FILE,
    NETWORK_FILES,
    POLICY_FILE,
    RECIPE_FILE,
    REPLACED_FILE,
    REPORT_FILE,
    RESULT_FILE,
    RUN_FILES,
    TENSORBOARD,
    WANDB,
)


class RunFolder:
    """A folder claimed by one run.

    Args:
        path: the folder, created if missing.
        resume: whether an earlier run in it may be resumed.
        overwrite: whether an earlier run in it may be replaced.

    Raises:
        UserError: if it is not empty and neither is allowed, another run writes to it, or it cannot
            be written.
    """

    def __init__(self, path: str, resume: bool, overwrite: bool) -> None:
        self.path = Path(path)
        self._overwrite = overwrite
        try:
            make_folder(self.path)
            self._lock = FileLock(self.path / LOCK_FILE)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise UserError(f"run.dir={path} is in use by another run; choose another folder") from None
        except OSError as error:
            raise UserError(f"run.dir={path} cannot be written: {error.strerror}") from None
        held = sorted(entry.name for entry in self.path.iterdir() if entry.name != LOCK_FILE)
        if held and not (resume or overwrite):
            self._lock.release()
            raise UserError(
                f"run.dir={path} is not empty (it has {', '.join(held[:4])}{', ...' if held[4:] else ''}): "
                "resume its run with run.resume=auto, replace it with run.overwrite=true, or choose another folder"
            )

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def clear(self) -> None:
        """Remove the files of an earlier run, but no others, if `overwrite`."""
        if self._overwrite:
            for name in RUN_FILES:
                entry = self.path / name
                if entry.is_dir():
                    shutil.rmtree(entry)
                else:
                    entry.unlink(missing_ok=True)

    def write_text(self, name: str, text: str) -> None:
        """Write a file of the run folder, whole or not at all."""
        write_text(self.path / name, text)

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write a JSON file of the run folder, whole or not at all."""
        self.write_text(name, json.dumps(value, indent=2, allow_nan=False) + "\n")

    def contents(self) -> dict[str, str]:
        """Path of each existing file -> what it is."""
        known = {
            REPORT_FILE: "all about the run, for a browser",
            POLICY_FILE: "the policy",
            NETWORK_FILES[0]: "the network's weights",
            NETWORK_FILES[1]: "architecture, classes, normalization, for timm",
            METRICS_FILE: "one line for each outer step",
            RESULT_FILE: "the test result",
            CLASSES_FILE: "the test result of each class, and confusions",
            RECIPE_FILE: "reproduces the run",
            REPLACED_FILE: "undecodable images, and what replaced them",
            DIGESTS_FILE: "SHA-256 of policy and network, checked on reading",
            HELDOUT_FILE: "which images scored the trajectories",
            CHECKPOINTS: "what run.resume=auto resumes from",
            TENSORBOARD: "for tensorboard --logdir",
            WANDB: "for wandb sync",
        }
        return {str(self.path / name): what for name, what in known.items() if (self.path / name).exists()}

    def results(self) -> list[Path]:
        """The result files of a finished run: policy, network, recipe, metrics, result."""
        names = (POLICY_FILE, *NETWORK_FILES, RECIPE_FILE, METRICS_FILE, RESULT_FILE)
        return [self.path / name for name in names if (self.path / name).exists()]

    def release(self) -> None:
        """Let other runs write to the folder."""
        self._lock.release()
