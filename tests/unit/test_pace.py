"""How long the engine takes, learnt from its runs."""

from __future__ import annotations

import pytest

from darl_rerank.pace import Pace


def test_nothing_is_predicted_before_anything_ran() -> None:
    assert Pace().prediction() is None


def test_a_line_is_found() -> None:
    pace = Pace()
    for tokens in (100, 200, 400, 800):
        pace.observe(tokens, 0.01 + 0.001 * tokens)
    prediction = pace.prediction()
    assert prediction is not None
    assert prediction.cautious(1000) == pytest.approx(1.01, rel=1e-6)
    assert prediction.least(80) == pytest.approx(80 * 0.81 / 800)


def test_a_first_slow_run_and_equal_sizes_do_no_harm() -> None:
    pace = Pace()
    pace.observe(100, 5.0)
    for _ in range(31):
        pace.observe(100, 0.1)
    prediction = pace.prediction()
    assert prediction is not None
    assert prediction.cautious(200) == pytest.approx(0.2, rel=0.05)
    assert 0 < prediction.cautious(1) <= prediction.cautious(2)


def test_caution_follows_runs_that_took_longer() -> None:
    pace = Pace()
    for i in range(32):
        pace.observe(100, 0.2 if i % 4 == 0 else 0.1)
    prediction = pace.prediction()
    assert prediction is not None
    assert prediction.cautious(100) == pytest.approx(0.2, rel=0.05)


def test_a_machine_that_becomes_busy_is_followed() -> None:
    pace = Pace()
    for seconds in (0.1, 0.5):
        for _ in range(32):
            pace.observe(100, seconds)
    prediction = pace.prediction()
    assert prediction is not None
    assert prediction.cautious(100) == pytest.approx(0.5)
    assert prediction.least(100) == pytest.approx(0.1)
