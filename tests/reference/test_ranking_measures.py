"""Ranking measures against pytrec_eval, which is trec_eval's own code."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import pytrec_eval

from darl_rerank.errors import InputError
from darl_rerank.evaluation.ranking import evaluate_run, ndcg
from darl_rerank.trec.qrels import Qrels, read_qrels
from darl_rerank.trec.runs import Run, RunEntry, in_trec_order, read_run, write_run

NAMES = {"nDCG@10": "ndcg_cut_10", "AP": "map", "RR": "recip_rank", "R@100": "recall_100"}


def assert_equal_on_every_query(qrels: Qrels, run: Run) -> None:
    ours = evaluate_run(qrels, run, list(NAMES))
    scores = {qid: {entry.docid: entry.score for entry in entries} for qid, entries in run.items()}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, set(NAMES.values())).evaluate(scores)
    for ours_name, their_name in NAMES.items():
        for i, qid in enumerate(ours.qids):
            expected = theirs[qid][their_name] if qid in theirs else 0.0
            assert ours.per_query[ours_name][i] == pytest.approx(expected, abs=1e-12), (qid, ours_name)


def test_synthetic_runs_full_of_ties() -> None:
    generator = random.Random(0)
    documents = [f"d{i}" for i in range(200)]
    qrels = {f"q{q}": {d: generator.randrange(4) for d in generator.sample(documents, 50)} for q in range(20)}
    # Scores of few values, and some that differ as doubles but not as 32-bit floats.
    run = {
        f"q{q}": in_trec_order({d: generator.randrange(5) + generator.randrange(3) * 1e-9 for d in documents})
        for q in range(18)
    }
    assert_equal_on_every_query(qrels, run)


def test_our_order_is_trec_evals() -> None:
    """A run in `in_trec_order`, rewritten with ranks as scores, gives the same values: the order was right."""
    generator = random.Random(1)
    documents = [f"d{i}" for i in range(300)]
    qrels = {"q": {d: generator.randrange(4) for d in documents}}
    for _ in range(20):
        scores = {d: 1.0 + generator.randrange(4) * 1e-8 + generator.randrange(3) for d in documents}
        ordered = in_trec_order(scores)
        by_rank = {entry.docid: float(len(ordered) - i) for i, entry in enumerate(ordered)}
        assert ndcg(qrels, {"q": scores}, 20) == ndcg(qrels, {"q": by_rank}, 20)


def test_the_bm25_run_of_trec_dl_2019(trec_dl_2019: Path, tmp_path: Path) -> None:
    qrels = read_qrels(trec_dl_2019 / "qrels.txt")
    for path in sorted((trec_dl_2019 / "runs").glob("*.trec")):
        run = read_run(path)
        assert_equal_on_every_query(qrels, run)
        if path.name == "bm25.trec":
            assert round(evaluate_run(qrels, run, ["nDCG@10"]).mean("nDCG@10"), 4) == 0.5058
        # Written and read again it is the same ranking.
        write_run(tmp_path / "run", {q: [(e.docid, e.score) for e in entries] for q, entries in run.items()}, "t")
        again = read_run(tmp_path / "run")
        assert {q: [e.docid for e in entries] for q, entries in again.items()} == {
            q: [e.docid for e in entries] for q, entries in run.items()
        }


@pytest.mark.parametrize(
    ("measure", "says"),
    [
        ("P", "needs cutoff"),
        ("nDCG@0", "cutoff must be at least 1"),
        ("AP(rel=0)", "rel must be at least 1"),
        ("nDCG(gains=3)@10", "gains=3"),
        ("P(foo=1)@5", "foo"),
        ("alpha_nDCG@10", "pyndeval"),
        ("Accuracy", "divides by zero"),
        ("nDGC@10", "unknown measure"),
    ],
)
def test_a_measure_that_cannot_be_had_is_one_clear_error(measure: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        evaluate_run({"q": {"d": 1}}, {"q": [RunEntry("d", 1.0)]}, ["nDCG@10", measure])


def test_one_measure_by_two_names() -> None:
    run = {"q": [RunEntry("x", 2.0), RunEntry("d", 1.0)]}
    scores = evaluate_run({"q": {"d": 1}}, run, ["RR@10", "MRR@10"])
    assert scores.mean("RR@10") == scores.mean("MRR@10") == 0.5
