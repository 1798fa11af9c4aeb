"""SHA-256 of files. That of a large file is noted in the cache, and believed while size and time of change stay."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path

from ..cache import cache_folder
from ..errors import DarlRerankError
from ..files import atomic_write

# Smaller files are read faster than a note is looked up and proven.
_LARGE = 32 << 20


def file_sha256(path: Path) -> str:
    """Digest of the file's content, read whole at every call."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def noted_sha256(path: Path) -> str:
    """As `file_sha256`, but a large file that has been read once is not read again while it is unchanged.

    It is taken for unchanged if path, size, inode and time of change (to the nanosecond) are what they were. Who sets
    them back can deceive it; damage in transit, the case that checkpoints are sealed against, can't.
    """
    found = path.stat()
    if found.st_size < _LARGE:
        return file_sha256(path)
    seal = [str(path.resolve()), found.st_size, found.st_ino, found.st_mtime_ns]
    note = cache_folder() / "digests" / f"{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        noted = json.loads(note.read_text("utf-8"))
        if noted["seal"] == seal:
            return str(noted["sha256"])
    digest = file_sha256(path)
    # A cache that can't be written to is no fault.
    with contextlib.suppress(OSError, DarlRerankError), atomic_write(note) as stream:
        json.dump({"seal": seal, "sha256": digest}, stream)
    return digest
