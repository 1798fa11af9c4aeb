"""A few real products, and small Lucene and FAISS indexes of them, made once a session."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest

from darl_rerank import icecat
from darl_rerank.trec.corpora import Document

PRODUCTS = 150


@pytest.fixture(scope="session")
def products() -> list[Document]:
    return list(islice(icecat.read_products(), PRODUCTS))


@pytest.fixture(scope="session")
def corpus(products: list[Document], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "products.jsonl"
    lines = [json.dumps({"id": p.docid, "title": p.title, "text": p.text}, ensure_ascii=False) for p in products]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


@pytest.fixture(scope="session")
def lucene_index(products: list[Document], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from darl_rerank.adapters.lucene import build_lucene_index

    path = tmp_path_factory.mktemp("indexes") / "lucene"
    assert build_lucene_index(products, path, progress=False).documents == PRODUCTS
    return path


@pytest.fixture(scope="session")
def faiss_index(products: list[Document], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from darl_rerank.adapters.faiss import build

    path = tmp_path_factory.mktemp("indexes") / "faiss"
    assert build(products, path, progress=False).documents == PRODUCTS
    return path
