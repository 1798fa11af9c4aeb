"""FAISS as the first stage: vector search, then the graded second stage on the texts behind the ids."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from darl_rerank.arguments import check_count
from darl_rerank.documents import read_document
from darl_rerank.errors import InputError
from darl_rerank.results import RankedDocument

from .document_store import FaissDocuments, SqliteDocuments, as_document_store
from .faiss_index import build, check_encoder, encode, load_encoder, open_index, read_index_settings
from .pyserini import CanRerank

__all__ = [
    "Candidate",
    "FaissDocuments",
    "FaissReranker",
    "FaissRetriever",
    "SqliteDocuments",
    "build",
    "candidates",
    "load_encoder",
    "read_index_settings",
    "rerank_faiss",
]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One document that the vector search found; what `RankedDocument.document` holds.

    Attributes:
        faiss_id: its id in the index.
        distance: what FAISS returned for it: the larger the nearer for inner product, the smaller for L2.
        docid: the document's own id, else the index's id as text.
        text: what the reranker reads; empty where the document has none, which then is not judged.
        document: what the document store gave.
    """

    faiss_id: int
    distance: float
    docid: str
    text: str
    document: Any


def candidates(distances: ArrayLike, ids: ArrayLike, documents: Any) -> list[list[Candidate]]:
    """The documents behind what `index.search` returned.

    Ids of -1, with which FAISS fills up when it finds too few, are left out; of an id that comes twice for a query,
    the first stays.

    Args:
        distances: shape (queries, depth), or (depth,) for one query.
        ids: same shape, integers.
        documents: see `as_document_store`.

    Raises:
        InputError: shapes that differ, or an id that is not in the store.
    """
    d, i = np.atleast_2d(np.asarray(distances)), np.atleast_2d(np.asarray(ids))
    if d.shape != i.shape or d.ndim != 2:
        raise InputError(f"distances and ids must have one shape (queries, depth), got {d.shape} and {i.shape}")
    if i.size and not np.issubdtype(i.dtype, np.integer):
        raise InputError(f"ids must be integers, got {i.dtype}; FAISS returns distances first, ids second")
    find = as_document_store(documents)
    return [list(_of_query(*row, find)) for row in zip(d, i, strict=True)]


def _of_query(distances: NDArray[Any], ids: NDArray[Any], find: Callable[[int], Any]) -> Iterator[Candidate]:
    seen = set()
    for distance, number in zip(distances.tolist(), ids.tolist(), strict=True):
        if number < 0 or number in seen:
            continue
        seen.add(number)
        document = find(number)
        if document is None:
            raise InputError(f"id {number} of the index is not in the document store")
        read = read_document(document)
        yield Candidate(number, distance, str(number) if read.docid is None else read.docid, read.text, document)


def rerank_faiss(
    reranker: CanRerank,
    queries: Sequence[str],
    distances: ArrayLike,
    ids: ArrayLike,
    documents: Any,
    *,
    top_k: int | None = None,
    fuse: Literal["auto"] | None = None,
) -> list[list[RankedDocument]]:
    """Rerank a ready pair (D, I) of `index.search`.

    Args:
        reranker: what judges.
        queries: their texts.
        distances: D, shape (queries, depth).
        ids: I, same shape.
        documents: see `as_document_store`.
        top_k: how many documents of each query to return; all if None.
        fuse: "auto" orders by the model's scores and the places of `ids` together, see `Reranker.rerank`: whether a
            great distance is good depends on the index.

    Returns:
        For each query its documents, best first; `document` of each is a `Candidate`.

    Raises:
        InputError: as `candidates`, or not one row for each query.
    """
    found = candidates(distances, ids, documents)
    if isinstance(queries, str):
        queries = [queries]
    if len(found) != len(queries):
        raise InputError(f"got {len(queries)} queries but distances and ids for {len(found)}")
    asked = [number for number, group in enumerate(found) if group]
    rules = {} if fuse is None else {"fuse": fuse}
    rankings = reranker.rerank_many([queries[n] for n in asked], [found[n] for n in asked], top_k=top_k, **rules)
    by_query = dict(zip(asked, rankings, strict=True))
    return [list(by_query.get(n, [])) for n in range(len(queries))]


