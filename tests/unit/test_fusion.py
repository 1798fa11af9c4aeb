"""Reciprocal-rank fusion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from darl_rerank.adapters.fusion import FusionSearcher, fuse, fuse_runs

from darl_rerank.errors import InputError
from darl_rerank.trec.runs import RunEntry


@dataclass
class Hit:
    docid: str
    score: float
    lucene_document: Any = None


def test_scores_are_sums_of_reciprocal_ranks() -> None:
    fused = fuse([["a", "b", "c"], ["c", "a"]], k=60)
    assert [(hit.docid, hit.score) for hit in fused] == [
        ("a", pytest.approx(1 / 61 + 1 / 62)),
        ("c", pytest.approx(1 / 63 + 1 / 61)),
        ("b", pytest.approx(1 / 62)),
    ]
    assert [hit.docid for hit in fuse([["a", "b", "c"], ["c", "a"]], top_k=2)] == ["a", "c"]
    weighted = fuse([["a"], ["b"]], weights=[1, 2], k=1)
    assert [(hit.docid, hit.score) for hit in weighted] == [("b", 1.0), ("a", 0.5)]


def test_only_places_count_and_ties_keep_their_order() -> None:
    hits = [Hit("x", -5.0), Hit("y", 1e9)]
    assert [hit.docid for hit in fuse([hits])] == ["x", "y"]
    assert [hit.docid for hit in fuse([["b", "a"], ["a", "b"]])] == ["b", "a"]
    assert [hit.docid for hit in fuse([["a", "b"], ["b", "a"]])] == ["a", "b"]


def test_a_document_listed_twice_counts_once() -> None:
    once, twice = fuse([["a", "b"]]), fuse([["a", "a", "b"]])
    assert once == twice


def test_all_kinds_of_lists_mean_the_same() -> None:
    kinds: list[Any] = [["a", "b"], [("a", 2.0), ("b", 1.0)], [Hit("a", 2), Hit("b", 1)], [RunEntry("a", 2.0)]]
    assert [fuse([kind])[0] for kind in kinds] == [fuse([["a"]])[0]] * 4


def test_the_stored_document_comes_along() -> None:
    stored = object()
    fused = fuse([[Hit("a", 1), Hit("b", 1)], [Hit("b", 1, stored)]])
    assert {hit.docid: hit.lucene_document for hit in fused} == {"a": None, "b": stored}


def test_runs_are_fused_by_query() -> None:
    runs = [{"q1": ["a"], "q2": ["b"]}, {"q2": ["c", "b"], "q3": ["d"]}]
    fused = fuse_runs(runs)
    assert {qid: [hit.docid for hit in hits] for qid, hits in fused.items()} == {
        "q1": ["a"],
        "q2": ["b", "c"],
        "q3": ["d"],
    }


class Searcher:
    def __init__(self, docids: str) -> None:
        self.docids = docids
        self.asked: list[int] = []

    def search(self, q: str, k: int = 10) -> list[Hit]:
        self.asked.append(k)
        return [Hit(docid, 1.0) for docid in self.docids[:k]]

    def batch_search(self, queries: list[str], qids: list[str], k: int = 10, threads: int = 1) -> dict[str, list[Hit]]:
        return {qid: self.search(query, k) for query, qid in zip(queries, qids, strict=True)}


def test_a_fusion_searcher_asks_each_for_its_depth() -> None:
    searchers = [Searcher("abcdef"), Searcher("fedcba")]
    fusion = FusionSearcher(searchers, depth=4)
    assert [hit.docid for hit in fusion.search("q", k=2)] == ["c", "d"]  # third and fourth in both
    assert [hit.docid for hit in fusion.batch_search(["q"], ["1"], k=6)["1"]] == list("afbecd")
    assert searchers[0].asked == [4, 6]


@pytest.mark.parametrize(
    ("rankings", "settings", "message"),
    [
        ([], {}, "at least one ranking"),
        ([["a"]], {"k": 0}, "k must be above 0"),
        ([["a"]], {"top_k": 0}, "top_k must be at least 1"),
        ([["a"]], {"weights": [1, 2]}, "got 1 rankings but 2 weights"),
        ([["a"]], {"weights": [float("nan")]}, "finite and not negative"),
        ([["a"], [3]], {}, r"ranking 1: expected docids, \(docid, score\) pairs or objects with docid, got int"),
        (["abc"], {}, "ranking 0: expected a list of documents, got str"),
    ],
)
def test_bad_arguments(rankings: list[Any], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        fuse(rankings, **settings)
