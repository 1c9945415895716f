"""Checks before a run begins whether it can be published."""

from collections.abc import Callable

import huggingface_hub
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ohl_accel.errors import UserError
from ohl_accel.hub.retry import AccessError, reason, with_retries
from ohl_accel.recipe import HubSection

_RETRY_SECONDS_AT_THE_START = 10.0
NO_LICENSE = (
    "no license is given, so nobody may use what is published: set hub.license or --license (apache-2.0, ...)"
)
"""What is said about a publication without `hub.license`."""


def check_name(repo: str) -> None:
    """Reject names that the Hub would reject.

    Raises:
        UserError: saying what is wrong with the name.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"hub.repo={repo}: the Hub does not accept this name: {error}") from None
    if repo.count("/") != 1:
        raise UserError(f"hub.repo={repo}: must be user/name (or organization/name)")


def check_access(section: HubSection, say: Callable[[str], None]) -> None:
    """Create the repository if there is none, and check write access to it.

    A run starts even if the Hub does not answer: the upload comes later, perhaps from another machine.

    Args:
        section: the recipe's hub section, with a `repo`.
        say: takes a line if access could not be checked.

    Raises:
        UserError: for a name, a token or a version that the Hub does not accept.
    """
    repo = section.repo
    assert repo is not None
    check_name(repo)
    if huggingface_hub.get_token() is None:
        raise UserError(
            f"hub.repo={repo}: no token for the Hub: log in with `hf auth login`, or set HF_TOKEN"
        )
    try:
        with_retries(lambda: _ask(repo, section), min(section.patience, _RETRY_SECONDS_AT_THE_START), say)
    except AccessError as error:
        if isinstance(error.__cause__, huggingface_hub.errors.OfflineModeIsEnabled):
            say(f"{error}: nothing will be published unless it is unset for `ohl_accel.hub push`")
            return
        raise UserError(f"hub.repo={repo}: {error}") from error
    except Exception as error:
        say(f"the Hub cannot be reached ({reason(error)}): write access to {repo} was not checked")


def _ask(repo: str, section: HubSection) -> None:
    api = huggingface_hub.HfApi()
    api.create_repo(repo, private=section.private or None, exist_ok=True)
    api.auth_check(repo, write=True)
    if section.version is not None:
        taken = {tag.name: tag.target_commit for tag in api.list_repo_refs(repo).tags}
        if section.version in taken:
            raise AccessError(
                f"hub.version={section.version} is already the tag of commit {taken[section.version][:10]}; choose "
                "another"
            )
