"""Where the texts behind a vector index's ids come from: a list, a mapping, an SQLite file, a callable."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from darl_rerank.errors import InputError
from darl_rerank.trec.corpora import Document

_TABLE = "documents"


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
        self._count = f'SELECT count(*) FROM "{name}"'
        self._select = f"SELECT CAST({docid} AS TEXT), coalesce({title}, ''), coalesce(text, '') FROM \"{name}\""

    def __call__(self, number: int) -> Document | None:
        with self._lock:
            row = self._connection.execute(f"{self._select} WHERE id = ?", (number,)).fetchone()
        return None if row is None else Document(*row)

    def __len__(self) -> int:
        with self._lock:
            return int(self._connection.execute(self._count).fetchone()[0])

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


def write_sqlite_documents(path: str | Path, documents: Iterable[Document]) -> int:
    """Write documents to a new SQLite file, ids counted from 0 in the order given; returns how many.

    Raises:
        InputError: a docid is there twice.
    """
    connection = sqlite3.connect(path)
    try:
        with connection:
            connection.execute(
                f"CREATE TABLE {_TABLE} (id INTEGER PRIMARY KEY, docid TEXT UNIQUE, title TEXT, text TEXT)"
            )
            rows = ((number, d.docid, d.title, d.text) for number, d in enumerate(documents))
            connection.executemany(f"INSERT INTO {_TABLE} VALUES (?, ?, ?, ?)", rows)
        return int(connection.execute(f"SELECT count(*) FROM {_TABLE}").fetchone()[0])
    except sqlite3.IntegrityError as error:
        raise InputError(f"a document is twice in the corpus: {error}") from error
    finally:
        connection.close()


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
