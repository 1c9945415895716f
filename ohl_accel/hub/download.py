"""Reading from the Hugging Face Hub.

The client library is imported where it is used, so that a policy on disk does not need it.
"""

from pathlib import Path

from ohl_accel.errors import UserError, first_line, missing_extra


def fetch_file(
    repo_id: str, filename: str, revision: str | None, max_bytes: int, *, offline: bool = False
) -> Path:
    """One file of a model repository, from the local cache or downloaded into it.

    A cached file is found without a network connection as well (`HF_HUB_OFFLINE=1` makes no request at all).

    Args:
        repo_id: `user/name`.
        filename: path of the file in the repository.
        revision: branch, tag or commit; None for `main`.
        max_bytes: a file reported to be larger is not downloaded.
        offline: make no request; only the local cache is searched.

    Raises:
        UserError: for whatever the client raises; names the repository, the revision and what to do.
    """
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise UserError(f"{repo_id}: {missing_extra(error) or error}") from None
    try:
        cached = huggingface_hub.try_to_load_from_cache(repo_id, filename, revision=revision)
        size = 0 if offline or isinstance(cached, str) else _size_on_hub(repo_id, filename, revision)
        if size <= max_bytes:
            path = huggingface_hub.hf_hub_download(
                repo_id, filename, revision=revision, local_files_only=offline
            )
            return Path(path)
    except Exception as error:  # the client's own, its HTTP library's, or the disk's
        at = f" at revision {revision}" if revision else ""
        if offline and isinstance(error, huggingface_hub.errors.LocalEntryNotFoundError):
            raise UserError(
                f"{filename} of {repo_id}{at} has not been downloaded before: with offline=True it is not asked for"
            ) from None
        raise UserError(
            f"{filename} of {repo_id}{at} is not available from the Hub: {reason(error)}"
        ) from error
    raise UserError(f"{filename} of {repo_id} has {size} bytes, more than the allowed {max_bytes}")


def _size_on_hub(repo_id: str, filename: str, revision: str | None) -> int:
    """Bytes of a file as reported by the Hub; 0 if unknown."""
    import huggingface_hub

    try:
        url = huggingface_hub.hf_hub_url(repo_id, filename, revision=revision)
        return huggingface_hub.get_hf_file_metadata(url).size or 0
    except Exception:  # the download gets the same error, tries the cache, and explains it better
        return 0


def reason(error: Exception) -> str:
    """What happened and what to do about it, in one line."""
    from huggingface_hub import errors

    match error:
        case errors.HFValidationError():
            return "not a Hub id, which has the form user/name"
        case errors.GatedRepoError():
            return "it is gated: request access on its page, then log in with `hf auth login`"
        case errors.RepositoryNotFoundError():
            return "there is no such repository, or it is private: check the name, or log in with `hf auth login`"
        case errors.RevisionNotFoundError():
            return "there is no such revision: give a branch, a tag or a whole commit hash"
        case errors.LocalEntryNotFoundError():
            cause = f" ({first_line(error.__cause__)})" if error.__cause__ else ""
            return f"the Hub cannot be reached{cause}, and it is not in the local cache"
        case errors.EntryNotFoundError():
            return "the repository has no such file"
        case _:
            return first_line(error)
