"""Weights rounded together: the product changes far less than where each number is rounded by itself."""

from __future__ import annotations

import numpy as np
import pytest
from darl_rerank.export.rounding import column_scales, rounded_columns

RNG = np.random.default_rng(0)


def test_columns_round_to_the_nearest_step() -> None:
    weight = np.array([[1.0, 0.0, -254.0], [-0.5, 0.0, 1.0]], np.float32)
    np.testing.assert_array_equal(rounded_columns(weight), [[127, 0, -127], [-64, 0, 0]])  # -63.5 rounds to even
    np.testing.assert_allclose(column_scales(weight), [[1 / 127, 1, 2]], rtol=1e-6)


@pytest.mark.parametrize("channels", [20, 150])  # a part of a block, and three of them
def test_what_goes_together_makes_up_for_the_error(channels: int) -> None:
    def tokens() -> np.ndarray:
        return (hidden @ mixed + 0.05 * RNG.normal(size=(600, channels))).astype(np.float32)

    hidden, mixed = RNG.normal(size=(600, 6)), RNG.normal(size=(6, channels))
    seen, others = tokens(), tokens()
    weight = RNG.normal(size=(channels, 30)).astype(np.float32)
    scale = column_scales(weight)

    def error(whole: np.ndarray) -> float:
        return float(np.linalg.norm(others @ (whole * scale) - others @ weight))

    together = rounded_columns(weight, seen.T @ seen)
    assert together.dtype == np.int8
    assert np.abs(together).max() == 127
    assert error(together) < 0.4 * error(rounded_columns(weight))


def test_channels_that_have_nothing_in_common_are_rounded_to_the_nearest() -> None:
    weight = RNG.normal(size=(70, 5)).astype(np.float32)
    np.testing.assert_array_equal(
        rounded_columns(weight, np.diag(np.arange(70.0, dtype=np.float32))), rounded_columns(weight)
    )
    # Nor does a channel that no token has make the matrix singular.
    np.testing.assert_array_equal(rounded_columns(weight, np.zeros((70, 70), np.float32)), rounded_columns(weight))
