"""The journal of a resumable job: one line for each finished query, so that a killed job goes on where it was.

The first line says what the job is (model, files, options); each further line holds one query's result with a
checksum. A kill in the middle of a write leaves a torn last line, which is dropped.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from ..errors import DarlRerankError, InputError
from ..locks import WriterLock

# 2: a document says whether it was judged.
_FORMAT = 2


class Journal:
    """An open journal; use it in a `with` block. One in which nothing was finished does not outlive an error.

    Args:
        path: the file; made if it is not there.
        job: what decides the result (model, input digests, options), as JSON types.
        restart: throw away what an earlier job left.

    Attributes:
        finished: results by query id, in the order they were written; each is read when it is asked for.

    Raises:
        InputError: the journal is of another job (the error names what differs), is not a journal, or is in use.
        DarlRerankError: it can't be written.
    """

    def __init__(self, path: str | Path, job: Mapping[str, Any], *, restart: bool = False) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = WriterLock(self.path, "another process is working on this job")
        self._stream = self.path.open("a+b")
        self.finished = _Finished(self._stream, self.path)
        try:
            if restart:
                self._stream.truncate(0)
            # Through JSON and back, so that what is compared is what was written.
            self._read(json.loads(json.dumps({"journal": _FORMAT, **job})))
        except BaseException:
            self._close()
            raise

    def _close(self) -> None:
        self._stream.close()
        self._lock.release()

    def _read(self, job: dict[str, Any]) -> None:
        self._stream.seek(0)
        found: dict[str, Any] = {}
        good = 0
        for number, line in enumerate(self._stream, 1):
            values = _decode(line)
            if values is None:
                if number == 1 and line.endswith(b"\n"):
                    raise InputError("is not a journal of darl-rerank", path=self.path)
                break
            if number == 1:
                found = values
            else:
                if number == 2:
                    check_same_job(found, job, self.path)
                self.finished.places[values["qid"]] = (good, len(line))
            good += len(line)
        # Where nothing is finished, nothing is lost if this is another job.
        self._end = good if self.finished else 0
        self._stream.truncate(self._end)
        self._stream.seek(0, os.SEEK_END)
        if not self.finished:
            self._write(_line(job))

    def append(self, qid: str, result: Any) -> None:
        """Write one query's result (JSON types) and see it to disk.

        Raises:
            DarlRerankError: it can't be written.
        """
        line = _line({"qid": qid, "result": result})
        # First noted, then written: an interrupt in between must not find a journal with nothing in it.
        self.finished.places[qid] = (self._end, len(line))
        self._write(line)

    def _write(self, line: bytes) -> None:
        try:
            self._stream.write(line)
            self._stream.flush()
            os.fsync(self._stream.fileno())
        except OSError as error:
            # Closing writes what the stream still holds, which fails likewise.
            with contextlib.suppress(OSError):
                self._stream.close()
            raise DarlRerankError(
                f"{self.path}: could not be written: {error.strerror or error}; what was finished before is kept"
            ) from error
        self._end += len(line)

    def remove(self) -> None:
        """Delete the file: the job's output stands."""
        # Windows deletes no file that is open.
        self._stream.close()
        self.path.unlink(missing_ok=True)
        self._lock.remove()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and not self.finished:
            self.remove()
        self._close()


class _Finished(Mapping[str, Any]):
    """Results of a journal, of which only the places are held: a job may have more of them than memory."""

    def __init__(self, stream: IO[bytes], path: Path) -> None:
        self.places: dict[str, tuple[int, int]] = {}
        self._stream = stream
        self._path = path

    def __getitem__(self, qid: str) -> Any:
        start, length = self.places[qid]
        self._stream.seek(start)
        values = _decode(self._stream.read(length))
        if values is None:
            raise InputError(f"the result of query {qid} was changed by another program", path=self._path)
        return values["result"]

    def __contains__(self, qid: object) -> bool:
        return qid in self.places

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def check_same_job(found: Mapping[str, Any], job: Mapping[str, Any], path: str | Path) -> None:
    """Raise InputError, naming what differs, if what `path` was written for (`found`) is not this job."""
    keys = [key for key in {**job, **found} if job.get(key) != found.get(key)]
    if keys:
        changes = "; ".join(f"{key} was {found.get(key)!r}, now {job.get(key)!r}" for key in keys)
        raise InputError(
            f"is the journal of another job: {changes}. Use the same settings to go on, or --restart to begin anew",
            path=path,
        )


def _line(values: Mapping[str, Any]) -> bytes:
    body = json.dumps(values, ensure_ascii=False).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


def _decode(line: bytes) -> dict[str, Any] | None:
    """A whole line's object, or None for a torn or foreign one."""
    checksum, _, body = line.rstrip(b"\n").partition(b" ")
    try:
        if not line.endswith(b"\n") or int(checksum, 16) != zlib.crc32(body):
            return None
        values = json.loads(body)
    except ValueError:
        return None
    return values if isinstance(values, dict) else None
