"""Uploading to the Hub in one commit, and downloading from it."""

import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi

from ohl_accel.errors import RunFailedError, UserError
from ohl_accel.hub.access import check_name
from ohl_accel.hub.card import model_card
from ohl_accel.hub.contents import CARD_FILE, PUBLISHED, Files, Finished, files_of
from ohl_accel.hub.retry import AccessError, reason, with_retries
from ohl_accel.policy import Policy
from ohl_accel.recipe import HubSection
from ohl_accel.run_folder.files import POLICY_FILE

Say = Callable[[str], None]
PULL_RETRY_SECONDS = 5.0
"""Total time in seconds to wait between attempts to download."""


def push(path: Path, section: HubSection, say: Say) -> str:
    """Publish a finished run in one commit; returns the URL of the commit.

    Unchanged files are not uploaded again, so it can be repeated.

    Args:
        path: the run folder.
        section: what to publish where; its `repo` is set.
        say: takes a line for each failure that is retried.

    Raises:
        UserError: for a folder or a name that cannot be published.
        RunFailedError: if the Hub rejects it or has failed for `section.patience` seconds.
    """
    assert section.repo is not None
    check_name(section.repo)
    run = Finished.read(path)
    files = files_of(run, section)
    files[CARD_FILE] = model_card(run, section).encode()
    return upload(files, section, say)


def upload(files: Files, section: HubSection, say: Say) -> str:
    """Upload files to a repository in one commit; returns the URL of the commit.

    Args:
        files: path in the repository -> content.
        section: the repository and its settings.
        say: takes a line for each failure that is retried.

    Raises:
        RunFailedError: if the Hub rejects it or has failed for `section.patience` seconds.
    """
    if not sys.stderr.isatty():
        huggingface_hub.utils.disable_progress_bars()
    try:
        return with_retries(lambda: _commit(files, section), section.patience, say).commit_url
    except Exception as error:
        raise RunFailedError(f"not published to {section.repo}: {reason(error)}") from error


def publish(path: Path, section: HubSection, say: Say, warn: Say) -> None:
    """`push` at the end of a run: reports the outcome, and never fails.

    Args:
        path, section: as in `push`.
        say: takes the URL of the commit.
        warn: takes the error, and the command that publishes the run later.
    """
    try:
        say(f"published: {push(path, section, warn)}")
    except Exception as error:
        command = shlex.join(["python", "-m", "ohl_accel.hub", "push", str(path), str(section.repo)])
        warn(f"{reason(error)}\nnothing is lost; to publish it: {command}")


def pull(repo: str, revision: str | None, folder: Path, say: Say) -> list[str]:
    """Download what `push` published, from the local cache if it is there; returns the files' names.

    Args:
        repo: `user/name`.
        revision: branch, tag or commit; None for the newest.
        folder: created if missing; must be empty.
        say: takes a line for each failure that is retried.

    Raises:
        UserError: for a malformed name, a folder that is not empty, or a repository without a run.
        RunFailedError: if it cannot be downloaded.
    """
    check_name(repo)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty: choose another folder")
    at = f"{repo}@{revision}" if revision else repo
    snapshot = _snapshot(repo, revision, at, say)
    found = [name for name in PUBLISHED if (snapshot / name).is_file()]
    if POLICY_FILE not in found and "config.json" not in found:
        raise UserError(f"{at} has neither {POLICY_FILE} nor a network")
    try:
        if POLICY_FILE in found:
            Policy.load(snapshot)
        for name in found:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(snapshot / name, folder / name)
    except ValueError as error:
        raise UserError(f"{at}: {error}") from error
    except OSError as error:
        raise RunFailedError(f"{folder} cannot be written: {error.strerror}") from error
    return found


def _snapshot(repo: str, revision: str | None, at: str, say: Say) -> Path:
    """The folder in the local cache with the published files, updated if the Hub is available.

    Raises:
        RunFailedError: if they are not in the cache and cannot be downloaded.
    """
    if not sys.stderr.isatty():
        huggingface_hub.utils.disable_progress_bars()

    def fetch(local: bool) -> Path:
        found = huggingface_hub.snapshot_download(
            repo, revision=revision, allow_patterns=list(PUBLISHED), local_files_only=local
        )
        return Path(found)

    try:
        return with_retries(lambda: fetch(local=False), PULL_RETRY_SECONDS, say)
    except AccessError as error:
        raise RunFailedError(f"{at} cannot be downloaded: {error}") from error
    except Exception as error:
        try:
            found = fetch(local=True)
        except Exception:
            raise RunFailedError(f"{at} cannot be downloaded: {reason(error)}") from error
        say(f"{at} is taken from the local cache: {reason(error)}")
        return found


def _commit(files: Files, section: HubSection) -> CommitInfo:
    """One attempt to commit; all of its steps can be repeated."""
    api, repo = HfApi(), section.repo
    assert repo is not None
    api.create_repo(repo, private=section.private or None, exist_ok=True)
    now = api.model_info(repo)
    if section.private and not now.private:
        api.update_repo_settings(repo, private=True)
    if section.gated is not None and now.gated != section.gated:
        api.update_repo_settings(repo, gated=section.gated)
    commit = api.create_commit(
        repo,
        [CommitOperationAdd(name, source) for name, source in files.items()],
        commit_message="The learned policy" if section.policy_only else "Network and policy",
        parent_commit=now.sha,
    )
    if section.version is not None:
        _tag(api, repo, section.version, commit.oid)
    return commit


def _tag(api: HfApi, repo: str, version: str, commit: str) -> None:
    """Tag a commit, unless it has that tag already.

    Raises:
        AccessError: if another commit has the tag.
    """
    named = {tag.name: tag.target_commit for tag in api.list_repo_refs(repo).tags}
    if version not in named:
        api.create_tag(repo, tag=version, revision=commit)
    elif named[version] != commit:
        raise AccessError(
            f"commit {commit[:10]} is published, but hub.version={version} is already the tag of "
            f"{named[version][:10]}: choose another"
        )
