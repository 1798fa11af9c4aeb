"""How much of a list is judged: a budget, a depth, "auto". Time is an engine's that says how long it takes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from darl_rerank import Reranker, effort, judging
from darl_rerank.engines.base import GradeOutput
from darl_rerank.engines.batching import MicroBatch
from darl_rerank.errors import InputError
from darl_rerank.model.reach import Reach

DOCUMENTS = [f"a document about laptops and hoses, number {i}" for i in range(60)]


class Clocked:
    """An engine whose runs take a millisecond and ten microseconds a token, on a clock of its own."""

    name, device, precision, batch_tokens = "clocked", "cpu", "float32", 400
    exits = None

    def __init__(self) -> None:
        self.now = 0.0
        self.slower = 1.0
        self.runs: list[float] = []

    def encode_prefix(self, prefix: tuple[int, ...]) -> Any:
        self.now += 1e-5 * len(prefix) * self.slower
        return prefix

    def grade(self, batch: MicroBatch, prefix: Any, *, features: bool) -> GradeOutput:
        tokens = sum(map(len, batch.sequences))
        self.now += (1e-3 + 1e-5 * tokens) * self.slower
        self.runs.append(self.now)
        logits = np.array([[hash(s[-8:]) % 97 / 50, 0, 0, hash(s[-8:]) % 89 / 50] for s in batch.sequences])
        return GradeOutput(logits.astype(np.float32), None)


@pytest.fixture
def clocked(tiny_reranker: Reranker, monkeypatch: pytest.MonkeyPatch) -> Reranker:
    engine = Clocked()
    clock = SimpleNamespace(perf_counter=lambda: engine.now)
    for module in (effort, judging):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr("darl_rerank.reranker.time", clock)
    return Reranker(tiny_reranker.checkpoint, engine)


def test_a_budget_is_kept_and_the_rest_keeps_its_order(clocked: Reranker) -> None:
    whole = clocked.rerank("laptop", DOCUMENTS)
    assert whole.judged == 60
    clocked.warm_up()
    counts = []
    for budget in (4, 8, 14):
        before = clocked.engine.now
        ranking = clocked.rerank("laptop", DOCUMENTS, budget_ms=budget)
        assert clocked.engine.now - before <= budget / 1000 + 1e-9
        counts.append(ranking.judged)
        judged = ranking[: ranking.judged]
        # From the top of the list, and as they would be judged in the whole.
        assert sorted(r.index for r in judged) == list(range(ranking.judged))
        assert [r.index for r in judged] == [r.index for r in whole if r.index < ranking.judged]
        rest = ranking[ranking.judged :]
        assert [r.index for r in rest] == list(range(ranking.judged, 60))
        assert all(not r.judged and r.reason == f"the budget of {budget} ms was spent" for r in rest)
        assert [r.rank for r in ranking] == list(range(1, 61))
    assert 0 < counts[0] < counts[1] < counts[2] < 60
    assert clocked.rerank("laptop", DOCUMENTS, budget_ms=1e6).judged == 60


def test_a_machine_that_slows_down_is_at_most_one_batch_late(clocked: Reranker) -> None:
    clocked.warm_up()
    clocked.engine.slower = 10.0
    before, runs = clocked.engine.now, len(clocked.engine.runs)
    clocked.rerank("laptop", DOCUMENTS, budget_ms=14)
    late = [now for now in clocked.engine.runs[runs:] if now - before > 0.014]
    assert len(late) <= 1


def test_without_measurements_the_first_document_is_one(clocked: Reranker) -> None:
    ranking = clocked.rerank("laptop", DOCUMENTS, budget_ms=14)
    assert 0 < ranking.judged < 60
    assert clocked.engine.now <= 0.014


def test_a_budget_below_one_document_is_an_error(clocked: Reranker) -> None:
    clocked.warm_up()
    with pytest.raises(InputError, match=r"budget_ms is 0\.1, but judging one document takes at least .* ms here"):
        clocked.rerank("laptop", DOCUMENTS, budget_ms=0.1)


def test_a_budget_that_a_busy_machine_can_not_keep_is_none(clocked: Reranker) -> None:
    clocked.warm_up()
    clocked.engine.slower = 50.0
    clocked.warm_up()
    clocked.warm_up()
    clocked.warm_up()
    clocked.warm_up()
    ranking = clocked.rerank("laptop", DOCUMENTS, budget_ms=4)
    assert ranking.judged == 0
    assert [r.index for r in ranking] == list(range(60))


def test_each_query_has_its_budget(clocked: Reranker) -> None:
    clocked.warm_up()
    rankings = clocked.rerank_many(["laptop", "hose"], [DOCUMENTS, DOCUMENTS], budget_ms=8)
    assert rankings[0].judged == rankings[1].judged > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget_ms": 0}, "budget_ms must be a number of milliseconds above 0, got 0"),
        ({"budget_ms": float("nan")}, "budget_ms must be"),
        ({"budget_ms": "50"}, "budget_ms must be"),
        ({"budget_ms": True}, "budget_ms must be"),
        ({"depth": 0}, "depth must be a number of at least 1 or 'auto', got 0"),
        ({"depth": "deep"}, "depth must be"),
        ({"depth": "auto"}, "depth='auto' needs statistics that this checkpoint lacks"),
    ],
)
def test_bad_efforts(tiny_reranker: Reranker, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tiny_reranker.rerank("laptop", ["x"], **options)


def test_a_depth_counts_from_the_top_of_the_list(tiny_reranker: Reranker) -> None:
    ranking = tiny_reranker.rerank("laptop", [*DOCUMENTS[:4], "", *DOCUMENTS[4:8]], depth=3)
    assert ranking.judged == 3
    assert [r.index for r in ranking[3:]] == [3, 4, 5, 6, 7, 8]
    assert ranking[3].reason == "lies below depth 3"
    assert ranking[4].reason == "is empty"
    alone = tiny_reranker.rerank("laptop", DOCUMENTS[:3])
    assert [(r.index, r.grade) for r in ranking[:3]] == [(r.index, r.grade) for r in alone]
    assert [r.score for r in ranking[:3]] == pytest.approx([r.score for r in alone], abs=1e-5)


def test_auto_stops_where_the_rest_hardly_matters(tiny_reranker: Reranker) -> None:
    def reranker(reach: Reach) -> Reranker:
        return Reranker(tiny_reranker.checkpoint.replace(reach=reach), tiny_reranker.engine)

    whole = reranker(Reach(9.0, 0.0, 0.03)).rerank("laptop", DOCUMENTS, depth="auto", top_k=5)
    assert whole.judged == 60  # the probability stays near 1
    early = reranker(Reach(-9.0, 0.0, 0.03)).rerank("laptop", DOCUMENTS, depth="auto")
    assert early.judged == 10
    assert "reaches the first 10 with a probability of at most 0.03" in str(early[-1].reason)
    assert reranker(Reach(-9.0, 0.0, 0.03)).rerank("laptop", DOCUMENTS, depth="auto", top_k=25).judged == 30


def test_auto_stops_where_the_statistics_say(clocked: Reranker) -> None:
    in_order = sorted(clocked.rerank("laptop", DOCUMENTS), key=lambda ranked: ranked.index)
    scores = np.array([ranked.score for ranked in in_order])
    stops = set()
    for bound in (0.02, 0.1, 0.3):
        reach = Reach(-0.6, -1.4, bound)
        auto = Reranker(clocked.checkpoint.replace(reach=reach), clocked.engine)
        for top_k in (3, 10):
            stops.add(auto.rerank("laptop", DOCUMENTS, depth="auto", top_k=top_k).judged)
            assert reach.stops_at(scores, top_k) in stops
    assert len(stops) > 2


def test_statistics_travel_with_the_checkpoint(tiny_reranker: Reranker, tmp_path: Any) -> None:
    checkpoint = tiny_reranker.checkpoint.replace(reach=Reach(-0.6, -1.4, 0.03, 106))
    assert checkpoint.save(tmp_path / "new").reach == checkpoint.reach
