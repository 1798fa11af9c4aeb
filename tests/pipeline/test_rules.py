"""Cuts, lowest grades, fusion with the first stage and another prevalence, on the tiny model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from darl_rerank.adapters.faiss import rerank_faiss
from darl_rerank.adapters.pyserini import rerank_hits

from darl_rerank import Reranker
from darl_rerank.errors import InputError
from darl_rerank.model.calibration import Calibration
from darl_rerank.model.decisions import Cut, Decisions, FusionWeight, GradeCuts, Promise
from darl_rerank.rules import Rules

QUERY = "laptop"
DOCUMENTS = ["Dell XPS 13 notebook", "Laptop sleeve 13 inch", "Garden hose", "Gaming laptop with 32 GB", "Red shoes"]


@pytest.fixture(scope="module")
def plain(tiny_reranker: Reranker) -> list[Any]:
    return list(tiny_reranker.rerank(QUERY, DOCUMENTS))


@pytest.fixture(scope="module")
def deciding(tiny_reranker: Reranker, plain: list[Any]) -> Reranker:
    """The tiny model with decisions: its second best document is the last that any of them keeps."""
    second = plain[1]
    decisions = Decisions(
        GradeCuts((plain[3].score, second.score, second.score + 5)),
        (Cut(Promise("recall", 0.9, 2), sum(sorted(p.probabilities[2] + p.probabilities[3] for p in plain)[-2:]) / 2),),
        FusionWeight(0.6),
    )
    checkpoint = tiny_reranker.checkpoint.replace(
        decisions=decisions, calibration=Calibration(prevalence=(0.4, 0.3, 0.2, 0.1))
    )
    return Reranker(checkpoint, tiny_reranker.engine)


def test_a_higher_grade_never_stands_below_a_lower_one(deciding: Reranker) -> None:
    ranking = deciding.rerank(QUERY, DOCUMENTS)
    assert all(a.grade >= b.grade for a, b in pairwise(ranking))
    assert [r.grade for r in ranking] == [2, 2, 1, 1, 0]
    assert [r.grade_name for r in ranking][:3] == ["relevant", "relevant", "related"]
    assert ranking.cut == 0


def test_a_lowest_grade_keeps_the_rest_out_and_says_how_many(deciding: Reranker) -> None:
    ranking = deciding.rerank(QUERY, DOCUMENTS, min_grade="relevant")
    assert (len(ranking), ranking.cut) == (2, 3)
    assert [r.rank for r in ranking] == [1, 2]
    assert deciding.rerank(QUERY, DOCUMENTS, min_grade=2, top_k=1).cut == 3
    assert len(deciding.rerank(QUERY, DOCUMENTS, min_grade="perfect")) == 0


def test_a_lowest_probability_goes_by_the_grade_or_better(deciding: Reranker, plain: list[Any]) -> None:
    limit = sorted(sum(p.probabilities[1:]) for p in plain)[2]
    ranking = deciding.rerank(QUERY, DOCUMENTS, min_grade="related", min_probability=limit)
    assert (len(ranking), ranking.cut) == (3, 2)


def test_a_fitted_cut_is_called_by_its_promise(deciding: Reranker) -> None:
    ranking = deciding.rerank(QUERY, DOCUMENTS, cut="recall 0.9 of relevant")
    assert len(ranking) == 1
    assert ranking.cut == 4
    assert ranking.warnings == ()


def test_a_strange_query_is_warned_of(deciding: Reranker) -> None:
    scores = deciding.score_pairs([(QUERY, document) for document in DOCUMENTS])
    scores = replace(scores, novelty=np.full(len(scores), 97.0))
    cut = Cut(Promise("recall", 0.9, 2), 0.2, 85.0)
    rules = Rules(deciding.checkpoint, cut=cut)
    assert "this one's novelty is 97, 19 in 20 of theirs were below 85" in rules.warnings(scores)[0]
    assert rules.warnings(replace(scores, novelty=np.full(len(scores), 60.0))) == []


def test_fused_with_scores_or_places(deciding: Reranker, plain: list[Any]) -> None:
    first = [5.0, 4.0, 3.5, 1.0, 0.5]
    documents = [{"text": text, "score": score} for text, score in zip(DOCUMENTS, first, strict=True)]
    ranking = deciding.rerank(QUERY, documents, fuse="auto")
    model = np.array([r.score for r in sorted(plain, key=lambda r: r.index)])

    def z(values: Any) -> Any:
        return (values - np.mean(values)) / np.std(values)

    fused = 0.6 * z(model) + 0.4 * z(np.array(first))
    assert [r.index for r in ranking] == np.argsort(-fused).tolist()
    assert [r.fused for r in ranking] == pytest.approx(sorted(fused, reverse=True))
    assert ranking[0].to_dict()["fused"] == ranking[0].fused
    by_place = deciding.rerank(QUERY, DOCUMENTS, fuse="auto")
    places = 0.6 * z(model) + 0.4 * z(-np.log(np.arange(1, 6)))
    assert [r.index for r in by_place] == np.argsort(-places).tolist()
    # One document without a score, and places count for all.
    some = [*documents[:4], DOCUMENTS[4]]
    assert [r.index for r in deciding.rerank(QUERY, some, fuse="auto")] == [r.index for r in by_place]
    assert "fused" not in plain[0].to_dict()


def test_what_was_not_judged_comes_last_in_a_fusion_too(deciding: Reranker) -> None:
    ranking = deciding.rerank(QUERY, ["", *DOCUMENTS], fuse="auto", min_grade="related")
    assert ranking[-1].index == 0
    assert not ranking[-1].judged
    assert ranking[-1].fused is None


def test_a_prevalence_moves_probabilities_and_grades(deciding: Reranker) -> None:
    usual = deciding.rerank(QUERY, DOCUMENTS)
    good = deciding.rerank(QUERY, DOCUMENTS, prevalence=(0.05, 0.05, 0.3, 0.6))
    assert all(a.score < b.score for a, b in zip(usual, good, strict=True))
    expected = np.array(usual[0].probabilities) * np.array([0.05, 0.05, 0.3, 0.6]) / np.array([0.4, 0.3, 0.2, 0.1])
    found = next(r for r in good if r.index == usual[0].index)
    assert found.probabilities == pytest.approx(expected / expected.sum())
    estimated = deciding.rerank(QUERY, DOCUMENTS, prevalence="estimate")
    assert estimated[0].probabilities != usual[0].probabilities


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"cut": "recall 0.5 of relevant"}, r"no cut 'recall 0.5 of relevant' \(it has: 'recall 0.9 of relevant'\)"),
        ({"cut": "recall 1 of relevant"}, "above 0 and below 1"),
        ({"cut": "everything good"}, "expected a cut like"),
        ({"min_grade": "excellent"}, "no grade 'excellent'; it has: irrelevant, related, relevant, perfect"),
        ({"min_grade": 0}, "every document is 'irrelevant' or better"),
        ({"min_probability": 0.5}, "give min_grade too"),
        ({"min_grade": 1, "min_probability": 1.5}, "above 0 and at most 1"),
        ({"fuse": "rrf"}, "fuse must be 'auto' or None"),
        ({"prevalence": (0.5, 0.5)}, "share of each of the 4 grades"),
        ({"prevalence": "guess"}, "a share for each grade or 'estimate'"),
        ({"prevalence": 5}, "share of each of the 4 grades, .* got 5"),
        ({"prevalence": ["a"] * 4}, "share of each of the 4 grades"),
        ({"prevalence": {0: 0.25, 1: 0.25, 2: 0.25, 3: 0.25}}, "share of each of the 4 grades"),
        ({"cut": 5}, "expected a cut like .* got 5"),
        ({"min_grade": 1, "min_probability": "0.5"}, "above 0 and at most 1, got '0.5'"),
        ({"prevalence": "estimate", "cut": "recall 0.9 of relevant"}, "give it without prevalence"),
    ],
)
def test_arguments_that_say_nothing_are_refused(deciding: Reranker, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        deciding.rerank(QUERY, DOCUMENTS, **arguments)


def test_a_checkpoint_without_prevalence_says_what_finds_it_out(tiny_reranker: Reranker) -> None:
    with pytest.raises(InputError, match="darl-rerank calibrate"):
        tiny_reranker.rerank(QUERY, DOCUMENTS, prevalence="estimate")


def test_the_adapters_fuse_with_the_scores_of_hits_and_the_places_of_vectors(deciding: Reranker) -> None:
    @dataclass
    class Hit:
        docid: str
        score: float

    first = [5.0, 4.0, 3.5, 1.0, 0.5]
    texts = {f"d{i}": text for i, text in enumerate(DOCUMENTS)}
    hits = [Hit(docid, score) for docid, score in zip(texts, first, strict=True)]
    documents = [{"id": hit.docid, "text": texts[hit.docid], "score": hit.score} for hit in hits]
    expected = deciding.rerank(QUERY, documents, fuse="auto")
    found = rerank_hits(deciding, QUERY, hits, lookup=texts, fuse="auto")
    assert [hit.docid for hit in found] == [ranked.docid for ranked in expected]
    assert [hit.score for hit in found] == pytest.approx([ranked.fused for ranked in expected], abs=1e-5)
    by_place = deciding.rerank(QUERY, DOCUMENTS, fuse="auto")
    (near,) = rerank_faiss(deciding, [QUERY], [first], [range(5)], DOCUMENTS, fuse="auto")
    assert [ranked.index for ranked in near] == [ranked.index for ranked in by_place]
