"""SHA-256 digests beside files, so that damage is found when they are read.

`digests.json` is in each checkpoint, and in the folder of a finished run: of its policy and its network.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from ohl_accel.errors import UserError
from ohl_accel.plain_json import read_object
from ohl_accel.run_folder.atomic import write_text
from ohl_accel.run_folder.files import DIGESTS_FILE


def digest_of(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_digests(folder: Path, names: Iterable[str]) -> None:
    """Write `digests.json` of those files of a folder that exist."""
    digests = {name: digest_of(folder / name) for name in names if (folder / name).is_file()}
    write_text(folder / DIGESTS_FILE, json.dumps(digests, indent=2) + "\n")


def check_digest(folder: Path, *names: str) -> None:
    """Refuse a file of a finished run's folder that is not what the run wrote.

    Folders without digests, of unfinished runs and of earlier versions, and files without one are accepted.

    Raises:
        UserError: naming the file, and what to do.
    """
    if not (folder / DIGESTS_FILE).exists():
        return
    try:
        digests = read_object(folder / DIGESTS_FILE)
    except ValueError as error:
        raise UserError(f"{folder / DIGESTS_FILE} is damaged: {error}; {_WAYS_OUT}") from None
    for name in names:
        try:
            is_whole = name not in digests or digests[name] == digest_of(folder / name)
        except OSError as error:
            raise UserError(f"{folder / name} cannot be read: {error.strerror}") from None
        if not is_whole:
            raise UserError(
                f"{folder / name} is not what the run wrote ({DIGESTS_FILE} has another digest): {_WAYS_OUT}"
            )


_WAYS_OUT = (
    "rerun the run's command with run.resume=auto, which writes it again from the last checkpoint; or, to use files "
    f"that you changed yourself, delete {DIGESTS_FILE}"
)
