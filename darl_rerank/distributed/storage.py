"""Files that all nodes see: on a shared disk, or under any URL of fsspec such as s3://bucket/folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from ..errors import InputError, MissingDependencyError
from ..files import atomic_write
from ..trec.journal import check_same_job

try:
    import fsspec
except ImportError as error:
    raise MissingDependencyError("fsspec", "ray") from error

_JOB = "job.json"
_PART = "part-{:08}.json"
# Files up to this size are read for the digest of a folder; of larger ones name and size count.
_SMALL = 1 << 20


def is_url(path: str) -> bool:
    """Whether `path` names a file system of its own, such as s3://."""
    return "://" in path


def exists(path: str) -> bool:
    """Whether there is a file or a folder."""
    files, name = fsspec.core.url_to_fs(path)
    return bool(files.exists(name))


@contextlib.contextmanager
def opened(path: str) -> Iterator[IO[bytes]]:
    """A file's bytes.

    Raises:
        InputError: no such file, or a folder.
    """
    try:
        with fsspec.open(path, "rb") as stream:
            yield stream
    except FileNotFoundError:
        raise InputError("no such file", path=path) from None
    except IsADirectoryError:
        raise InputError("is a folder, expected a file", path=path) from None


def read_range(path: str, start: int, end: int) -> bytes:
    """The bytes [start, end) of a file."""
    files, name = fsspec.core.url_to_fs(path)
    return bytes(files.cat_file(name, start=start, end=end))


@contextlib.contextmanager
def local_copy(path: str) -> Iterator[Path]:
    """The file itself if it lies on a disk, else a copy for as long as the block lasts."""
    if not is_url(path):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.rsplit("/", 1)[-1]
        with opened(path) as source, copy.open("wb") as target:
            shutil.copyfileobj(source, target)
        yield copy


def digest(path: str) -> str:
    """SHA-256 of a file, or of a folder: names and sizes of all its files and the content of the small ones."""
    files, root = fsspec.core.url_to_fs(path)
    found = hashlib.sha256()
    for name, about in sorted(files.find(root, detail=True).items()):
        relative = name.removeprefix(root)
        found.update(json.dumps([relative, about["size"]]).encode())
        if about["size"] <= _SMALL or not relative:
            with files.open(name, "rb") as stream:
                while block := stream.read(_SMALL):
                    found.update(block)
    return found.hexdigest()


@contextlib.contextmanager
def whole_output(path: str) -> Iterator[IO[str]]:
    """A UTF-8 text file to write, there when the block ends well and as before when it doesn't."""
    if not is_url(path):
        with atomic_write(path) as stream:
            yield stream
        return
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "output"
        with made.open("w", encoding="utf-8", newline="\n") as stream:
            yield stream
        files, name = fsspec.core.url_to_fs(path)
        files.put_file(str(made), name)


class Parts:
    """The folder of a job under way: `job.json` says what the job is, every other file is a finished part.

    Workers write the parts, each under its own name and whole or not at all: a disk by a rename, an object store by its
    own promise. Two workers that write the same part write the same bytes. So whatever is killed, what is there counts.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._files, self._root = fsspec.core.url_to_fs(folder)

    def begin(self) -> bool:
        """Make the folder if it is not there; whether it is new."""
        new = not self._files.exists(self._root)
        self._files.makedirs(self._root, exist_ok=True)
        return new

    def go_on(self, job: Mapping[str, Any]) -> set[int]:
        """The numbers of the parts that are finished; note what the job is if none was noted.

        Raises:
            InputError: they are of another job; the error says what differs.
        """
        job = json.loads(json.dumps(job))
        try:
            found = json.loads(self._read(_JOB))
        except FileNotFoundError:
            self._write(_JOB, json.dumps(job, indent=1).encode())
            return set()
        except ValueError:
            raise InputError("is not of darl-rerank", path=f"{self.folder}/{_JOB}") from None
        check_same_job(found, job, self.folder)
        return self.finished()

    def finished(self) -> set[int]:
        """The numbers of the parts that are there."""
        names = (name.rsplit("/", 1)[-1] for name in self._files.ls(self._root, detail=False, refresh=True))
        return {int(name[5:-5]) for name in names if name.startswith("part-") and name.endswith(".json")}

    def has(self, number: int) -> bool:
        """Whether a part is finished."""
        return bool(self._files.exists(f"{self._root}/{_PART.format(number)}"))

    def read(self, number: int) -> dict[str, Any]:
        """A finished part.

        Raises:
            InputError: it is broken.
        """
        try:
            values = json.loads(self._read(_PART.format(number)))
        except ValueError:
            raise InputError("is broken; delete it to have it judged again",
                             path=f"{self.folder}/{_PART.format(number)}") from None  # fmt: skip
        assert isinstance(values, dict)
        return values

    def write(self, number: int, values: Mapping[str, Any]) -> None:
        """Finish a part."""
        self._write(_PART.format(number), json.dumps(values, ensure_ascii=False).encode())

    def remove(self) -> None:
        """Delete the folder and all that is in it."""
        with contextlib.suppress(FileNotFoundError):
            self._files.rm(self._root, recursive=True)

    def _read(self, name: str) -> bytes:
        return bytes(self._files.cat_file(f"{self._root}/{name}"))

    def _write(self, name: str, data: bytes) -> None:
        if is_url(self.folder):
            self._files.pipe_file(f"{self._root}/{name}", data)
        else:
            with atomic_write(Path(self.folder) / name, "wb") as stream:
                stream.write(data)
