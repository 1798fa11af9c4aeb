"""Reading text files line by line, gzip or not, with errors that name file and line."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ..errors import InputError

# How what people compress files with begins, gzip apart, which is read.
_COMPRESSED = {b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"PK\x03\x04": "zip"}
# Enough to mend a file in one go, few enough to read.
_MOST_FAULTS = 10


def open_bytes(path: Path) -> IO[bytes]:
    """`path` as bytes, decompressed if it begins like gzip (whatever its name).

    Raises:
        InputError: no such file, a folder, or a file that is compressed otherwise.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(8)
        for magic, name in _COMPRESSED.items():
            if start.startswith(magic):
                raise InputError(f"is compressed by {name}; expected a plain or a gzip file", path=path)
        return gzip.open(path, "rb") if start[:2] == b"\x1f\x8b" else path.open("rb")  # type: ignore[return-value]
    except FileNotFoundError:
        raise InputError("no such file", path=path) from None
    except IsADirectoryError:
        raise InputError("is a folder, expected a file", path=path) from None


def read_lines(path: str | Path, faults: Faults | None = None) -> Iterator[tuple[int, str]]:
    """Line numbers (from 1) and lines without their line end; blank lines are left out.

    Args:
        path: the file.
        faults: where lines after the first that are no text are noted, which are then passed over.

    Raises:
        InputError: no such file, not UTF-8, a NUL byte (a binary file), or a gzip file that is cut short or broken.
    """
    path = Path(path)
    number = 0
    with open_bytes(path) as stream:
        try:
            for number, raw in enumerate(stream, 1):
                try:
                    text = decoded_line(raw, number)
                except ValueError as error:
                    if faults is None or number == 1:
                        raise InputError(str(error), path=path, line=number) from error
                    faults.add(number, str(error))
                    continue
                if text.strip():
                    yield number, text
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InputError(f"the gzip file is cut short or broken: {error}", path=path, line=number + 1) from error


def decoded_line(raw: bytes, number: int) -> str:
    """The text of line `number` (from 1) without its line end; ValueError if it is none."""
    if b"\0" in raw:
        raise ValueError("expected text, found binary data")
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"expected UTF-8 text: {error.reason}") from error


def json_object(line: str, number: int, faults: Faults) -> dict[str, Any] | None:
    """The JSON object that line `number` holds; None, and a fault, if it holds none."""
    try:
        values = json.loads(line)
    except RecursionError:
        faults.add(number, "expected a JSON object: it is nested too deeply")
        return None
    except ValueError as error:  # also an integer of more digits than Python reads
        faults.add(number, f"expected a JSON object: {str(error).partition(';')[0]}")
        return None
    if not isinstance(values, dict):
        faults.add(number, f"expected a JSON object, found {type(values).__name__}")
        return None
    return values


class Faults:
    """Collects the faults of a file, so that one reading reports them all; `check()` raises them together."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._found: list[tuple[int, str]] = []
        self._count = 0

    def add(self, line: int, message: str) -> None:
        self._count += 1
        if len(self._found) < _MOST_FAULTS:
            self._found.append((line, message))

    def __len__(self) -> int:
        """How many there are."""
        return self._count

    @property
    def first(self) -> str | None:
        """The first one with its place; None if there is none."""
        if not self._found:
            return None
        line, message = self._found[0]
        return f"{self.path}:{line}: {message}"

    def check(self) -> None:
        """Raise InputError if there were any; the first gives the error its place."""
        if not self._found:
            return
        (line, first), *others = self._found
        more = [f"\n{self.path}:{number}: {message}" for number, message in others]
        left = self._count - len(self._found)
        raise InputError(
            first + "".join(more) + (f"\nand {left} more faults" if left else ""), path=self.path, line=line
        )
