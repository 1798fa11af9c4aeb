"""Corpora in Parquet, sorted by id: one is found by reading some hundred, from a disk or any URL of fsspec.

A folder of files of a million documents each, and `corpus.json`, which says the first id of every file:

    corpus.json  part-00000.parquet  part-00001.parquet ...
"""

from __future__ import annotations

import hashlib
import heapq
import json
import tempfile
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any

from ..errors import InputError, MissingDependencyError
from ..files import atomic_folder, check_output_folder
from ..progress import Progress, progress_bar
from .corpora import Document

try:
    import fsspec
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
except ImportError as error:
    raise MissingDependencyError(str(error.name), "ray", "corpora in Parquet") from error

MANIFEST = "corpus.json"
_FORMAT = 1
_SCHEMA = pa.schema([(name, pa.string()) for name in ("docid", "title", "text")])
# Documents of a row group, which is read whole for one of them: half a millisecond for short passages. Each row group
# also costs some hundred bytes of memory in every process that reads the corpus.
_ROW_GROUP = 512
_FILE = 2048 * _ROW_GROUP
# Characters that are sorted in memory at a time.
_SORTED = 256 << 20

_Row = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Converted:
    """What became of a corpus: documents written, and how many were left out because their id was there before."""

    documents: int
    repeated: int


def is_parquet_corpus(path: str | Path) -> bool:
    """Whether `path`, a folder or a URL of one, was made by `write_parquet_corpus`."""
    files, folder = fsspec.core.url_to_fs(str(path))
    return bool(files.isfile(f"{folder}/{MANIFEST}"))


