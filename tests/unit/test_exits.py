from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from darl_rerank import Checkpoint
from darl_rerank.errors import InputError
from darl_rerank.model.calibration import Calibration
from darl_rerank.model.decisions import Cut, Promise
from darl_rerank.model.exits import ExitHead, Exits, exit_logits, lowered
from darl_rerank.model.head import Head
from darl_rerank.training.decisions.exits import fit_exit_calibrations, fit_exit_rule

HIDDEN = 32


def exit_head(layer: int, seed: int = 0, **calibration: Any) -> ExitHead:
    rng = np.random.default_rng(seed + layer)
    weight, bias, norm = (rng.normal(size=size).astype(np.float32) for size in ((4, HIDDEN), 4, HIDDEN))
    return ExitHead(layer, Head(weight, bias, norm), Calibration(**calibration))


def exits_at(*layers: int, threshold: float | None = 0.3) -> Exits:
    rule = None if threshold is None else Cut(Promise("recall", 0.95, 2), threshold, None, {"pairs": 9})
    return Exits(tuple(exit_head(layer, temperature=1.5, bias=(0.0, 0.1, 0.2, 0.3)) for layer in layers), rule)


def test_exits_travel_with_the_checkpoint(tiny_model: Path, tmp_path: Path) -> None:
    plain = Checkpoint.load(tiny_model)
    saved = plain.replace(exits=exits_at(1)).save(tmp_path / "new")
    assert saved.exits is not None
    assert saved.exits.rule == exits_at(1).rule
    assert saved.exits.at(1).calibration == exits_at(1).at(1).calibration
    for name in ("weight", "bias", "norm"):
        np.testing.assert_array_equal(getattr(saved.exits.at(1).head, name), getattr(exits_at(1).at(1).head, name))
    manifest = json.loads((tmp_path / "new" / "checkpoint.json").read_text())
    # Versions that know no exits still read it, and run it whole.
    assert manifest["format"] == 2
    assert "exits.safetensors" in manifest["files"]
    without = saved.replace(exits=None).save(tmp_path / "without")
    assert not (tmp_path / "without" / "exits.safetensors").exists()
    assert len({c.fingerprint for c in (plain, saved, plain.replace(exits=exits_at(1, threshold=0.2)))}) == 3
    assert without.fingerprint == plain.fingerprint


