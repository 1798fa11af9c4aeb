"""One process at a time on a file that a job writes for hours."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout

from .errors import InputError


class WriterLock:
    """A lock on `path`, held from the start; another process that asks for it gets an error at once.

    It is a file of its own, `<path>.lock`, since Windows lets nobody read the bytes that are locked. The system frees
    the lock when the process ends, however it ends.

    Args:
        path: the file that is written.
        busy: what the error says when another process holds the lock.

    Raises:
        InputError: another process holds the lock.
        OSError: the lock file can't be made.
    """

    def __init__(self, path: Path, busy: str) -> None:
        self._path = path.with_name(path.name + ".lock")
        self._lock = FileLock(self._path, timeout=0, thread_local=False)
        try:
            self._lock.acquire()
        except Timeout:
            raise InputError(busy, path=path) from None

    def release(self) -> None:
        """Let others have it; does nothing the second time."""
        self._lock.release()

    def remove(self) -> None:
        """Release the lock and delete its file: the job is done."""
        self.release()
        self._path.unlink(missing_ok=True)