class FaissRetriever:
    """Vector search alone: the first stage, with the texts behind the ids.

    Args:
        index: any `faiss.Index`; its own search settings (nprobe, efSearch) apply.
        documents: texts by the index's ids, see `as_document_store`.
        encoder: query texts to vectors, see `encode`.

    Raises:
        InputError: an index without vectors, or documents or encoder of the wrong kind.
    """

    def __init__(self, index: Any, documents: Any, encoder: Any) -> None:
        if not (hasattr(index, "ntotal") and hasattr(index, "d") and callable(getattr(index, "search", None))):
            raise InputError(f"index must be a faiss.Index, got {type(index).__name__}")
        if index.ntotal == 0:
            raise InputError("the index has no vectors")
        check_encoder(encoder)
        self.index = index
        self.documents = as_document_store(documents)
        self.encoder = encoder

    @classmethod
    def load(cls, folder: str | Path, *, encoder: Any = None) -> FaissRetriever:
        """Open a folder that `build` made.

        Args:
            folder: the folder.
            encoder: the one it was built with; loaded by the name in the folder if None.

        Raises:
            InputError: not such a folder, or files that don't belong together.
            MissingDependencyError: faiss or sentence-transformers is not installed.
        """
        index, documents, name = open_index(folder)
        return cls(index, documents, load_encoder(name) if encoder is None else encoder)

    def retrieve(self, queries: Sequence[str], depth: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """What `index.search` returns for the queries' vectors: (D, I), each of shape (queries, depth).

        Raises:
            InputError: vectors of another dimension than the index's, or `depth` below 1.
        """
        check_count("depth", depth)
        vectors = encode(self.encoder, queries, "query")
        if vectors.shape[1] != self.index.d:
            raise InputError(
                f"the encoder's vectors have {vectors.shape[1]} dimensions, the index has {self.index.d}: "
                "queries need the encoder that the index was built with"
            )
        distances, ids = self.index.search(vectors, depth)
        return distances, ids

    def candidates(self, queries: Sequence[str], depth: int) -> list[list[Candidate]]:
        """The `depth` nearest documents of each query, the nearest first; `fuse` takes them too.

        Raises:
            InputError: as `retrieve` and `candidates`.
        """
        return candidates(*self.retrieve(queries, depth), self.documents) if queries else []


class FaissReranker:
    """Vector search with the graded second stage behind it.

    Safe to call from several threads, as far as index, encoder and reranker are (FAISS's CPU indexes are for search).

    Args:
        index: any `faiss.Index`; its own search settings (nprobe, efSearch) apply.
        documents: texts by the index's ids, see `as_document_store`.
        encoder: query texts to vectors, see `encode`.
        reranker: what judges.

    Attributes:
        retriever: the first stage, a `FaissRetriever`.

    Raises:
        InputError: as `FaissRetriever`.
    """

    def __init__(self, index: Any, documents: Any, encoder: Any, reranker: CanRerank) -> None:
        self.retriever = FaissRetriever(index, documents, encoder)
        self.reranker = reranker

    @classmethod
    def load(cls, folder: str | Path, reranker: CanRerank, *, encoder: Any = None) -> FaissReranker:
        """Open a folder that `build` made; arguments and errors as `FaissRetriever.load`."""
        found = FaissRetriever.load(folder, encoder=encoder)
        return cls(found.index, found.documents, found.encoder, reranker)

    def search(
        self, queries: str | Sequence[str], k: int = 10, depth: int = 100, *, fuse: Literal["auto"] | None = None
    ) -> list[list[RankedDocument]]:
        """For each query the best `k` of the `depth` nearest documents.

        Args:
            queries: one text or several.
            k: how many to return for each.
            depth: how many to judge for each; at least `k` are.
            fuse: see `rerank_faiss`.

        Returns:
            One list a query, best first; `document` of each is a `Candidate`.

        Raises:
            InputError: `k` or `depth` below 1, vectors of another dimension than the index's, an id that is not in
                the document store, or an empty query.
        """
        check_count("k", k)
        check_count("depth", depth)
        texts = [queries] if isinstance(queries, str) else list(queries)
        if not texts:
            return []
        distances, ids = self.retriever.retrieve(texts, max(k, depth))
        return rerank_faiss(self.reranker, texts, distances, ids, self.retriever.documents, top_k=k, fuse=fuse)
