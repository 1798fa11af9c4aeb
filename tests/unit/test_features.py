"""Features on disk: the same rows as in memory, resumed after a kill, refused where they are another job's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from darl_rerank.errors import InputError
from darl_rerank.results import PairScores
from darl_rerank.training.data import features as module
from darl_rerank.training.data.features import clear_features, extract_features, open_features
from darl_rerank.trec.graded_pairs import GradedPair


class Stub:
    """Features and logits that are a function of the texts; dies after `alive` calls."""

    def __init__(self, alive: int = 10**9, fingerprint: str = "stub") -> None:
        self.alive, self.fingerprint, self.judged = alive, fingerprint, 0

    def score_pairs(self, pairs: Sequence[tuple[str, Any]], *, features: bool = False) -> PairScores:
        if self.alive == 0:
            raise KeyboardInterrupt
        self.alive -= 1
        self.judged += len(pairs)
        numbers = np.array([[len(query), int(document)] for query, document in pairs], dtype=np.float32)
        n = len(pairs)
        return PairScores(
            logits=numbers,
            probabilities=np.full((n, 2), 0.5),
            score=np.zeros(n),
            grade=np.zeros(n, dtype=np.intp),
            novelty=None,
            features=np.repeat(numbers, 2, axis=1) / 8 if features else None,
            truncated=np.zeros(n, dtype=bool),
        )


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_PAIRS", 4)


def pairs_of(count: int) -> list[GradedPair]:
    return [GradedPair(f"query{i % 3}", str(i), None, None, f"q{i % 3}") for i in range(count)]


def test_rows_are_the_models(tmp_path: Path) -> None:
    pairs = pairs_of(10)
    found = extract_features(Stub(), pairs, tmp_path / "f", progress=False)
    expected = Stub().score_pairs([(p.query, p.document) for p in pairs], features=True)
    assert found.features.dtype == np.float16
    assert found.logits.dtype == np.float32
    np.testing.assert_array_equal(found.features, expected.features)
    np.testing.assert_array_equal(found.logits, expected.logits)


@pytest.mark.parametrize("alive", [0, 1, 2])
def test_a_killed_job_goes_on(tmp_path: Path, alive: int) -> None:
    pairs = pairs_of(11)
    with pytest.raises(KeyboardInterrupt):
        extract_features(Stub(alive), pairs, tmp_path / "f", progress=False)
    with pytest.raises(InputError, match="expected finished features"):
        open_features(tmp_path / "f")
    second = Stub()
    found = extract_features(second, pairs, tmp_path / "f", progress=False)
    assert second.judged == 11 - 4 * alive
    np.testing.assert_array_equal(found.logits[:, 1], np.arange(11))
    third = Stub()
    extract_features(third, pairs, tmp_path / "f", progress=False)
    assert third.judged == 0


def test_another_jobs_features_are_refused(tmp_path: Path) -> None:
    extract_features(Stub(), pairs_of(5), tmp_path / "f", progress=False)
    with pytest.raises(InputError, match="another model"):
        extract_features(Stub(fingerprint="other"), pairs_of(5), tmp_path / "f", progress=False)
    with pytest.raises(InputError, match="other pairs"):
        extract_features(Stub(), pairs_of(6), tmp_path / "f", progress=False)
    with pytest.raises(InputError, match="other settings"):
        extract_features(Stub(), pairs_of(5), tmp_path / "f", with_features=False, progress=False)
    assert len(extract_features(Stub(), pairs_of(6), tmp_path / "f", restart=True, progress=False)) == 6
    clear_features(tmp_path / "f")
    assert not (tmp_path / "f").exists()


def test_logits_alone(tmp_path: Path) -> None:
    found = extract_features(Stub(), pairs_of(5), tmp_path / "f", with_features=False, progress=False)
    assert found.features.shape == (5, 0)
    assert len(found) == 5


def test_what_can_not_be_read_twice_is_refused(tmp_path: Path) -> None:
    def once() -> Iterator[GradedPair]:
        yield from pairs_of(3)

    with pytest.raises(InputError, match="not an iterator"):
        extract_features(Stub(), once(), tmp_path / "f", progress=False)
    with pytest.raises(InputError, match="no pairs"):
        extract_features(Stub(), [], tmp_path / "f", progress=False)
