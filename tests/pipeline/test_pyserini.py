"""Pyserini's own searchers with the second stage behind them; real Lucene, real FAISS, the tiny model."""

from __future__ import annotations

import copy
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from darl_rerank.adapters.fusion import FusionSearcher
from darl_rerank.adapters.lucene import (
    LuceneDocuments,
    build_lucene_index,
    lucene_search,
    open_lucene_index,
)
from darl_rerank.adapters.pyserini import RerankingSearcher, ensure_jvm, rerank_batch, rerank_hits
from numpy.typing import NDArray

from darl_rerank import Reranker
from darl_rerank.cli import cli
from darl_rerank.errors import DarlRerankError, InputError
from darl_rerank.trec.corpora import Document
from darl_rerank.trec.runs import read_run

TOPICS = {"1": "cyan toner cartridge", "2": "laptop case", "3": "xeon processor", "4": "qqxyzzy", "5": "black cable"}


@pytest.fixture(scope="module")
def searcher(lucene_index: Path) -> Any:
    ensure_jvm()
    from pyserini.search.lucene import LuceneSearcher

    return LuceneSearcher(str(lucene_index))


@pytest.fixture(scope="module")
def reranking(searcher: Any, tiny_reranker: Reranker) -> RerankingSearcher:
    return RerankingSearcher(searcher, tiny_reranker, depth=20)


# The first example of Pyserini's README, with a batch and the writer of its command line.
EXAMPLE = """
from pyserini.output_writer import OutputFormat, get_output_writer
from pyserini.search.lucene import LuceneSearcher

searcher = LuceneSearcher(index)
hits = searcher.search('cyan toner cartridge')
for i in range(len(hits)):
    print(f'{i+1:2} {hits[i].docid:4} {hits[i].score:.5f}')
results = searcher.batch_search(list(topics.values()), list(topics), k=20, threads=2)
with get_output_writer(output, OutputFormat.TREC, 'w', max_hits=20, tag='run', topics=topics) as writer:
    for qid in topics:
        writer.write(qid, results[qid])
"""
CHANGED = EXAMPLE.replace("= LuceneSearcher(index)", "= RerankingSearcher(LuceneSearcher(index), reranker, depth=20)")


