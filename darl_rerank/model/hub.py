"""Checkpoints on the Hugging Face hub: fetched into its cache file by file, pushed in one commit.

The manifest (checkpoint.json) says which files there are; nothing else of a repository is fetched, so no pickle and no
code. `Checkpoint.load` then checks the sha256 of each. What the cache holds is read without a network.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, cast

from ..errors import DarlRerankError, InputError
from .base_model import looks_like_folder
from .manifest import MANIFEST

if TYPE_CHECKING:
    from .checkpoint import Checkpoint

CARD = "README.md"
# What a checkpoint or an export consists of; model.onnx.data holds the tensors of model.onnx.
_SUFFIXES = (".json", ".safetensors", ".onnx", ".data")
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token of an account that may"
_REPOSITORY = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[^@\s]+))?")


def hub_reference(name: str, revision: str | None = None) -> tuple[str, str | None] | None:
    """Repository and revision that `name` means, as in "org/name" and "org/name@revision"; None if it is a path.

    Raises:
        InputError: two different revisions.
    """
    found = _REPOSITORY.fullmatch(name)
    if found is None or looks_like_folder(name):
        return None
    written = found["revision"]
    if written is not None and revision is not None and written != revision:
        raise InputError(f"{name} names the revision {written}, the argument {revision}")
    return found["repository"], written or revision


def fetch(repository: str, revision: str | None = None) -> Path:
    """The folder in the hub's cache with the checkpoint, downloaded where it is not there.

    Args:
        repository: "org/name".
        revision: a branch, tag or commit; the main branch if None.

    Raises:
        InputError: no such repository or revision, or no checkpoint in it.
        DarlRerankError: no network, and the cache does not have it.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    with _clear_errors(repository, revision):
        absent = unreachable()
        try:
            manifest = Path(hf_hub_download(repository, MANIFEST, revision=revision, local_files_only=bool(absent)))
        except LocalEntryNotFoundError as error:
            raise error from absent or error.__cause__
    # A snapshot's folder is named after its commit: all files are of that one, even if the branch moves meanwhile.
    commit = manifest.parent.name
    with _clear_errors(repository, revision):
        for name in _files(manifest):
            hf_hub_download(repository, name, revision=commit, local_files_only=bool(absent))
    return manifest.parent


def unreachable() -> Exception | None:
    """Why no connection to the hub can be made; None if one can, or if none is to be tried.

    Asked once: the hub's client tries six times, in half a minute, before it says so or looks into its cache.
    """
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return None
    http = _http_library()
    try:
        get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except (http.ConnectError, http.ConnectTimeout) as error:
        return cast("Exception", error)
    except http.HTTPError:
        return None  # somebody is there: what is wrong is for the download to find out, which tries again
    return None


def _files(manifest: Path) -> list[str]:
    try:
        files = json.loads(manifest.read_text("utf-8"))["files"]
        names = [str(name) for name in files]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError("expected the manifest of a checkpoint, with its files", path=manifest) from error
    for name in names:
        parts = PurePosixPath(name).parts
        if name.startswith("/") or ".." in parts or "\\" in name or not name.endswith(_SUFFIXES):
            raise InputError(
                f"names {name!r}; a checkpoint has {', '.join(_SUFFIXES)} files in its own folder only", path=manifest
            )
    return names


def push(
    checkpoint: Checkpoint,
    repository: str,
    *,
    card: str,
    revision: str | None = None,
    private: bool | None = None,
    message: str | None = None,
    token: str | None = None,
) -> str:
    """Upload a saved checkpoint in one commit; see `Checkpoint.push_to_hub`."""
    from huggingface_hub import CommitOperationAdd, HfApi

    folder = checkpoint.folder
    if folder is None:
        raise InputError("the checkpoint was not saved: save it to a folder first")
    if checkpoint.model_folder is None and not checkpoint.exported and looks_like_folder(checkpoint.base.name):
        raise InputError(
            f"it stands on {checkpoint.base.name}, a folder of this machine that nobody else has: "
            "push an export, or train on a base model of the hub",
            path=folder,
        )
    api = HfApi(token=token)
    names = [MANIFEST, *checkpoint.sha256]
    additions = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in names]
    additions.append(CommitOperationAdd(path_in_repo=CARD, path_or_fileobj=card.encode()))
    with _clear_errors(repository, revision):
        api.create_repo(repository, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        commit = api.create_commit(
            repository,
            operations=additions,
            revision=revision,
            commit_message=message or "A darl-rerank checkpoint",
        )
    return str(commit.commit_url)


@contextmanager
def _clear_errors(repository: str, revision: str | None) -> Iterator[None]:
    """Turn what the hub's client raises into one line that says what to do."""
    from huggingface_hub import errors

    name = repository if revision is None else f"{repository}@{revision}"
    try:
        yield
    except errors.HFValidationError as error:
        raise InputError(f"{repository}: no name of a model on the hub: {error}") from error
    except errors.RevisionNotFoundError as error:
        raise InputError(f"{name}: the hub has {repository}, but no such revision") from error
    except errors.RepositoryNotFoundError as error:  # private and gated ones too
        raise InputError(
            f"{name}: neither a folder here, nor a model on the hub that you may use; {_LOG_IN}"
        ) from error
    except errors.LocalEntryNotFoundError as error:  # before its base class below: this one means no network
        why = _first_line(error.__cause__ or error)
        raise DarlRerankError(
            f"{name}: neither a folder here, nor in the hub's cache, and the hub was not reached ({why})"
        ) from error
    except errors.EntryNotFoundError as error:
        raise InputError(
            f"{name}: the model on the hub is no checkpoint of darl-rerank, or lacks a file ({_first_line(error)}); "
            "`darl-rerank init` makes one of a decoder LLM, with --base, or of a reranker, with --from"
        ) from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        said = error.server_message or _first_line(error)
        advice = f"; {_LOG_IN}" if status in (401, 403) else ""
        raise DarlRerankError(f"{name}: the hub refused ({status}): {said}{advice}") from error
    except (_http_library().HTTPError, ConnectionError, TimeoutError) as error:
        raise DarlRerankError(f"{name}: the hub was not reached: {_first_line(error)}") from error


def _http_library() -> Any:
    """The HTTP library that this version of the client uses, httpx or httpx2; of it the errors are needed."""
    from huggingface_hub.errors import HfHubHTTPError

    return import_module(HfHubHTTPError.__bases__[0].__module__.partition(".")[0])


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
