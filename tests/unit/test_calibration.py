"""Temperature, novelty slope and biases: what they do, and that fitting finds them."""

from __future__ import annotations

import numpy as np
import pytest

from darl_rerank.errors import CheckFailedError, InputError
from darl_rerank.model.calibration import Calibration, softmax
from darl_rerank.training.model.temperature import determined_calibration, fit_calibration


def drawn(truth: Calibration, n: int = 30_000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits, novelty, and grades drawn from the probabilities that `truth` makes of them."""
    rng = np.random.default_rng(0)
    logits, novelty = rng.normal(size=(n, 4)) * 2, rng.uniform(0, 100, n)
    edges = truth.probabilities(logits, novelty).cumsum(axis=1)
    return logits, novelty, (rng.random((n, 1)) > edges[:, :-1]).sum(axis=1)


@pytest.mark.parametrize("truth", [
    Calibration(1.8), Calibration(0.6, 0.9), Calibration(1.4, bias=(0.0, 0.5, -0.4, -1.2)),
    Calibration(0.8, 0.5, (0.0, -0.7, 0.3, 0.9)),
])  # fmt: skip
def test_the_fit_finds_what_the_labels_were_drawn_with(truth: Calibration) -> None:
    logits, novelty, labels = drawn(truth)
    fit = fit_calibration(
        logits, labels, novelty=novelty, with_novelty=truth.needs_novelty, with_bias=bool(truth.bias)
    )  # fmt: skip
    assert fit.calibration.temperature == pytest.approx(truth.temperature, rel=0.05)
    assert fit.calibration.novelty_slope == pytest.approx(truth.novelty_slope, abs=0.06)
    assert fit.calibration.bias == pytest.approx(truth.bias, abs=0.06)
    assert not fit.at_bound


def test_with_biases_each_grade_is_as_likely_as_it_is_frequent() -> None:
    # The likelihood's slope in a bias is the difference of the two: it is zero at the optimum.
    logits, _, labels = drawn(Calibration(1.0, bias=(0.0, 0.2, -1.0, -2.0)))
    share = np.bincount(labels) / len(labels)
    for with_bias, off in ((False, 0.02), (True, 0.0)):
        found = fit_calibration(logits, labels, with_bias=with_bias).calibration.probabilities(logits).mean(axis=0)
        difference = np.abs(found - share).max()
        assert difference > off if off else difference < 1e-3


def test_weights_are_repetitions() -> None:
    logits, _, labels = drawn(Calibration(1.3, bias=(0.0, 0.4, 0.1, -0.5)), n=400)
    twice = np.arange(400) % 3 == 0
    repeated = fit_calibration(
        np.concatenate([logits, logits[twice]]), np.concatenate([labels, labels[twice]]), with_bias=True
    )
    weighted = fit_calibration(logits, labels, with_bias=True, weights=1.0 + twice)
    assert weighted.calibration.bias == pytest.approx(repeated.calibration.bias, abs=1e-3)
    assert weighted.nll_after == pytest.approx(repeated.nll_after, abs=1e-6)


def test_a_grade_that_no_label_has_is_no_zero_and_is_reported() -> None:
    logits, _, labels = drawn(Calibration(), n=500)
    fit = fit_calibration(logits, np.minimum(labels, 2), with_bias=True)
    assert fit.at_bound
    assert fit.calibration.probabilities(logits)[:, 3].min() > 0


def test_a_value_at_its_bound_is_refused_and_named() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(15, 4))
    right = logits.argmax(axis=1)
    fit = fit_calibration(logits, right)
    assert fit.at_bound == "the temperature"
    with pytest.raises(CheckFailedError, match="15 pairs do not determine a calibration: the temperature ended"):
        fit.checked()
    kept = determined_calibration(
        logits, right, np.full(15, 50.0), weights=np.ones(15), with_novelty=True, with_bias=True,
        earlier=Calibration(1.7),
    )  # fmt: skip
    assert kept.calibration == Calibration(1.7)
    assert "the temperature" in kept.at_bound
    assert kept.nll_after == pytest.approx(
        -np.log(Calibration(1.7).probabilities(logits)[range(15), right]).mean(), abs=1e-9
    )


def test_what_the_pairs_determine_is_kept() -> None:
    logits, novelty, labels = drawn(Calibration(1.4), n=2000)
    fit = determined_calibration(
        logits, np.minimum(labels, 2), novelty, weights=np.ones(2000), with_novelty=True, with_bias=True,
        earlier=Calibration(),
    )  # fmt: skip
    assert fit.at_bound == "the bias of grade 3"
    assert fit.calibration.bias == ()
    assert fit.calibration.needs_novelty


def test_probabilities_add_the_bias_to_the_scaled_logits() -> None:
    logits = np.array([[1.0, 2.0, 0.0], [0.0, -1.0, 3.0]])
    found = Calibration(2.0, bias=(0.0, 0.5, -1.0)).probabilities(logits)
    assert found == pytest.approx(softmax(np.array([[0.5, 1.5, -1.0], [0.0, 0.0, 0.5]])))
    assert Calibration(2.0, 1.0, (0.0, 0.5, -1.0)).at(100.0).probabilities(logits) == pytest.approx(
        Calibration(2.0 * np.e, bias=(0.0, 0.5, -1.0)).probabilities(logits)
    )


def test_it_reads_what_it_wrote() -> None:
    for calibration in (Calibration(1.5), Calibration(0.7, 0.2), Calibration(1.1, 0.3, (0.0, -0.5, 1.0))):
        assert Calibration.from_dict(calibration.to_dict()) == calibration
    assert "bias" not in Calibration(1.5).to_dict()


def test_bad_values() -> None:
    with pytest.raises(InputError, match="positive number"):
        Calibration(0.0)
    with pytest.raises(InputError, match="must be finite"):
        Calibration(1.0, bias=(0.0, float("nan")))
    with pytest.raises(InputError, match="biases for 2 grades, not for 3"):
        Calibration(1.0, bias=(0.0, 1.0)).probabilities(np.zeros((1, 3)))
    with pytest.raises(InputError, match="may have novelty_slope, bias and prevalence"):
        Calibration.from_dict({"temperature": 1.0, "bias": 3})
    with pytest.raises(InputError, match="without novelty"):
        fit_calibration(np.zeros((2, 3)), np.array([0, 1]), with_novelty=True)