def test_one_changed_line_gives_what_the_command_line_gives(
    lucene_index: Path, tiny_model: Path, tiny_reranker: Reranker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ensure_jvm()
    names: list[dict[str, Any]] = []
    for code, output in ((EXAMPLE, "plain.trec"), (CHANGED, "reranked.trec")):
        values = {
            "index": str(lucene_index), "output": str(tmp_path / output), "topics": TOPICS,
            "reranker": tiny_reranker, "RerankingSearcher": RerankingSearcher,
        }  # fmt: skip
        exec(code, values)
        names.append(values)
    plain, changed = names
    assert len(changed["hits"]) == len(plain["hits"]) == 10
    # What isinstance sees is the same type, and all that a plain hit has is there.
    for hit in changed["hits"]:
        assert isinstance(hit, type(plain["hits"][0]))
        assert hit.lucene_document.get("id") == hit.docid
        assert hit.grade_name in {grade.name for grade in tiny_reranker.scale.grades}
    assert type(changed["results"]) is type(plain["results"])
    assert {qid: type(hits) for qid, hits in changed["results"].items()} == dict.fromkeys(TOPICS, list)
    assert len(capsys.readouterr().out.splitlines()) == 20

    (tmp_path / "topics.tsv").write_text("".join(f"{qid}\t{text}\n" for qid, text in TOPICS.items()))
    result = CliRunner().invoke(cli, [
        "rerank", str(tmp_path / "plain.trec"), str(tmp_path / "topics.tsv"), str(tmp_path / "cli.trec"),
        "--index", str(lucene_index), "--model", str(tiny_model), "--precision", "float32", "--engine", "torch",
        "--tag", "run",
    ])  # fmt: skip
    assert result.exit_code == 0, result.output
    reranked, by_cli = read_run(tmp_path / "reranked.trec"), read_run(tmp_path / "cli.trec")
    assert {q: [e.docid for e in es] for q, es in reranked.items()} == {
        q: [e.docid for e in es] for q, es in by_cli.items()
    }
    for qid, entries in by_cli.items():
        assert [e.score for e in reranked[qid]] == pytest.approx([e.score for e in entries], abs=3e-6)
    assert set(reranked) == {"1", "2", "3", "5"}
    # The model did change the order, so equality above says something.
    before = read_run(tmp_path / "plain.trec")
    assert any([e.docid for e in before[q]] != [e.docid for e in reranked[q]] for q in reranked)


def test_each_hit_says_what_the_reranker_says(
    reranking: RerankingSearcher, searcher: Any, tiny_reranker: Reranker, products: list[Document]
) -> None:
    plain = searcher.search("toner", k=20)
    hits = reranking.search("toner", k=20)
    texts = {product.docid: product.full_text for product in products}
    expected = tiny_reranker.rerank("toner", [texts[hit.docid] for hit in plain])
    assert [hit.first_stage_rank for hit in hits] == [ranked.index + 1 for ranked in expected]
    for hit, ranked in zip(hits, expected, strict=True):
        assert hit.docid == plain[ranked.index].docid
        assert hit.first_stage_score == plain[ranked.index].score
        assert hit.score == pytest.approx(ranked.score, abs=2e-6 * len(hits))
        assert (hit.grade, hit.grade_name, hit.novelty) == (ranked.grade, ranked.grade_name, ranked.novelty)
        assert hit.probabilities == pytest.approx(ranked.probabilities, abs=1e-6)
        assert copy.copy(hit).docid == hit.docid
    for a, b in pairwise(hits):
        assert f"{a.score:.6f}" != f"{b.score:.6f}"
        assert a.score > b.score


def test_batches_give_what_single_searches_give(reranking: RerankingSearcher) -> None:
    batch = reranking.batch_search(list(TOPICS.values()), list(TOPICS), k=7, threads=2)
    assert list(batch) == list(TOPICS)
    assert batch["4"] == []
    for qid, text in TOPICS.items():
        alone = reranking.search(text, k=7)
        assert [hit.docid for hit in batch[qid]] == [hit.docid for hit in alone]
        assert [hit.score for hit in batch[qid]] == pytest.approx([hit.score for hit in alone], abs=1e-5)


def test_hits_below_the_depth_follow_unjudged(searcher: Any, tiny_reranker: Reranker) -> None:
    plain = searcher.search("original black", k=12)
    hits = RerankingSearcher(searcher, tiny_reranker, depth=5).search("original black", k=12)
    assert len(plain) == 12
    assert sorted(hit.first_stage_rank for hit in hits[:5]) == [1, 2, 3, 4, 5]
    assert [hit.docid for hit in hits[5:]] == [hit.docid for hit in plain[5:]]
    assert [hit.grade is None for hit in hits] == [False] * 5 + [True] * 7
    assert all(a.score > b.score for a, b in pairwise(hits))


def test_everything_else_is_asked_of_the_searcher(reranking: RerankingSearcher, searcher: Any) -> None:
    assert reranking.num_docs == searcher.num_docs
    assert reranking.doc(0).docid() == searcher.doc(0).docid()
    with pytest.raises(AttributeError, match="nothing_like_it"):
        reranking.nothing_like_it  # noqa: B018


def test_a_lucene_query_needs_its_text(reranking: RerankingSearcher) -> None:
    from pyserini.search.lucene import querybuilder

    query = querybuilder.get_term_query("toner")
    with pytest.raises(InputError, match="the reranker needs the query's text"):
        reranking.search(query)
    hits = reranking.search(query, k=3, query_text="toner")
    assert [hit.docid for hit in hits] == [hit.docid for hit in reranking.search("toner", k=3)]


def test_eight_threads_share_one_searcher(reranking: RerankingSearcher) -> None:
    """Each thread asks all queries, every other time as a batch; all get what one thread alone gets."""
    expected = {qid: [hit.docid for hit in reranking.search(text, k=10)] for qid, text in TOPICS.items()}
    wrong: list[object] = []
    done: list[int] = []

    def work(number: int) -> None:
        try:
            for _ in range(2):
                batch = reranking.batch_search(list(TOPICS.values()), list(TOPICS), k=10, threads=2)
                for qid, text in list(TOPICS.items())[number % 5 :] + list(TOPICS.items())[: number % 5]:
                    for hits in (batch[qid], reranking.search(text, k=10)):
                        if [hit.docid for hit in hits] != expected[qid]:
                            wrong.append((qid, [hit.docid for hit in hits]))
        except BaseException as error:  # reported below, in the thread that asserts
            wrong.append(error)
        done.append(number)

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=240)
    assert sorted(done) == list(range(8)), "some threads hang"
    assert wrong == []


