"""Vectors on their way into an index: a file that a killed job leaves behind and goes on with."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from darl_rerank.errors import InputError
from darl_rerank.locks import WriterLock

_ROWS = 4096


class VectorFile:
    """Rows of float32 behind one line of JSON that says what they are; use it in a `with` block.

    A file of other content (another encoder, changed texts) is begun anew, since its vectors are of no use. A row that
    a kill left torn is dropped.

    Args:
        path: the file; made if it is not there.
        content: what decides the vectors, as JSON types.

    Raises:
        InputError: another process is writing it, or a row of another dimension is appended.
    """

    def __init__(self, path: Path, content: Mapping[str, Any]) -> None:
        self.path = path
        self._content = dict(content)
        self._lock = WriterLock(path, "another process is making this index")
        self._stream = path.open("a+b")
        self._dimension = 0
        self._start = 0
        self._read_header()

    def _read_header(self) -> None:
        self._stream.seek(0)
        line = self._stream.readline()
        try:
            found = json.loads(line)
            dimension = int(found.pop("dimension"))
        except (ValueError, AttributeError, KeyError, TypeError):
            found, dimension = None, 0
        if found != self._content or dimension < 1:
            self._stream.truncate(0)
            return
        self._dimension, self._start = dimension, len(line)
        self._stream.truncate(self._start + len(self) * dimension * 4)

    def __len__(self) -> int:
        """How many rows there are."""
        if not self._dimension:
            return 0
        return (self._stream.seek(0, 2) - self._start) // (4 * self._dimension)

    def append(self, vectors: NDArray[np.float32]) -> None:
        """Add rows, shape (n, d); the first call decides d."""
        if not self._dimension:
            self._dimension = int(vectors.shape[1])
            header = json.dumps({**self._content, "dimension": self._dimension}).encode() + b"\n"
            self._stream.write(header)
            self._start = len(header)
        if vectors.shape[1] != self._dimension:
            raise InputError(f"the encoder returned {vectors.shape[1]} dimensions after {self._dimension}")
        self._stream.write(np.ascontiguousarray(vectors, dtype="<f4").tobytes())
        self._stream.flush()

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        """The rows from the first on, in blocks of shape (at most 4096, d)."""
        self._stream.seek(self._start)
        while block := self._stream.read(_ROWS * self._dimension * 4):
            yield np.frombuffer(block, dtype="<f4").reshape(-1, self._dimension)

    def __enter__(self) -> VectorFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()
        self._lock.release()

    def remove(self) -> None:
        """Delete the file: the index is whole."""
        # Windows deletes no file that is open.
        self._stream.close()
        self.path.unlink(missing_ok=True)
        self._lock.remove()
