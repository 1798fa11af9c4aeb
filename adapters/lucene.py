"""Lucene indexes through Pyserini: building one from a corpus, reading documents out of it, retrieving with BM25."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from darl_rerank.arguments import check_count
from darl_rerank.errors import DarlRerankError, InputError
from darl_rerank.files import atomic_folder, check_output_folder
from darl_rerank.progress import Bar, Progress, progress_bar
from darl_rerank.trec.corpora import Document
from darl_rerank.trec.runs import Run, in_trec_order

from .indexable import Indexable, Indexed, Missing
from .jvm import ensure_jvm, jvm_lock
from .stored_text import TEXT_FIELDS, stored_text

_BATCH = 1000
# Every finished index has a file of this name.
_SEGMENTS = "segments_*"


def build_lucene_index(
    documents: Iterable[Any],
    path: str | Path,
    *,
    missing: Missing = "skip",
    total: int | None = None,
    overwrite: bool = False,
    progress: Progress = True,
) -> Indexed:
    """Index documents with Lucene (English analysis, texts stored) and move the whole index into place.

    Indexing runs in one thread, so that the same corpus gives the same order of equal scores.

    Args:
        documents: what `Reranker.rerank` takes, read once and in order; title and text are searched as one field.
        path: the folder to make.
        missing: what to do with a document without text or with an id that was there before: "skip" it, or "error".
        total: how many documents there are, for the time left.
        overwrite: replace an index that is there.
        progress: see `darl_rerank.progress`.

    Returns:
        How many documents were indexed, how many not, and why the first of them not.

    Raises:
        InputError: no document that can be indexed, or (missing="error") one that can't.
        DarlRerankError: `path` exists, or can't be written; nothing is left behind.
        MissingDependencyError: Pyserini or a Java for it is missing.
    """
    check_output_folder(path, overwrite=overwrite)
    wanted = Indexable(documents, missing)
    ensure_jvm()
    from pyserini.index.lucene import LuceneIndexer

    with atomic_folder(path, overwrite=overwrite) as folder:
        bar = progress_bar("indexing", total, unit="doc", progress=progress)
        with bar as shown, _java_errors("Lucene could not index", path):
            with jvm_lock:
                indexer = LuceneIndexer(args=["-index", str(folder.resolve()), "-storeRaw"], threads=1)
            try:
                _add(indexer, wanted, shown)
            finally:
                with jvm_lock:
                    indexer.close()
        indexed = wanted.indexed()
        if not any(folder.glob(_SEGMENTS)):
            # It logs what it can't write, and goes on.
            raise DarlRerankError(f"{path}: could not be written: Lucene left no index, and has logged why")
        stored = len(LuceneDocuments(folder))
        if stored != indexed.documents:
            raise InputError(f"Lucene kept {stored} of {indexed.documents} documents", path=path)
    return indexed


def _add(indexer: Any, documents: Iterable[Document], bar: Bar) -> None:
    rest = iter(documents)
    while batch := list(islice(rest, _BATCH)):
        # Escaped to ASCII: Java strings on the way through pyjnius are safest so.
        lines = [
            json.dumps({
                "id": document.docid,
                "contents": document.full_text,
                "title": document.title,
                "text": document.text,
            })
            for document in batch
        ]  # fmt: skip
        with jvm_lock:
            indexer.add_batch_raw(lines)
        bar.update(len(batch))


def open_lucene_index(path: str | Path) -> Any:
    """A `LuceneSearcher` on an index folder.

    Raises:
        InputError: no index there, or one without documents.
        MissingDependencyError: Pyserini or a Java for it is missing.
    """
    if not any(Path(path).glob(_SEGMENTS)):
        raise InputError("expected a Lucene index, a folder with a file segments_*", path=path)
    ensure_jvm()
    from pyserini.search.lucene import LuceneSearcher

    with jvm_lock, _java_errors("Lucene could not open this index", path):
        # Java resolves relative paths against the folder that was current when the JVM started.
        searcher = LuceneSearcher(str(Path(path).resolve()))
        empty = searcher.num_docs == 0
    if empty:
        raise InputError("the index has no documents", path=path)
    return searcher


class LuceneDocuments(Mapping[str, Document]):
    """Documents of a Lucene index by docid, read when they are asked for. Needs stored texts.

    Args:
        index: an index folder, or a `LuceneSearcher` on one.
        text_fields: which stored fields make up the text, see `stored_text`.

    Raises:
        InputError: no index there or an empty one; on reading, a document whose text is not stored.
    """

    def __init__(self, index: Any, *, text_fields: Sequence[str] = TEXT_FIELDS) -> None:
        self._searcher = open_lucene_index(index) if isinstance(index, (str, Path)) else index
        self._fields = tuple(text_fields)

    def __getitem__(self, docid: str) -> Document:
        with jvm_lock:
            stored = self._searcher.doc(docid)
            if stored is None:
                raise KeyError(docid)
            return Document(docid, "", stored_text(docid, stored, self._fields))

    def __contains__(self, docid: object) -> bool:
        with jvm_lock:
            return isinstance(docid, str) and self._searcher.doc(docid) is not None

    def __iter__(self) -> Iterator[str]:
        for number in range(len(self)):
            with jvm_lock:
                docid = self._searcher.doc(number).docid()
            yield docid

    def __len__(self) -> int:
        with jvm_lock:
            return int(self._searcher.num_docs)


def lucene_search(
    index: Any, topics: Mapping[str, str], *, k: int = 1000, threads: int = 1, k1: float = 0.9, b: float = 0.4
) -> Run:
    """BM25 runs for many queries, in trec_eval's order.

    Args:
        index: an index folder, or a `LuceneSearcher` on one (whose own settings then stay as they are).
        topics: query text by id.
        k: how many documents for each query.
        threads: how many threads search.
        k1, b: BM25's parameters; the defaults are Pyserini's.

    Raises:
        InputError: as `open_lucene_index` and `lucene_hits`, or `k` below 1.
    """
    check_count("k", k)
    if isinstance(index, (str, Path)):
        searcher = open_lucene_index(index)
        with jvm_lock:
            searcher.set_bm25(k1, b)
    else:
        searcher = index
    from jnius import JavaException

    try:
        with jvm_lock:
            found = searcher.batch_search(list(topics.values()), list(topics), k=k, threads=threads)
    except JavaException:
        # A batch only says that it failed; one by one, the query at fault says why.
        found = {qid: lucene_hits(searcher, text, k, f"query {qid}: ") for qid, text in topics.items()}
    return {qid: in_trec_order({hit.docid: hit.score for hit in found.get(qid, ())}) for qid in topics}


def lucene_hits(searcher: Any, query: str, k: int, place: str = "") -> list[Any]:
    """What `searcher.search` returns for one query; `place` stands before errors.

    Raises:
        InputError: Lucene refuses the query, for example for more than 1,024 different words.
    """
    with jvm_lock, _java_errors(f"{place}Lucene could not search"):
        return list(searcher.search(query, k=k))


@contextlib.contextmanager
def _java_errors(what: str, path: str | Path | None = None) -> Iterator[None]:
    """Turn what Java throws into one clear error."""
    from jnius import JavaException

    try:
        yield
    except JavaException as error:
        text = str(getattr(error, "innermessage", None) or error).strip().splitlines()[0]
        # Often the message is a path alone, and only the class says what is wrong with it.
        kind = str(getattr(error, "classname", None) or "").replace("/", ".").split(".")[-1].split("$")[-1]
        raise InputError(f"{what}: {kind}: {text}" if kind else f"{what}: {text}", path=path) from error
