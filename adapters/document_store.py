"""Where the texts behind a vector index's ids come from: a list, a mapping, an SQLite file, a callable."""

from __future__ import annotations

import errno
import hashlib
import json
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from darl_rerank.errors import InputError
from darl_rerank.trec.corpora import Document

_TABLE = "documents"
# The file's name in a folder that `darl_rerank.adapters.faiss.build` made.
DOCUMENTS = "documents.sqlite"


class SqliteDocuments:
    """Documents by integer id in an SQLite file, read when they are asked for; may be used from several threads.

    The table has a column `id` (the index's ids) and `text`, and may have `docid` and `title`.

    Args:
        path: the file.
        table: the table's name.

    Raises:
        InputError: no such file, not SQLite, no such table, or columns missing.
    """

    def __init__(self, path: str | Path, *, table: str = _TABLE) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise InputError("no such file", path=path)
        # One connection behind a lock: sqlite3 connections are not to be used by two threads at once.
        self._lock = threading.Lock()
        name = table.replace('"', '""')
        try:
            self._connection = sqlite3.connect(
                f"{self.path.resolve().as_uri()}?mode=ro", uri=True, check_same_thread=False
            )
            found = {row[1] for row in self._connection.execute(f'PRAGMA table_info("{name}")')}
        except sqlite3.DatabaseError as error:
            raise InputError(f"expected an SQLite file: {error}", path=path) from error
        if not {"id", "text"} <= found:
            columns = ", ".join(sorted(found)) or "none: no such table"
            raise InputError(f"expected a table {table} with columns id and text; columns found: {columns}", path=path)
        docid = "docid" if "docid" in found else "id"
        title = "title" if "title" in found else "''"
        self._docid = docid
        self._count = f'SELECT count(*) FROM "{name}"'
        self._docids = f'SELECT CAST({docid} AS TEXT) FROM "{name}" ORDER BY id'
        self._select = f"SELECT CAST({docid} AS TEXT), coalesce({title}, ''), coalesce(text, '') FROM \"{name}\""

    def __call__(self, number: int) -> Document | None:
        with self._lock:
            row = self._connection.execute(f"{self._select} WHERE id = ?", (number,)).fetchone()
        return None if row is None else Document(*row)

    def __getitem__(self, number: int) -> Document:
        document = self(number)
        if document is None:
            raise KeyError(number)
        return document

    def by_docid(self, docid: str) -> Document | None:
        """The document of that id; quick where the file has an index on the column, as our own files do."""
        with self._lock:
            row = self._connection.execute(f"{self._select} WHERE {self._docid} = ?", (docid,)).fetchone()
        return None if row is None else Document(*row)

    def docids(self) -> Iterator[str]:
        """All docids, in the order of the ids."""
        with self._lock:
            rows = self._connection.execute(self._docids).fetchall()
        return (row[0] for row in rows)

    def __len__(self) -> int:
        with self._lock:
            return int(self._connection.execute(self._count).fetchone()[0])

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()


class FaissDocuments(Mapping[str, Document]):
    """Documents by docid, out of an index folder of `darl_rerank.adapters.faiss.build`, read when asked for.

    Raises:
        InputError: no such folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self._store = SqliteDocuments(Path(folder) / DOCUMENTS)

    def __getitem__(self, docid: str) -> Document:
        # SQLite would take the number 3 for the text "3".
        document = self._store.by_docid(docid) if isinstance(docid, str) else None
        if document is None:
            raise KeyError(docid)
        return document

    def __iter__(self) -> Iterator[str]:
        return self._store.docids()

    def __len__(self) -> int:
        return len(self._store)


def is_document_folder(folder: str | Path) -> bool:
    """Whether `folder` looks like one that `darl_rerank.adapters.faiss.build` made."""
    return (Path(folder) / DOCUMENTS).is_file()


def write_sqlite_documents(path: str | Path, documents: Iterable[Document]) -> tuple[int, str]:
    """Write documents to a new SQLite file, ids counted from 0 in the order given.

    Returns:
        How many there are, and a digest of all of them in their order.

    Raises:
        InputError: a docid is there twice, or a document has no text.
        OSError: the file can't be written.
    """
    digest = hashlib.sha256()
    count = 0
    connection = sqlite3.connect(path)

    def rows() -> Iterator[tuple[int, str, str, str]]:
        nonlocal count
        for count, document in enumerate(documents, 1):
            if not document.full_text:
                raise InputError(f"document {document.docid} has no text")
            values = (document.docid, document.title, document.text)
            digest.update(json.dumps(values).encode())
            yield (count - 1, *values)

    try:
        with connection:
            connection.execute(
                f"CREATE TABLE {_TABLE} (id INTEGER PRIMARY KEY, docid TEXT UNIQUE, title TEXT, text TEXT)"
            )
            connection.executemany(f"INSERT INTO {_TABLE} VALUES (?, ?, ?, ?)", rows())
    except sqlite3.IntegrityError:
        raise InputError(f"document {count} of the corpus has the docid of an earlier one") from None
    except sqlite3.OperationalError as error:
        # As any other file says it; `atomic_folder` then names what was to be made.
        raise OSError(errno.ENOSPC if error.sqlite_errorcode == sqlite3.SQLITE_FULL else errno.EIO, str(error),
                      str(path)) from error  # fmt: skip
    finally:
        connection.close()
    return count, digest.hexdigest()


def as_document_store(documents: Any) -> Callable[[int], Any]:
    """A function from an index's id to its document, None for an id that is not there.

    Args:
        documents: a sequence (ids are places), a mapping by id, the path of an SQLite file (see `SqliteDocuments`),
            or a callable that gives None or raises KeyError or IndexError for an unknown id.

    Raises:
        InputError: something else.
    """
    if isinstance(documents, (str, Path)):
        return SqliteDocuments(documents)
    if isinstance(documents, Mapping):
        return documents.get
    if callable(documents):
        return lambda number: _asked(documents, number)
    if isinstance(documents, Sequence):
        return lambda number: documents[number] if 0 <= number < len(documents) else None
    raise InputError(
        "documents must be a list, a mapping by id, the path of an SQLite file or a callable, "
        f"got {type(documents).__name__}"
    )


def _asked(documents: Callable[[int], Any], number: int) -> Any:
    try:
        return documents(number)
    except (KeyError, IndexError):
        return None