class WordEncoder:
    """A query encoder as Pyserini's searchers take it: hashed words, no model."""

    words = ("toner", "laptop", "processor", "cable", "cartridge", "black", "case", "xeon")

    def encode(self, query: str, **_: Any) -> NDArray[np.float32]:
        text = query.lower()
        vector = np.array([0.1] + [float(word in text) for word in self.words], dtype=np.float32)
        return vector / np.linalg.norm(vector)


@pytest.fixture(scope="module")
def dense(products: list[Document], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder as Pyserini's own encoding command makes it, opened by its own searcher."""
    import faiss

    ensure_jvm()
    from pyserini.search.faiss import FaissSearcher

    folder = tmp_path_factory.mktemp("dense")
    index = faiss.IndexFlatIP(9)
    index.add(np.stack([WordEncoder().encode(product.full_text) for product in products]))
    faiss.write_index(index, str(folder / "index"))
    (folder / "docid").write_text("".join(f"{product.docid}\n" for product in products))
    return FaissSearcher(str(folder), WordEncoder())


@pytest.mark.parametrize("kind", ["dense", "hybrid", "fusion"])
def test_searchers_whose_hits_carry_no_text(
    kind: str, dense: Any, searcher: Any, tiny_reranker: Reranker, products: list[Document]
) -> None:
    from pyserini.search.hybrid import HybridSearcher

    first: Any = {
        "dense": dense,
        "hybrid": HybridSearcher(dense, searcher),
        "fusion": FusionSearcher([searcher, dense], depth=30),
    }[kind]
    texts = {product.docid: product for product in products}
    for lookup in (searcher, texts, lambda docid: texts[docid].full_text):
        reranking = RerankingSearcher(first, tiny_reranker, depth=15, lookup=lookup)
        hits = reranking.search("laptop case", k=5)
        batch = reranking.batch_search(["laptop case", "toner"], ["a", "b"], k=5)
        assert [hit.docid for hit in batch["a"]] == [hit.docid for hit in hits]
        assert len(batch["b"]) == 5
        assert all(hit.grade is not None for hit in hits)
        if kind != "hybrid":  # whose own order of equal scores changes from run to run
            expected = first.search("laptop case", k=15)
            assert sorted(hit.first_stage_rank for hit in reranking.search("laptop case", k=15)) == list(range(1, 16))
            assert {hit.docid for hit in hits} <= {hit.docid for hit in expected}
    if kind != "fusion":
        with pytest.raises(InputError, match=r"DenseSearchResult carries no text.* give lookup"):
            RerankingSearcher(first, tiny_reranker).search("laptop case")


def test_names_of_arguments_of_the_dense_searchers(dense: Any, searcher: Any, tiny_reranker: Reranker) -> None:
    reranking = RerankingSearcher(dense, tiny_reranker, depth=5, lookup=searcher)
    assert len(reranking.search(query="toner", k=2)) == 2
    assert len(reranking.batch_search(["toner"], q_ids=["1"], k=2)["1"]) == 2
    with pytest.raises(InputError, match="return_vector"):
        reranking.search("toner", return_vector=True)


def test_documents_of_an_index(lucene_index: Path, products: list[Document]) -> None:
    documents = LuceneDocuments(lucene_index)
    assert len(documents) == len(products)
    assert list(documents) == [product.docid for product in products]
    assert all(documents[product.docid].full_text == product.full_text for product in products)
    assert documents.get("nothing") is None
    assert "nothing" not in documents
    assert products[0].docid in documents
    titles = LuceneDocuments(lucene_index, text_fields=["title"])
    assert titles[products[0].docid].full_text == products[0].title


def test_bm25_runs(lucene_index: Path, searcher: Any) -> None:
    run = lucene_search(lucene_index, TOPICS, k=5, threads=2)
    assert list(run) == list(TOPICS)
    assert run["4"] == []
    for qid, text in TOPICS.items():
        assert {entry.docid for entry in run[qid]} == {hit.docid for hit in searcher.search(text, k=5)}
    with pytest.raises(InputError, match="query 2: Lucene could not search: TooManyClauses: maxClauseCount"):
        lucene_search(lucene_index, {"1": "toner", "2": " ".join(map(str, range(3000)))})


def index_without(folder: Path, *options: str) -> Path:
    """An index that Pyserini made with other options than ours."""
    ensure_jvm()
    from pyserini.index.lucene import LuceneIndexer

    indexer = LuceneIndexer(args=["-index", str(folder), *options], threads=1)
    indexer.add_doc_raw('{"id": "d1", "contents": "toner"}')
    indexer.close()
    return folder


def test_an_index_without_stored_text_is_named(tmp_path: Path, tiny_reranker: Reranker) -> None:
    searcher = open_lucene_index(index_without(tmp_path / "bare"))
    reranking = RerankingSearcher(searcher, tiny_reranker)
    message = "document d1: no text under title, contents, text, .* or raw: .*-storeRaw or -storeContents"
    with pytest.raises(InputError, match=message):
        reranking.search("toner")
    with pytest.raises(InputError, match=message):
        LuceneDocuments(searcher)["d1"]
    assert len(RerankingSearcher(searcher, tiny_reranker, lookup={"d1": "toner"}).search("toner")) == 1
    stored = open_lucene_index(index_without(tmp_path / "contents", "-storeContents"))
    assert len(RerankingSearcher(stored, tiny_reranker).search("toner")) == 1


def test_an_empty_or_broken_index_is_named(tmp_path: Path, tiny_reranker: Reranker) -> None:
    ensure_jvm()
    from pyserini.index.lucene import LuceneIndexer
    from pyserini.search.lucene import LuceneSearcher

    empty = tmp_path / "empty"
    LuceneIndexer(str(empty), threads=1).close()
    with pytest.raises(InputError, match="empty: the index has no documents"):
        open_lucene_index(empty)
    with pytest.raises(InputError, match="empty: the index has no documents"):
        RerankingSearcher(LuceneSearcher(str(empty)), tiny_reranker)
    (tmp_path / "segments_1").write_bytes(b"not Lucene's")
    with pytest.raises(InputError, match="Lucene could not open this index"):
        open_lucene_index(tmp_path)
    with pytest.raises(InputError, match=r"expected a Lucene index, a folder with a file segments_\*"):
        open_lucene_index(tmp_path / "nothing")


def test_relative_paths_mean_the_folder_of_the_moment(
    products: list[Document], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Java itself goes on with the folder in which it was started."""
    ensure_jvm()
    monkeypatch.chdir(tmp_path)
    build_lucene_index(products[:3], "index", progress=False)
    assert (tmp_path / "index").is_dir()
    assert len(LuceneDocuments("index")) == 3


def test_bad_arguments(searcher: Any, reranking: RerankingSearcher, tiny_reranker: Reranker) -> None:
    hits = searcher.search("toner", k=3)
    calls: list[tuple[Any, str]] = [
        (lambda: RerankingSearcher(searcher, tiny_reranker, depth=0), "depth must be at least 1"),
        (lambda: RerankingSearcher(searcher, tiny_reranker, lookup=3), "lookup must be a mapping, a callable"),
        (lambda: reranking.search("toner", k=0), "k must be at least 1"),
        (lambda: reranking.batch_search(["a", "b"], ["1"]), "got 2 queries but 1 query ids"),
        (lambda: reranking.batch_search(["a", "b"]), "got 2 queries but 0 query ids"),
        (lambda: reranking.batch_search(["a", "b"], ["1", "1"]), "query ids must be unique"),
        (lambda: rerank_hits(tiny_reranker, "toner", hits, depth=0), "depth must be at least 1"),
        (lambda: rerank_hits(tiny_reranker, "toner", hits, text_fields="title"), "sequence of names"),
        (lambda: rerank_hits(tiny_reranker, "toner", ["d1"]), "expected hits with docid and score, got str"),
        (lambda: rerank_hits(tiny_reranker, "toner", hits, lookup={}), "is not in the document lookup"),
        (lambda: rerank_batch(tiny_reranker, {}, {"q": hits}), "1 results have no query: q"),
    ]
    for call, message in calls:
        with pytest.raises(DarlRerankError, match=message):
            call()
    assert reranking.batch_search([], []) == {}
