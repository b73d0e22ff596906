"""The hub: which commit, which files, and its failures in plain words.

The client reads ``HF_ENDPOINT``, ``HF_HOME``, ``HF_TOKEN`` and ``HF_HUB_OFFLINE`` itself; no token
passes through here, and no message of the client is repeated whole.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlmc.errors import VlmcError
from vlmc.sources.weights import refuse_pickles


class UnreachableError(VlmcError):
    """The model is neither in the cache nor within reach; nothing is known to be wrong."""


def download(
    model: str,
    revision: str | None,
    patterns: Sequence[str],
    *,
    cache: Path | None,
    offline: bool,
    silent: bool = False,
    nested: bool = False,
) -> tuple[Path, str, list[str]]:
    """Fetches a model's files that match ``patterns`` and are not here yet.

    Args:
        model: The hub id.
        revision: Commit, tag or branch; None: the default branch.
        patterns: Globs of file names in the repository's root, or with ``nested`` in a folder.
        cache: Where downloads are kept; None: the client's own cache.
        offline: Use the cache alone.
        silent: Show no progress.
        nested: Whether ``patterns`` name a folder of the repository.

    Returns:
        The folder, the commit, and the names of all files in the folder.

    Raises:
        UnreachableError: The hub cannot be reached, or must not be, and the cache lacks a file.
        VlmcError: The model or revision does not exist, may not be read, or has pickled weights
            only.
    """
    import httpx2
    from huggingface_hub import HfApi, errors

    at = f"{model}@{revision}" if revision else model
    client = HfApi()
    try:
        commit = client.resolve_revision(
            model, revision=revision, cache_dir=cache, local_files_only=offline
        )
        with _silent(silent):
            found = client.snapshot_download(
                model,
                revision=commit,
                cache_dir=cache,
                allow_patterns=list(patterns),
                # Folders of a repository hold other formats or training state.
                ignore_patterns=["*/*/*"] if nested else ["*/*"],
                local_files_only=offline,
            )
        folder = Path(found)
        names = sorted(path.name for path in folder.iterdir() if path.is_file())
    except errors.GatedRepoError as error:
        hint = "accept its terms on its page, then set HF_TOKEN to a token of that account"
        raise VlmcError("access to this model is restricted", at=at, hint=hint) from error
    except errors.RevisionNotFoundError as error:
        raise VlmcError("the model has no such revision", at=at) from error
    except errors.RepositoryNotFoundError as error:
        hint = "check the spelling; a private model needs HF_TOKEN"
        message = "the hub has no such model, or keeps it private"
        raise VlmcError(message, at=at, hint=hint) from error
    except (
        errors.LocalEntryNotFoundError,
        errors.OfflineModeIsEnabled,
        errors.RevisionResolutionError,
        httpx2.TransportError,
        httpx2.InvalidURL,
    ) as error:
        raise _absent(at, offline=offline) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        denied = "set HF_TOKEN to a token that may read it" if status in {401, 403} else None
        raise VlmcError(f"the hub answered with status {status}", at=at, hint=denied) from error
    except OSError as error:
        message = f"the download cannot be stored: {error.strerror or type(error).__name__}"
        raise VlmcError(message, at=str(error.filename or at)) from error
    refuse_pickles(_listed(model, folder, cache) or names, model=model, at=at)
    return folder, folder.name, names


def _listed(model: str, folder: Path, cache: Path | None) -> list[str]:
    """All names of the repository's root, as its last download saw them; empty if unknown."""
    from huggingface_hub import errors, get_cached_repo_tree

    try:
        tree = get_cached_repo_tree(model, revision=folder.name, cache_dir=cache)
    except errors.CachedRepoTreeNotFoundError:
        return []
    return [file.path for file in tree if "/" not in file.path]


@contextmanager
def _silent(silent: bool) -> Iterator[None]:
    """No progress bars of the client within, where asked; the user's own setting is kept."""
    from huggingface_hub import utils

    bars: Any = utils  # its names are exported lazily, out of a type checker's sight

    if not silent or bars.are_progress_bars_disabled():
        yield
        return
    bars.disable_progress_bars()
    try:
        yield
    finally:
        bars.enable_progress_bars()


def _absent(at: str, *, offline: bool) -> UnreachableError:
    if offline:
        hint = "run once without --offline, or name a folder as 'model'"
        return UnreachableError("the model is not in the local cache", at=at, hint=hint)
    hint = "check the network and HF_ENDPOINT, or name a folder as 'model'"
    return UnreachableError("the hub cannot be reached", at=at, hint=hint)
