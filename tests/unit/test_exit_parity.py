"""Early exits of an export against torch's, and the margin by which its threshold is lowered."""

from __future__ import annotations

import numpy as np
import pytest
from darl_rerank.export.exit_parity import WatchedExits, compare_exits, with_margin

from darl_rerank.model.decisions import Cut, Promise
from darl_rerank.model.exits import ExitHead, Exits
from darl_rerank.model.head import Head

HEAD = Head(np.zeros((2, 3), np.float32), np.zeros(2, np.float32), np.ones(3, np.float32))
EXITS = Exits((ExitHead(2, HEAD), ExitHead(4, HEAD)), Cut(Promise("recall", 0.98, 1), 0.2, facts={"queries": 60}))


def watched(*layers: list[float], stop: bool = False) -> WatchedExits:
    """What an engine notes that finds these probabilities of grade 1 behind layers 2 and 4."""
    exits = WatchedExits.of(EXITS, stop=stop)
    for layer, found in zip((2, 4), layers, strict=True):
        odds = np.log(found) - np.log1p(-np.array(found))
        gone = exits.leaving(layer, np.stack([np.zeros(len(found)), odds], axis=1))
        assert gone.all() == gone.any() == (stop and layer == 4)
    return exits


def log_odds(p: float) -> float:
    return float(np.log(p / (1 - p)))


def test_alike_exits_need_no_margin() -> None:
    found = compare_exits(watched([0.1, 0.5], [0.3, 0.1]), watched([0.1, 0.5], [0.3, 0.1], stop=True))
    assert (found.margin, found.wrong, found.agreement) == (0, 0, 1)


def test_the_margin_is_the_largest_drop_and_a_rise_costs_nothing() -> None:
    by_torch = watched([0.5, 0.1, 0.6], [0.4, 0.3, 0.9])
    # The smallest probability of each pair falls, rises, and stays, whatever the others do.
    found = compare_exits(by_torch, watched([0.4, 0.25, 0.6], [0.35, 0.3, 0.7]))
    assert found.margin == pytest.approx(log_odds(0.4) - log_odds(0.35))
    assert found.wrong == 0
    assert found.agreement == pytest.approx(2 / 3)  # the second one stays now


def test_under_the_margin_nothing_leaves_that_torch_keeps() -> None:
    rng = np.random.default_rng(0)
    exact = rng.uniform(0.1, 0.4, (2, 400))
    found = np.clip(exact + rng.normal(0, 0.02, exact.shape), 0.01, 0.99)
    margin = compare_exits(watched(*exact.tolist()), watched(*found.tolist())).margin
    exits = with_margin(watched([0.5], [0.5]), margin)
    assert type(exits) is Exits
    assert exits.rule is not None
    assert log_odds(exits.rule.threshold) == pytest.approx(log_odds(0.2) - margin)
    assert exits.rule.facts == {"queries": 60, "export_margin": margin}
    kept = exact.min(axis=0) >= 0.2
    assert (found.min(axis=0)[kept] < 0.2).any()
    assert not (found.min(axis=0)[kept] < exits.rule.threshold).any()


def test_a_pair_is_judged_under_the_margin_of_the_others() -> None:
    by_torch = watched([0.21, 0.5], [0.9, 0.9])
    assert compare_exits(by_torch, watched([0.15, 0.5], [0.9, 0.9])).wrong == 0.5
    # Another's drop is as large: the margin without the first would have kept it.
    assert compare_exits(by_torch, watched([0.15, 0.3], [0.9, 0.9])).wrong == 0
