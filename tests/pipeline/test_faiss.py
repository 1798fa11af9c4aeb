"""FAISS's own indexes with the second stage behind them, and folders that `build` makes and goes on making."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from darl_rerank.adapters import faiss_index as building
from darl_rerank.adapters.faiss import (
    FaissReranker,
    FaissRetriever,
    build,
    load_encoder,
    read_index_settings,
    rerank_faiss,
)
from darl_rerank.adapters.vector_file import VectorFile
from numpy.typing import NDArray

from darl_rerank import Reranker
from darl_rerank.errors import DarlRerankError, InputError
from darl_rerank.trec.corpora import Document

faiss = pytest.importorskip("faiss")

DIMENSION = 16
QUERIES = ["cyan toner cartridge", "laptop case"]


def encoder(texts: list[str]) -> NDArray[np.float16]:
    """Letters counted, in half precision: near texts have near vectors."""
    vectors = np.zeros((len(texts), DIMENSION), dtype=np.float32)
    for row, text in zip(vectors, texts, strict=True):
        for letter in text.lower():
            row[ord(letter) % DIMENSION] += 1
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


@pytest.fixture(scope="module")
def texts(products: list[Document]) -> list[str]:
    return [product.full_text for product in products]


def made(kind: str, texts: list[str]) -> Any:
    quantizer = faiss.IndexFlatIP(DIMENSION)
    index = {
        "flat": lambda: faiss.IndexFlatIP(DIMENSION),
        "l2": lambda: faiss.IndexFlatL2(DIMENSION),
        "float16": lambda: faiss.IndexScalarQuantizer(
            DIMENSION, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
        ),
        "hnsw": lambda: faiss.IndexHNSWFlat(DIMENSION, 16, faiss.METRIC_INNER_PRODUCT),
        "ivf": lambda: faiss.IndexIVFFlat(quantizer, DIMENSION, 20, faiss.METRIC_INNER_PRODUCT),
        "ids": lambda: faiss.IndexIDMap2(faiss.IndexFlatIP(DIMENSION)),
    }[kind]()
    vectors = encoder(texts).astype(np.float32)
    if kind == "ivf":
        index.train(vectors)
    if kind == "ids":
        index.add_with_ids(vectors, np.arange(len(texts)) * 10**12)
    else:
        index.add(vectors)
    return index


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["flat", "l2", "float16", "hnsw", "ivf", "ids"])
def test_every_kind_of_index(kind: str, texts: list[str], tiny_reranker: Reranker) -> None:
    index = made(kind, texts)
    step = 10**12 if kind == "ids" else 1
    documents: Any = {number * step: text for number, text in enumerate(texts)} if kind == "ids" else texts
    distances, ids = index.search(encoder(QUERIES).astype(np.float32), 40)
    if kind == "ivf":  # one list of twenty is looked at, too few for 40
        assert (ids == -1).any()
    rankings = FaissReranker(index, documents, encoder, tiny_reranker).search(QUERIES, k=40, depth=40)
    again = rerank_faiss(tiny_reranker, QUERIES, distances, ids, documents)
    for query, ranking, ready, row in zip(QUERIES, rankings, again, ids, strict=True):
        found = [int(number) for number in row if number >= 0]
        expected = tiny_reranker.rerank(query, [documents[number] for number in found])
        assert [r.document.faiss_id for r in ranking] == [found[r.index] for r in expected]
        assert [r.score for r in ranking] == pytest.approx([r.score for r in expected], abs=1e-5)
        assert [r.document.faiss_id for r in ready] == [r.document.faiss_id for r in ranking]


def test_an_id_that_is_in_the_index_twice_is_judged_once(tiny_reranker: Reranker) -> None:
    index = faiss.IndexIDMap(faiss.IndexFlatIP(DIMENSION))
    index.add_with_ids(encoder(["toner", "toner black", "case"]).astype(np.float32), np.array([5, 5, 6]))
    (ranking,) = FaissReranker(index, {5: "toner", 6: "case"}, encoder, tiny_reranker).search("toner", depth=3)
    assert sorted(r.document.faiss_id for r in ranking) == [5, 6]


def test_a_built_folder_finds_what_the_encoder_finds(
    faiss_index: Path, products: list[Document], tiny_reranker: Reranker
) -> None:
    settings = read_index_settings(faiss_index)
    assert (settings["kind"], settings["dimension"], settings["documents"]) == ("flat", 384, len(products))
    assert sorted(path.name for path in faiss_index.iterdir()) == ["documents.sqlite", "index.faiss", "index.json"]
    assert [path.name for path in faiss_index.parent.iterdir()] == [faiss_index.name]
    model = load_encoder("minilm")
    vectors = model.encode([product.full_text for product in products], show_progress_bar=False)
    similarities = model.encode(QUERIES, show_progress_bar=False) @ vectors.T
    retriever = FaissRetriever.load(faiss_index, encoder=model)
    for found, expected in zip(retriever.candidates(QUERIES, 10), similarities, strict=True):
        best = np.argsort(-expected, kind="stable")[:10]
        assert [c.distance for c in found] == pytest.approx(expected[best].tolist(), abs=1e-4)
        assert {c.docid for c in found[:5]} <= {products[i].docid for i in best}
        assert all(c.document == products[c.faiss_id] for c in found)
    ranking = FaissReranker.load(faiss_index, tiny_reranker, encoder=model).search(QUERIES[0], k=3, depth=10)[0]
    assert [r.rank for r in ranking] == [1, 2, 3]
    assert {r.docid for r in ranking} <= {c.docid for c in retriever.candidates(QUERIES, 10)[0]}


def test_an_interrupted_build_goes_on(
    products: list[Document], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    left = [5]

    def failing(texts: list[str]) -> NDArray[np.float16]:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        encoded.append(len(texts))
        return encoder(texts)

    monkeypatch.setattr(building, "load_encoder", lambda name: failing)
    with pytest.raises(KeyboardInterrupt):
        build(products, tmp_path / "index", encoder="letters", batch_size=16, kind="hnsw", progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.vectors", "index.vectors.lock"]
    left[0] = 1000
    assert (
        build(products, tmp_path / "index", encoder="letters", batch_size=16, kind="hnsw", progress=False).documents
        == 150
    )
    assert sum(encoded) == len(products)
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    build(products, tmp_path / "whole", encoder="letters", batch_size=16, kind="hnsw", progress=False)
    assert (tmp_path / "index" / "index.faiss").read_bytes() == (tmp_path / "whole" / "index.faiss").read_bytes()
    # What another corpus left is of no use to this one.
    left[0] = 2
    with pytest.raises(KeyboardInterrupt):
        build(products[1:], tmp_path / "other", encoder="letters", batch_size=16, progress=False)
    left[0] = 1000
    assert build(products[:20], tmp_path / "other", encoder="letters", progress=False).documents == 20


def test_eight_threads_share_one_searcher(texts: list[str], tiny_reranker: Reranker) -> None:
    searcher = FaissReranker(made("hnsw", texts), texts, encoder, tiny_reranker)
    expected = [[r.document.faiss_id for r in ranking] for ranking in searcher.search(QUERIES, k=10, depth=20)]
    found: list[bool] = []

    def work() -> None:
        for _ in range(2):
            rankings = searcher.search(QUERIES, k=10, depth=20)
            found.append([[r.document.faiss_id for r in ranking] for ranking in rankings] == expected)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert found == [True] * 16


def test_bad_folders(faiss_index: Path, tmp_path: Path, tiny_reranker: Reranker) -> None:
    def broken(name: str) -> Path:
        return Path(shutil.copytree(faiss_index, tmp_path / name))

    cases: list[tuple[Path, str]] = [(tmp_path / "nothing", "expected an index folder")]
    (broken("a") / "index.faiss").write_bytes(b"no index")
    cases.append((tmp_path / "a", "expected an index that FAISS wrote"))
    (broken("b") / "index.json").write_text("{")
    cases.append((tmp_path / "b", "expected JSON"))
    (broken("c") / "index.json").write_text(json.dumps({"format": 2}))
    cases.append((tmp_path / "c", "index of format 1"))
    faiss.write_index(faiss.IndexFlatIP(384), str(broken("d") / "index.faiss"))
    cases.append((tmp_path / "d", "0 vectors but 150 documents"))
    for folder, message in cases:
        with pytest.raises(InputError, match=message):
            FaissReranker.load(folder, tiny_reranker, encoder=encoder)
    with pytest.raises(InputError, match="vectors have 16 dimensions, the index has 384"):
        FaissReranker.load(faiss_index, tiny_reranker, encoder=encoder).search("toner")


def test_bad_builds(products: list[Document], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "load_encoder", lambda name: encoder)
    calls: list[tuple[dict[str, Any], str]] = [
        ({"documents": []}, "the corpus has no documents"),
        ({"kind": "ivf"}, "kind must be auto, flat or hnsw"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"documents": [products[0], products[0]], "missing": "error"}, "has the id of an earlier one"),
        ({"documents": ["", None]}, "no documents that can be indexed: document 0: is empty"),
        ({"missing": "ignore"}, "missing must be error or skip"),
    ]
    for change, message in calls:
        with pytest.raises(InputError, match=message):
            build(**{"documents": products, "path": tmp_path / "index", "progress": False, **change})
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "index").mkdir()
    with pytest.raises(DarlRerankError, match="already exists"):
        build(products, tmp_path / "index", progress=False)
    with (
        VectorFile(tmp_path / "new.vectors", {}),
        pytest.raises(InputError, match="another process is making this index"),
    ):
        build(products, tmp_path / "new", progress=False)


def test_an_encoder_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="could not load the encoder"):
        load_encoder("./no/such/folder")
