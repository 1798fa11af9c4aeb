"""Hits of Pyserini to reranked hits, without Java."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest
from darl_rerank.adapters.pyserini import rerank_batch, rerank_hits

from darl_rerank import Reranker
from darl_rerank.errors import InputError

HITS = [SimpleNamespace(docid=docid, score=9.0 - i) for i, docid in enumerate("abcde")]
TEXTS = {"a": "a hose", "b": " ", "d": "a notebook", "e": "not judged, below the depth"}


def test_a_hit_without_text_costs_only_itself(tiny_reranker: Reranker) -> None:
    hits = rerank_hits(tiny_reranker, "laptop", HITS, depth=4, lookup=TEXTS)
    assert {hit.docid for hit in hits[:2]} == {"a", "d"}
    assert [hit.docid for hit in hits[2:]] == ["b", "c", "e"]
    assert all(x.score > y.score for x, y in pairwise(hits))
    for hit in hits[2:4]:
        assert (hit.grade, hit.grade_name, hit.probabilities, hit.novelty) == (None, None, None, None)
        assert hit.ranked is not None
        assert not hit.ranked.judged
    assert hits[4].ranked is None


def test_hits_that_all_lack_a_text_are_an_error(tiny_reranker: Reranker) -> None:
    with pytest.raises(InputError, match="carries no text"):
        rerank_batch(tiny_reranker, {"1": "laptop"}, {"1": HITS})
    with pytest.raises(InputError, match="expected hits with docid and score, got str"):
        rerank_hits(tiny_reranker, "laptop", ["a"])