def test_a_model_that_ends_at_an_exit(tiny_model: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.load(tiny_model).replace(exits=exits_at(1))
    ended = checkpoint.ending_at(1).save(tmp_path / "ended")
    assert (ended.layers, ended.exits) == (1, None)
    assert json.loads((tmp_path / "ended" / "checkpoint.json").read_text())["format"] == 3
    np.testing.assert_array_equal(ended.head.norm, exits_at(1).at(1).head.norm)
    assert ended.calibration == exits_at(1).at(1).calibration
    with pytest.raises(InputError, match="no exit behind layer 2; there is behind 1"):
        checkpoint.ending_at(2)
    with pytest.raises(InputError, match="has no exits"):
        Checkpoint.load(tiny_model).ending_at(1)


def test_faults_of_exits_are_listed(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    short = ExitHead(1, Head(np.ones((4, 8), np.float32), np.full(4, np.nan, np.float32), np.ones(8, np.float32)))
    with pytest.raises(InputError) as caught:
        Checkpoint.load(tiny_model).replace(exits=Exits((short,)), trained=3).save(folder)
    for fault in ("exits: ", "expected 1.norm (32,)", "1.bias holds values", "trained: expected true or false"):
        assert fault in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exits": {"heads": [{"layer": 1}], "rule": None}}, "exits: expected heads and a rule"),
        ({"exits": {"heads": [{"layer": 7, "calibration": {"temperature": 1}}]}}, "lacks the tensor 7.norm"),
        ({"exits": 3}, "exits: expected an object"),
        ({"layers": 0}, "layers: expected a whole number"),
        ({"layers": 1}, "ends behind layer 1, no later than its exit behind layer 1"),
    ],
)
def test_faulty_manifests(tiny_model: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    Checkpoint.load(tiny_model).replace(exits=exits_at(1)).save(tmp_path / "new")
    path = tmp_path / "new" / "checkpoint.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(InputError, match=message):
        Checkpoint.load(tmp_path / "new")


def test_exits_that_make_no_sense() -> None:
    with pytest.raises(InputError, match="layers that rise"):
        Exits((exit_head(2), exit_head(2)))
    with pytest.raises(InputError, match="must not follow novelty"):
        exit_head(1, novelty_slope=0.5)
    with pytest.raises(InputError, match="no norm of its own"):
        ExitHead(1, Head(np.ones((4, 8), np.float32), np.ones(4, np.float32)))
    with pytest.raises(InputError, match="promises a recall"):
        Exits((exit_head(1),), Cut(Promise("precision", 0.9, 2), 0.5))


def test_a_pair_leaves_below_the_threshold() -> None:
    states = np.random.default_rng(3).normal(size=(200, HIDDEN)).astype(np.float32)
    exits = exits_at(1, 2)
    logits = exit_logits(exits.at(2).head, "softmax", states)
    # The norm takes the state's size out.
    np.testing.assert_allclose(logits, exit_logits(exits.at(2).head, "softmax", states * 7), atol=1e-4)
    leaving = exits.leaving(2, logits)
    assert 0 < leaving.sum() < 200
    np.testing.assert_array_equal(leaving, exits.at(2).probabilities(logits)[:, 2:].sum(axis=1) < 0.3)
    assert not exits_at(1, threshold=None).leaving(1, logits).any()
    assert exits.before(2) is not None
    assert exits.before(1) is None


def test_scores_of_pairs_that_left_keep_their_order_below_the_rest() -> None:
    gains = np.array([0.0, 1.0, 3.0])
    assert (np.diff(lowered(gains, 0.0)) > 0).all()
    assert lowered(gains, 0.0).max() < 0.01
    np.testing.assert_allclose(lowered(gains + 2, 2.0), 2 + gains / 1000)


def _draw(rng: np.random.Generator, queries: int) -> tuple[dict[int, NDArray[Any]], NDArray[Any], NDArray[Any]]:
    """Logits at two exits, the second of which knows more; grades; queries of 20 pairs."""
    grades = rng.choice(4, p=[0.6, 0.2, 0.15, 0.05], size=20 * queries)
    logits = {
        layer: -((np.arange(4) - grades[:, None] + rng.normal(scale=noise, size=(len(grades), 1))) ** 2)
        for layer, noise in ((1, 2.0), (2, 0.7))
    }
    return logits, grades, np.repeat(np.arange(queries), 20)


def test_of_what_deserves_a_place_no_more_than_the_share_leaves() -> None:
    rng = np.random.default_rng(0)
    lost, left = [], []
    for _ in range(40):
        logits, grades, queries = _draw(rng, 60)
        exits = fit_exit_calibrations(Exits((exit_head(1), exit_head(2))), logits, grades)
        assert exits.rule is None
        exits = fit_exit_rule(exits, logits, grades, queries, grade=2, share=0.1)
        logits, grades, queries = _draw(rng, 200)
        gone = exits.leaving(1, logits[1]) | exits.leaving(2, logits[2])
        per_query = [
            gone[(queries == q) & (grades >= 2)].mean() for q in range(200) if (grades[queries == q] >= 2).any()
        ]
        lost.append(float(np.mean(per_query)))
        left.append(gone.mean())
    # The promise is of the mean over draws; so many come close to it.
    assert 0.07 < np.mean(lost) <= 0.1
    assert np.mean(left) > 0.4


def test_a_rule_that_can_not_be_promised() -> None:
    logits, grades, queries = _draw(np.random.default_rng(0), 5)
    exits = Exits((exit_head(1), exit_head(2)))
    with pytest.raises(InputError, match=r"can't promise a recall of 0\.98: it takes 49"):
        fit_exit_rule(exits, logits, grades, queries, grade=2, share=0.02)
    with pytest.raises(InputError, match="above 0 and below 1, got 1"):
        fit_exit_rule(exits, logits, grades, queries, grade=2, share=1.0)
    with pytest.raises(InputError, match="no pair has grade 3"):
        fit_exit_rule(exits, logits, np.zeros_like(grades), queries, grade=3, share=0.1)
