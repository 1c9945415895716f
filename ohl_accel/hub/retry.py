"""Retries of requests to the Hub, and its errors in words."""

import os
from collections.abc import Callable
from typing import TypeVar

import huggingface_hub
from huggingface_hub import errors
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from ohl_accel.errors import RunFailedError, UserError, first_line
from ohl_accel.hub import download

T = TypeVar("T")
_RETRIES = 6
_REFUSALS = frozenset({400, 401, 402, 403, 404, 405, 410, 413, 422})


class AccessError(Exception):
    """The Hub rejected a request, so that retrying does not help."""


def with_retries(action: Callable[[], T], retry_seconds: float, say: Callable[[str], None]) -> T:
    """The result of an action on the Hub, which is retried until it succeeds, is rejected, or has failed for too long.

    Args:
        action: may be called several times.
        retry_seconds: the sum of the six waits, each twice as long as the one before; 0: try once.
        say: takes a line for each failure that is retried.

    Raises:
        AccessError: if the Hub rejects it.
        Exception: the client library's, after the last attempt.
    """
    doubling = wait_exponential(multiplier=retry_seconds / (2**_RETRIES - 1))

    def seconds(attempt: RetryCallState) -> float:
        return max(doubling(attempt), min(_retry_after(_error_of(attempt)), retry_seconds))

    def announce(attempt: RetryCallState) -> None:
        say(f"Hub: {reason(_error_of(attempt))}; retrying in {attempt.upcoming_sleep:.2g} s")

    retrying = Retrying(
        stop=stop_after_attempt(_RETRIES + 1 if retry_seconds else 1),
        wait=seconds,
        retry=retry_if_exception(lambda error: isinstance(error, Exception) and not _is_refusal(error)),
        before_sleep=announce,
        reraise=True,
    )
    try:
        return retrying(action)
    except Exception as error:
        if _is_refusal(error):
            raise AccessError(reason(error)) from error
        raise


def _error_of(attempt: RetryCallState) -> BaseException:
    error = attempt.outcome.exception() if attempt.outcome is not None else None
    assert error is not None
    return error


def reason(error: BaseException) -> str:
    """What happened and what to do about it, in one line, without any secret."""
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, errors.HfHubHTTPError):
        error = error.__cause__  # the client only says that an upload failed
    status = _status(error)
    match error:
        case AccessError() | UserError() | RunFailedError():
            text = str(error)
        case errors.LocalTokenNotFoundError():
            text = "no token: log in with `hf auth login`, or set HF_TOKEN"
        case errors.OfflineModeIsEnabled():
            text = "HF_HUB_OFFLINE is set"
        case errors.GatedRepoError() | errors.RevisionNotFoundError() | errors.RepositoryNotFoundError():
            text = download.reason(error)
        case _ if status == 401:
            text = "the token is not valid (401): log in with `hf auth login`, or set HF_TOKEN"
        case _ if status == 403:
            text = "the token has no write access (403): check the name, or use a token with write access"
        case _ if status == 412:
            text = "someone else has committed in the meantime (412)"
        case _ if status is not None:
            said = getattr(error, "server_message", None)
            text = f"it answered {status}" + (f" ({said.splitlines()[0]})" if said else "")
        case _:
            text = first_line(error)
    return _without_secrets(text)


def secrets() -> dict[str, str]:
    """Where a secret of the local user comes from -> its value."""
    named = {name: os.environ.get(name) for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY")}
    found = {**named, "the token of `hf auth login`": huggingface_hub.get_token()}
    return {name: value.strip() for name, value in found.items() if value and value.strip()}


def _without_secrets(text: str) -> str:
    for name, value in secrets().items():
        for written in (value, value.encode("unicode_escape").decode()):
            text = text.replace(written, f"({name})")
    return text


def _status(error: BaseException) -> int | None:
    return error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None


def _is_refusal(error: Exception) -> bool:
    known = (AccessError, ValueError, errors.LocalTokenNotFoundError, errors.OfflineModeIsEnabled)
    return _status(error) in _REFUSALS or isinstance(error, known)


def _retry_after(error: BaseException) -> float:
    """Seconds to wait as requested by the Hub; 0 if there is no such request."""
    if not isinstance(error, errors.HfHubHTTPError):
        return 0.0
    try:
        return float(error.response.headers.get("Retry-After", 0))
    except ValueError:  # a date
        return 0.0
