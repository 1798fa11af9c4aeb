"""The indexes of the product catalogue that comes with the package, made once in the user's cache."""

from __future__ import annotations

import logging
from pathlib import Path

from .. import icecat

log = logging.getLogger(__name__)


def lucene_index() -> Path:
    """The Lucene index of the catalogue; says so on stderr when it has to be made."""
    path = _cached("icecat-lucene")
    if not path.is_dir():
        from darl_rerank.adapters.jvm import ensure_jvm
        from darl_rerank.adapters.lucene import build_lucene_index

        ensure_jvm()
        log.info(f"Indexing {icecat.PRODUCTS:,} products with Lucene, once")
        build_lucene_index(icecat.read_products(), path, total=icecat.PRODUCTS)
    return path


def faiss_index() -> Path:
    """The FAISS index of the catalogue, an HNSW graph of MiniLM's vectors; some minutes of work on two cores."""
    path = _cached("icecat-minilm-hnsw")
    if not path.is_dir():
        from darl_rerank.adapters.faiss import build

        log.info(f"Encoding {icecat.PRODUCTS:,} products with MiniLM, once")
        build(icecat.read_products(), path, kind="hnsw")
    return path


def _cached(name: str) -> Path:
    from ..cache import cache_folder
    from ..model.digests import file_sha256

    # A catalogue that changes with the package gets an index of its own.
    return cache_folder() / f"{name}-{file_sha256(icecat.FOLDER / 'corpus.jsonl.gz')[:12]}"
