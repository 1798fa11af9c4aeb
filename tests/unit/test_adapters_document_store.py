"""Where the texts behind a vector index's ids come from."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from darl_rerank.adapters.document_store import (
    FaissDocuments,
    SqliteDocuments,
    as_document_store,
    is_document_folder,
    write_sqlite_documents,
)

from darl_rerank.errors import InputError
from darl_rerank.trec.corpora import Document

DOCUMENTS = [Document("a", "T", "one"), Document("b", "", "two"), Document("3", "Drei", "")]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "documents.sqlite"
    write_sqlite_documents(path, DOCUMENTS)
    return path


def raising(number: int) -> str:
    return {0: "zero"}[number]


@pytest.mark.parametrize("store", [["zero"], ("zero",), {0: "zero"}, raising, lambda n: "zero" if n == 0 else None])
def test_lists_mappings_and_callables(store: Any) -> None:
    find = as_document_store(store)
    assert find(0) == "zero"
    assert find(1) is None
    assert find(-1) is None


def test_a_file_gives_what_was_written(file: Path) -> None:
    for find in (as_document_store(str(file)), as_document_store(file), as_document_store(SqliteDocuments(file))):
        assert [find(number) for number in range(4)] == [*DOCUMENTS, None]
    store = SqliteDocuments(file)
    assert len(store) == 3
    assert store[1] == DOCUMENTS[1]
    with pytest.raises(KeyError):
        store[3]
    store.close()


def test_a_folder_gives_documents_by_docid(file: Path) -> None:
    documents = FaissDocuments(file.parent)
    assert is_document_folder(file.parent)
    assert not is_document_folder(file)
    assert dict(documents) == {document.docid: document for document in DOCUMENTS}
    assert documents.get("c") is None
    assert "3" in documents
    assert 3 not in documents
    assert len(documents) == 3


def test_the_digest_is_of_all_documents_in_order(tmp_path: Path) -> None:
    def digest(name: str, documents: list[Document]) -> tuple[int, str]:
        return write_sqlite_documents(tmp_path / name, documents)

    assert digest("1", DOCUMENTS) == digest("2", DOCUMENTS)
    assert digest("3", DOCUMENTS[::-1])[1] != digest("4", DOCUMENTS)[1]
    assert digest("5", [Document("a", "", "xy")])[1] != digest("6", [Document("a", "x", "y")])[1]
    assert digest("7", [])[0] == 0


def test_a_table_of_ones_own(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "own.db")
    connection.execute("CREATE TABLE passages (id INTEGER PRIMARY KEY, text TEXT)")
    connection.execute("INSERT INTO passages VALUES (7, 'seven')")
    connection.commit()
    connection.close()
    store = SqliteDocuments(tmp_path / "own.db", table="passages")
    assert store(7) == Document("7", "", "seven")
    assert store.by_docid("7") == store(7)
    with pytest.raises(InputError, match="expected a table documents with columns id and text"):
        SqliteDocuments(tmp_path / "own.db")


def test_threads_may_share_a_file(file: Path) -> None:
    store = SqliteDocuments(file)
    found: list[bool] = []

    def work() -> None:
        found.extend(store(number % 3) == DOCUMENTS[number % 3] for number in range(300))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 2400


def test_bad_stores(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        SqliteDocuments(tmp_path / "nothing")
    (tmp_path / "text").write_text("not a database " * 100)
    with pytest.raises(InputError, match="expected an SQLite file"):
        SqliteDocuments(tmp_path / "text")
    with pytest.raises(InputError, match="documents must be a list, a mapping"):
        as_document_store(3)
    with pytest.raises(InputError, match="document 2 of the corpus has the docid of an earlier one"):
        write_sqlite_documents(tmp_path / "a", [DOCUMENTS[0], DOCUMENTS[0]])
    with pytest.raises(InputError, match="document x has no text"):
        write_sqlite_documents(tmp_path / "b", [Document("x", " ", "")])


# Writes documents into argv[1] until the limit on file sizes stops it, as a full disk would.
_FILL = """
import resource, signal, sys
from darl_rerank.adapters.document_store import write_sqlite_documents
from darl_rerank.errors import DarlRerankError
from darl_rerank.files import atomic_folder
from darl_rerank.trec.corpora import Document
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, resource.RLIM_INFINITY))
try:
    with atomic_folder(sys.argv[1]) as folder:
        write_sqlite_documents(folder / "documents", (Document(str(i), "", "x" * 1000) for i in range(10_000)))
except DarlRerankError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on file sizes")
def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "index"
    done = subprocess.run([sys.executable, "-c", _FILL, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{path}: could not be written: ")
    assert done.stdout.endswith("; nothing was changed\n")
    assert list(tmp_path.iterdir()) == []
