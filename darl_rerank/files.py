"""Outputs that are whole or not there: written under a temporary name, flushed to disk, then moved into place."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from .errors import DarlRerankError, InputError

# What the folders have that this package makes: checkpoints, corpora in Parquet, indexes of FAISS and of Lucene.
_MADE_HERE = ("checkpoint.json", "corpus.json", "index.json", "segments_*")
# For a lock file that nobody else knows yet: another process holds it for a moment, to see whether it is abandoned.
_LOCK_SECONDS = 10
# Failures that only writing has; they often name no file.
_WRITE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


@contextlib.contextmanager
def _writing(path: Path, within: Path | None = None) -> Iterator[None]:
    """Turn 'no space left' and 'permission denied' into one clear error that names `path`.

    With `within`, only failures to write and those that name this file or folder or something in it: what the caller
    does meanwhile, such as reading an input, fails under its own name.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        if within is not None and error.errno not in _WRITE_ERRORS:
            named = Path(error.filename) if isinstance(error.filename, (str, Path)) else None
            if named is None or within not in (named, *named.parents):
                raise
        raise DarlRerankError(
            f"{path}: could not be written: {error.strerror or error}; nothing was changed"
        ) from error


def check_output_file(path: str | Path) -> None:
    """Raise InputError if `path` is a folder or a device, or in a file: to be called before the work for it."""
    if Path(path).is_dir():
        raise InputError("is a folder, expected the name of a file to write", path=path)
    if Path(path).exists() and not Path(path).is_file():
        # A file would be put in its place: root would lose /dev/null.
        raise InputError("is a device or a pipe, expected the name of a file to write", path=path)
    there = next(parent for parent in Path(path).absolute().parents if parent.exists())
    if not there.is_dir():
        raise InputError(f"can't be written: {there.name} is a file, not a folder", path=path)


def check_outputs_apart(outputs: Iterable[str | Path | None], inputs: Iterable[str | Path | None]) -> None:
    """Raise InputError if one of `outputs` is an input as well, or another output, whose content would be lost.

    Args:
        outputs: files that will be written, as paths or URLs; those that are None count for nothing.
        inputs: files that will be read, likewise.
    """
    taken = {_place(path): "read by this command" for path in inputs if path is not None}
    for path in outputs:
        if path is None:
            continue
        if use := taken.get(_place(path)):
            raise InputError(f"is {use}, too: name another file to write", path=path)
        taken[_place(path)] = "written by this command"


def _place(path: str | Path) -> str:
    return str(path) if "://" in str(path) else str(Path(path).resolve())


def check_output_folder(path: str | Path, *, overwrite: bool) -> None:
    """Check a folder that a user names, before the work whose result goes there.

    Raises:
        InputError: it exists and is not to be overwritten, or it is nothing that this package has made: whoever
            mistypes a name loses no folder.
    """
    path = Path(path)
    _check_free(path, overwrite=overwrite)
    if not path.is_dir() or not any(path.iterdir()):
        return
    if not any(next(path.glob(pattern), None) for pattern in _MADE_HERE):
        raise InputError(
            "is neither a checkpoint nor a corpus or an index of darl-rerank, so it is not overwritten: choose another "
            "folder, or remove it yourself",
            path=path,
        )


def _check_free(path: Path, *, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise InputError(
            "already exists; choose another folder, or --overwrite (overwrite=True) to replace it", path=path
        )
    if path.exists() and not path.is_dir():
        raise InputError("is a file, expected the name of a folder to write", path=path)


@contextlib.contextmanager
def atomic_write(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`; move it onto `path` when the block ends well, delete it when it doesn't.

    Args:
        path: the file to (over)write; its folder is created. A link stays a link, and what it leads to is written.
        mode: "w" for UTF-8 text with `\\n` line ends, "wb" for bytes.

    Raises:
        InputError: `path` is a folder, a device or a pipe.
        DarlRerankError: the file can't be written (disk full, no permission); `path` is as it was before.
    """
    check_output_file(path)
    path = Path(path).resolve() if Path(path).is_symlink() else Path(path)
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        # mkstemp makes the file private; outputs get the permissions any other new file would get.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
    text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    try:
        with _writing(path, within=Path(name)), os.fdopen(descriptor, mode, **text) as stream:
            yield stream
            with _writing(path):
                stream.flush()
                os.fsync(stream.fileno())
        with _writing(path):
            os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


@contextlib.contextmanager
def temporary_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty hidden folder beside `path`, on the same file system; remove it when the block ends.

    A process that is killed leaves its folder behind. A lock file beside says whose it is: the next call for the same
    `path` removes those that no living process holds. Where the file system has no locks nothing is removed.

    Raises:
        DarlRerankError: it can't be made.
    """
    # An import of 30 ms, which reading needs not.
    from filelock import FileLock

    path = Path(path)
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        folder = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        lock = FileLock(_lock_of(folder), thread_local=False)
        # Where files can't be locked the folder is used all the same, and nobody takes it for abandoned.
        with contextlib.suppress(OSError, NotImplementedError):
            lock.acquire(timeout=_LOCK_SECONDS)
    try:
        with _writing(path):
            folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()
        _lock_of(folder).unlink(missing_ok=True)


def _lock_of(folder: Path) -> Path:
    return folder.with_name(folder.name + ".lock")


def _remove_abandoned(path: Path) -> None:
    """Remove temporary folders for `path` whose lock no process holds."""
    from filelock import FileLock

    ours = re.compile(re.escape(f".{path.name}.") + r"[0-9a-f]{8}\.tmp\.lock")
    for found in [entry for entry in path.parent.iterdir() if ours.fullmatch(entry.name)]:
        # It is held (Timeout, an OSError), or another user's, or just gone.
        with contextlib.suppress(OSError, NotImplementedError), FileLock(found, timeout=0, thread_local=False):
            shutil.rmtree(found.with_suffix(""), ignore_errors=True)
            found.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; rename it to `path` when the block ends well, remove it when it doesn't.

    Raises:
        InputError: `path` exists and `overwrite` is false, or it is a file.
        DarlRerankError: it can't be written.
    """
    path = Path(path)
    _check_free(path, overwrite=overwrite)
    with temporary_folder(path) as temporary:
        with _writing(path, within=temporary):
            yield temporary
        if path.exists():
            _replace_folder(temporary, path)
        else:
            with _writing(path):
                os.replace(temporary, path)


def _replace_folder(new: Path, path: Path) -> None:
    """Put `new` in the place of the folder `path`, which stays where it is if that fails.

    A folder can't be replaced in one step: the old one steps aside, goes when the new one stands, and comes back if it
    doesn't.
    """
    with _writing(path):
        aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".old"))
        old = aside / path.name
        try:
            os.replace(path, old)
            os.replace(new, path)
        except BaseException:
            if old.exists():
                _bring_back(old, path)
            aside.rmdir()
            raise
    shutil.rmtree(aside, ignore_errors=True)


def _bring_back(old: Path, path: Path) -> None:
    try:
        os.replace(old, path)
    except OSError as error:
        raise DarlRerankError(
            f"{path}: could not be replaced, nor could what was there be brought back ({error.strerror or error}): "
            f"it is whole in {old}"
        ) from error
