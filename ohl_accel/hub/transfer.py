"""Up to the Hub, in one commit, and down from it."""

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi

from ohl_accel.errors import RunFailedError, UserError
from ohl_accel.hub.access import check_name
from ohl_accel.hub.card import model_card
from ohl_accel.hub.contents import CARD_FILE, PUBLISHED, Files, Finished, files_of
from ohl_accel.hub.patience import AccessError, persist, reason
from ohl_accel.policy import POLICY_FILE, Policy
from ohl_accel.recipe import HubSection

Say = Callable[[str], None]


def push(path: Path, section: HubSection, say: Say) -> str:
    """Publish a finished run in one commit; returns the address of the commit.

    What is there already, up to the last byte, is not uploaded again, so it may be repeated.

    Args:
        path: the run folder.
        section: what to publish where; its `repo` is set.
        say: takes a line for each failure that is followed by another attempt.

    Raises:
        UserError: for a folder or a name that cannot be published.
        RunFailedError: if the Hub refuses it or has failed for `section.patience` seconds.
    """
    repo = section.repo
    assert repo is not None
    check_name(repo)
    run = Finished.read(path)
    files = files_of(run, section)
    files[CARD_FILE] = model_card(run, section).encode()
    try:
        return persist(lambda: _commit(repo, section, files), section.patience, say).commit_url
    except Exception as error:
        raise RunFailedError(f"{path} is not published as {repo}: {reason(error)}") from error


def publish(path: Path, section: HubSection, say: Say) -> None:
    """`push` at the end of a run: says how it went, and never fails."""
    try:
        say(f"published: {push(path, section, say)}")
    except Exception as error:
        command = shlex.join(["python", "-m", "ohl_accel.hub", "push", str(path), str(section.repo)])
        say(f"warning: {reason(error)}\nnothing is lost; this publishes it: {command}")


def pull(repo: str, revision: str | None, folder: Path, say: Say) -> list[str]:
    """Fetch what `push` published, from the local cache where it is there; returns the files' names.

    Args:
        repo: `user/name`.
        revision: branch, tag or commit; None for the newest.
        folder: is made, or is empty.
        say: takes a line for each failure that is followed by another attempt.

    Raises:
        UserError: for a name that is none, a folder in use, or a repository without a run.
        RunFailedError: if it cannot be fetched.
    """
    check_name(repo)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty: choose another folder")
    at = f"{repo}@{revision}" if revision else repo
    try:
        snapshot = persist(
            lambda: huggingface_hub.snapshot_download(
                repo, revision=revision, allow_patterns=list(PUBLISHED)
            ),
            10.0,
            say,
        )
    except Exception as error:
        raise RunFailedError(f"{at} cannot be fetched: {reason(error)}") from error
    found = [name for name in PUBLISHED if (Path(snapshot) / name).is_file()]
    if POLICY_FILE not in found and "config.json" not in found:
        raise UserError(f"{at} holds no {POLICY_FILE} and no network")
    try:
        for name in found:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(snapshot) / name, folder / name)
    except OSError as error:
        raise RunFailedError(f"{folder} cannot be written: {error.strerror}") from error
    if POLICY_FILE in found:
        Policy.load(folder)
    return found


def _commit(repo: str, section: HubSection, files: Files) -> CommitInfo:
    """One attempt; every step of it may be repeated."""
    api = HfApi()
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
    """Name a commit, unless it has that name already.

    Raises:
        AccessError: if another commit has it.
    """
    named = {tag.name: tag.target_commit for tag in api.list_repo_refs(repo).tags}
    if version not in named:
        api.create_tag(repo, tag=version, revision=commit)
    elif named[version] != commit:
        raise AccessError(
            f"commit {commit[:10]} is there, but hub.version={version} already names {named[version][:10]}: choose "
            "another"
        )
