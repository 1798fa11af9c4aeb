"""Where commands take the documents' texts from: a corpus or an index."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..offline import HasText

log = logging.getLogger(__name__)


def open_texts(
    corpus: str | Path | None, index: str | Path | None
) -> Callable[[Collection[str]], Mapping[str, HasText]]:
    """A function from wanted ids to the documents that are there, of a corpus or of an index."""
    if index is not None:
        from darl_rerank.adapters.document_store import FaissDocuments, is_document_folder
        from darl_rerank.adapters.lucene import LuceneDocuments

        stored = FaissDocuments(index) if is_document_folder(index) else LuceneDocuments(index)
        return lambda _wanted: stored
    assert corpus is not None
    if "://" in str(corpus) or Path(corpus).is_dir():
        from ..trec.parquet_corpus import ParquetDocuments

        return ParquetDocuments(corpus).load
    return lambda wanted: _load(Path(corpus), wanted)


def _load(corpus: Path, wanted: Collection[str]) -> Mapping[str, HasText]:
    from ..trec.corpora import load_documents
    from ..trec.lines import Faults

    # A line that nobody asked for costs nothing; a document that is missing for it is handled by --missing.
    faults = Faults(corpus)
    documents = load_documents(corpus, wanted, faults=faults)
    if len(faults):
        log.warning(f"{len(faults)} lines of the corpus are no documents; the first: {faults.first}")
    return documents
