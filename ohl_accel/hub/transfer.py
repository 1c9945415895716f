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
"""Seconds that the waits between attempts to fetch add up to."""


def push(path: Path, section: HubSection, say: Say) -> str:
    """Publish a finished run in one commit; returns the address of the commit.

    Files that are there already, byte for byte, are not uploaded again, so it may be repeated.

    Args:
        path: the run folder.
        section: what to publish where; its `repo` is set.
        say: takes a line for each failure that is followed by another attempt.

    Raises:
        UserError: for a folder or a name that cannot be published.
        RunFailedError: if the Hub refuses it or has failed for `section.patience` seconds.
    """
    assert section.repo is not None
    check_name(section.repo)
    run = Finished.read(path)
    files = files_of(run, section)
    files[CARD_FILE] = model_card(run, section).encode()
    return upload(files, section, say)


def upload(files: Files, section: HubSection, say: Say) -> str:
    """Put files into a repository in one commit; returns the address of the commit.

    Args:
        files: path in the repository -> content.
        section: where to, and what the repository is like.
        say: takes a line for each failure that is followed by another attempt.

    Raises:
        RunFailedError: if the Hub refuses it or has failed for `section.patience` seconds.
    """
    if not sys.stderr.isatty():
        huggingface_hub.utils.disable_progress_bars()
    try:
        return with_retries(lambda: _commit(files, section), section.patience, say).commit_url
    except Exception as error:
        raise RunFailedError(f"{section.repo} does not have the run: {reason(error)}") from error


def publish(path: Path, section: HubSection, say: Say, warn: Say) -> None:
    """`push` at the end of a run: reports the outcome, and never fails.

    Args:
        path, section: as of `push`.
        say: takes the address of what was published.
        warn: takes what failed, and the command that publishes the run later.
    """
    try:
        say(f"published: {push(path, section, warn)}")
    except Exception as error:
        command = shlex.join(["python", "-m", "ohl_accel.hub", "push", str(path), str(section.repo)])
        warn(f"{reason(error)}\nnothing is lost; this publishes it: {command}")


def pull(repo: str, revision: str | None, folder: Path, say: Say) -> list[str]:
    """Fetch what `push` published, from the local cache where it is there; returns the files' names.

    Args:
        repo: `user/name`.
        revision: branch, tag or commit; None for the newest.
        folder: is made, or is empty.
        say: takes a line for each failure that is followed by another attempt.

    Raises:
        UserError: for a malformed name, a folder in use, or a repository without a run.
        RunFailedError: if it cannot be fetched.
    """
    check_name(repo)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty: choose another folder")
    at = f"{repo}@{revision}" if revision else repo
    snapshot = _snapshot(repo, revision, at, say)
    found = [name for name in PUBLISHED if (snapshot / name).is_file()]
    if POLICY_FILE not in found and "config.json" not in found:
        raise UserError(f"{at} holds neither {POLICY_FILE} nor a network")
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
    """The folder in the local cache with what is published; if the Hub is not available, as it was fetched before.

    Raises:
        RunFailedError: if it is neither there nor can be fetched.
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
        raise RunFailedError(f"{at} cannot be fetched: {error}") from error
    except Exception as error:
        try:
            found = fetch(local=True)
        except Exception:
            raise RunFailedError(f"{at} cannot be fetched: {reason(error)}") from error
        say(f"{at} is taken from the local cache: {reason(error)}")
        return found


def _commit(files: Files, section: HubSection) -> CommitInfo:
    """One attempt; every step of it may be repeated."""
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
            f"commit {commit[:10]} is there, but hub.version={version} already names {named[version][:10]}: choose "
            "another"
        )
