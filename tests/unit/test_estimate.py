"""The estimate of a training's time: what is made of the speeds that were measured."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from darl_rerank.training import estimate
from darl_rerank.training.estimate import Speed, StageEstimate, plan_table
from darl_rerank.trec.graded_pairs import GradedPair


def test_one_slow_batch_does_not_move_the_estimate() -> None:
    speed = Speed.of([10.0, 11.0, 1.0, 10.5, 9.5])
    assert speed == Speed(usual=10.0, slowest=1.0, fastest=11.0)
    stage = estimate._stage("probe", "features", 110, speed)
    assert (stage.seconds, stage.least, stage.most) == (11.0, 10.0, 110.0)
    assert estimate._stage("finetune-0", "examples", 6600, speed, max_minutes=5).most == 300


def test_every_batch_but_the_first_is_timed_and_goes_on_through_the_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: float(next(clock)))
    pairs = [GradedPair("q", f"d{i}", 0, None, "q") for i in range(100)]
    seen: list[list[GradedPair]] = []
    speed = estimate._speed(seen.append, pairs)
    # 3 whole batches of 32, again from the first; a second a batch, by this clock.
    assert [batch[0].document for batch in seen[:4]] == ["d0", "d32", "d64", "d0"]
    assert speed == Speed(32.0, 32.0, 32.0)


def test_the_plan_shows_the_range() -> None:
    shown = plan_table([StageEstimate("probe", "features", 60, 50, 80), StageEstimate("merge", "weights", 30, 20, 100)])
    assert "0:01:00  (0:00:50 to 0:01:20)" in shown
    assert "0:01:30  (0:01:10 to 0:03:00)" in shown.splitlines()[-1]
