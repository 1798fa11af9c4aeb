from __future__ import annotations

import math

import numpy as np
import pytest

from darl_rerank import RelevanceScale
from darl_rerank.errors import InputError
from darl_rerank.model.scale import SCALES, Grade


@pytest.mark.parametrize("name", sorted(SCALES))
def test_named_scales_survive_a_round_trip(name: str) -> None:
    scale = RelevanceScale.named(name)
    assert RelevanceScale.from_dict(scale.to_dict()) == scale
    assert (scale.gains[1:] > scale.gains[:-1]).all()


def test_unknown_scale_names_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"unknown relevance scale 'stars'.*trec4"):
        RelevanceScale.named("stars")


@pytest.mark.parametrize(
    ("grades", "message"),
    [
        ([Grade("only", ("a",), 0.0)], "at least two"),
        ([Grade("low", ("a",), 0.0), Grade("low", ("b",), 1.0)], "twice"),
        ([Grade("low", ("a",), 0.0), Grade("high", ("a",), 1.0)], "none of them used twice"),
        ([Grade("low", ("a",), 1.0), Grade("high", ("b",), 1.0)], "rise"),
        ([Grade("low", ("a",), 0.0), Grade("high", ("b",), math.nan)], "finite"),
    ],
)
def test_faulty_scales_are_refused(grades: list[Grade], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RelevanceScale("mine", tuple(grades))


def test_the_expected_gain_of_a_row_does_not_depend_on_the_others() -> None:
    scale = SCALES["trec4"]
    rows = np.random.default_rng(0).dirichlet(np.ones(4), 64)
    whole = scale.expected_gain(rows)
    np.testing.assert_allclose(whole, rows @ scale.gains, rtol=1e-12)
    assert all(scale.expected_gain(rows[i : i + 1])[0] == whole[i] for i in range(len(rows)))
