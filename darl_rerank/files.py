"""Outputs that are whole or not there: written under a temporary name, flushed to disk, then moved into place."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from .errors import DarlRerankError, InputError


@contextlib.contextmanager
def _clear_os_errors(path: Path) -> Iterator[None]:
    """Turn 'no space left' and 'permission denied' into one clear error that names `path`."""
    try:
        yield
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise DarlRerankError(
            f"{path}: could not be written: {error.strerror or error}; nothing was changed"
        ) from error


def check_output_file(path: str | Path) -> None:
    """Raise InputError if `path` is a folder: to be called before the work whose result goes there."""
    if Path(path).is_dir():
        raise InputError("is a folder, expected the name of a file to write", path=path)


def check_output_folder(path: str | Path, *, overwrite: bool) -> None:
    """Raise InputError if `path` exists and is not to be overwritten: to be called before the work goes there."""
    if Path(path).exists() and not overwrite:
        raise InputError("already exists; choose another folder or ask to overwrite it", path=path)


@contextlib.contextmanager
def atomic_write(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`; move it onto `path` when the block ends well, delete it when it doesn't.

    Args:
        path: the file to (over)write; its folder is created.
        mode: "w" for UTF-8 text with `\\n` line ends, "wb" for bytes.

    Raises:
        InputError: `path` is a folder.
        DarlRerankError: the file can't be written (disk full, no permission); `path` is as it was before.
    """
    path = Path(path)
    check_output_file(path)
    with _clear_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        # mkstemp makes the file private; outputs get the permissions any other new file would get.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
        try:
            with os.fdopen(descriptor, mode, **text) as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
            raise


@contextlib.contextmanager
def atomic_folder(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; rename it to `path` when the block ends well, remove it when it doesn't.

    Raises:
        InputError: `path` exists and `overwrite` is false.
        DarlRerankError: it can't be written.
    """
    path = Path(path)
    check_output_folder(path, overwrite=overwrite)
    with _clear_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
        try:
            temporary.chmod(0o755)
            yield temporary
            if path.exists():
                # A folder can't be replaced in one step: the old one steps aside and goes when the new one stands.
                aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".old"))
                os.replace(path, aside / path.name)
                os.replace(temporary, path)
                shutil.rmtree(aside, ignore_errors=True)
            else:
                os.replace(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