def write_parquet_corpus(
    documents: Iterable[Document], folder: str | Path, *, overwrite: bool = False, progress: Progress = True
) -> Converted:
    """Write a corpus as Parquet sorted by id; memory stays bounded, whatever its size.

    Of documents with the same id the first is kept, as everywhere else.

    Args:
        documents: read once.
        folder: what to make, whole or not at all; needs twice the size of the texts while it is made.
        overwrite: replace what is there.
        progress: see `darl_rerank.progress`.

    Raises:
        InputError: no documents, or `folder` exists and is not to be overwritten.
        DarlRerankError: it can't be written.
    """
    check_output_folder(folder, overwrite=overwrite)
    with atomic_folder(folder, overwrite=overwrite) as target:
        with tempfile.TemporaryDirectory(dir=target, prefix="sorting-") as spilled:
            with progress_bar("sorting", None, unit="doc", progress=progress) as bar:
                spills: list[tuple[Path, int]] = []
                for rows in _portions(documents):
                    spills.append(_spill(sorted(rows, key=itemgetter(0)), Path(spilled) / f"{len(spills)}.arrow"))
                    bar.update(len(rows))
            read = sum(count for _, count in spills)
            if not read:
                raise InputError("there are no documents to write")
            # Python's sort and merge are stable: of equal ids the one that came first stands first.
            merged = heapq.merge(*(_read_spill(path) for path, _ in spills), key=itemgetter(0))
            unique = (next(group) for _, group in groupby(merged, key=itemgetter(0)))
            files: list[dict[str, Any]] = []
            digest = hashlib.sha256()
            with progress_bar("writing", read, unit="doc", progress=progress) as bar:
                while first := next(unique, None):
                    name = f"part-{len(files):05}.parquet"
                    rest = islice(unique, _FILE - 1)
                    files.append({"name": name, "first": first[0], "documents": 0})
                    with pq.ParquetWriter(
                        target / name, _SCHEMA, compression="zstd", write_statistics=["docid"]
                    ) as writer:  # fmt: skip
                        rows = [first, *islice(rest, _ROW_GROUP - 1)]
                        while rows:
                            writer.write_table(_table(rows), row_group_size=_ROW_GROUP)
                            digest.update(json.dumps(rows).encode())
                            files[-1]["documents"] += len(rows)
                            bar.update(len(rows))
                            rows = list(islice(rest, _ROW_GROUP))
        written = sum(file["documents"] for file in files)
        manifest = {"format": _FORMAT, "documents": written, "sha256": digest.hexdigest(), "files": files}
        (target / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")
    return Converted(written, read - written)


def _portions(documents: Iterable[Document]) -> Iterator[list[_Row]]:
    rows: list[_Row] = []
    size = 0
    for document in documents:
        rows.append((document.docid, document.title, document.text))
        # About what Python itself needs for three strings and a tuple.
        size += len(document.title) + len(document.text) + 250
        if size >= _SORTED:
            yield rows
            rows, size = [], 0
    if rows:
        yield rows


def _table(rows: list[_Row]) -> pa.Table:
    return pa.table([pa.array(column, pa.string()) for column in zip(*rows, strict=True)], schema=_SCHEMA)


def _spill(rows: list[_Row], path: Path) -> tuple[Path, int]:
    with pa.ipc.new_file(path, _SCHEMA) as writer:
        for start in range(0, len(rows), _ROW_GROUP):
            writer.write_table(_table(rows[start : start + _ROW_GROUP]))
    return path, len(rows)


def _read_spill(path: Path) -> Iterator[_Row]:
    with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
        for number in range(reader.num_record_batches):
            columns = [column.to_pylist() for column in reader.get_batch(number).columns]
            yield from zip(*columns, strict=True)


class ParquetDocuments:
    """A corpus that `write_parquet_corpus` made, looked up by id; for one thread.

    Args:
        folder: its folder, or a URL of fsspec such as "s3://bucket/corpus".

    Raises:
        InputError: not such a corpus; on reading, a file that is missing or broken.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = str(folder)
        self._files, root = fsspec.core.url_to_fs(self.folder)
        try:
            with self._files.open(f"{root}/{MANIFEST}", "rb") as stream:
                manifest = json.load(stream)
            if manifest["format"] != _FORMAT:
                raise InputError(f"format {manifest['format']}, expected {_FORMAT}", path=f"{self.folder}/{MANIFEST}")
            self._names = [f"{root}/{file['name']}" for file in manifest["files"]]
            self._firsts = [file["first"] for file in manifest["files"]]
            self.documents = int(manifest["documents"])
        except FileNotFoundError:
            raise InputError(
                f"has no {MANIFEST}: expected a folder of `darl-rerank corpus-to-parquet`", path=self.folder
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"is no list of Parquet files: {error!r}", path=f"{self.folder}/{MANIFEST}") from error
        # Footers stay in memory, the files are opened when one of their documents is asked for.
        self._opened = lru_cache(maxsize=None)(self._open)

    def __len__(self) -> int:
        return self.documents

    def load(self, wanted: Collection[str]) -> dict[str, Document]:
        """The wanted documents that are there; each row group is read once."""
        found: dict[str, Document] = {}
        # In order of id the ids of one row group stand together.
        for place, docids in groupby(sorted(wanted), key=self._place):
            if place is not None:
                found.update(self._read(*place, list(docids)))
        return found

    def _place(self, docid: str) -> tuple[int, int] | None:
        """File and row group that have the document if any has."""
        number = bisect_right(self._firsts, docid) - 1
        return None if number < 0 else (number, bisect_right(self._opened(number)[1], docid) - 1)

    def _open(self, number: int) -> tuple[Any, list[str]]:
        """A file, and the first id of each of its row groups."""
        name = self._names[number]
        try:
            file = pq.ParquetFile(self._files.open(name, "rb"))
            groups = [file.metadata.row_group(i).column(0).statistics for i in range(file.num_row_groups)]
            return file, [statistics.min for statistics in groups]
        except (OSError, pa.ArrowException, AttributeError) as error:
            raise InputError(f"can't be read as Parquet: {error}", path=name) from error

    def _read(self, number: int, group: int, docids: list[str]) -> Iterator[tuple[str, Document]]:
        try:
            table = self._opened(number)[0].read_row_group(group, use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"can't be read as Parquet: {error}", path=self._names[number]) from error
        rows = pc.drop_null(pc.index_in(pa.array(docids, pa.string()), value_set=table["docid"]))
        for row in table.take(rows).to_pylist():
            yield row["docid"], Document(**row)
