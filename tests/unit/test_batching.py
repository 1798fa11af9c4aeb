from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darl_rerank.engines.batching import MIN_SHARED, plan
from darl_rerank.errors import InputError
from darl_rerank.model.prompt import PromptGroup


def group(prefix: list[int], lengths: list[int]) -> PromptGroup:
    suffixes = tuple(tuple([7] * length) for length in lengths)
    return PromptGroup(tuple(prefix), suffixes, tuple(range(len(lengths))), (False,) * len(lengths))


groups = st.lists(
    st.builds(group, st.lists(st.integers(0, 9), min_size=1, max_size=5), st.lists(st.integers(1, 30), max_size=9)),
    max_size=5,
)


@given(groups, st.integers(1, 100), st.booleans())
def test_every_sequence_runs_once_within_the_budget(groups: list[PromptGroup], budget: int, share_prefix: bool) -> None:
    whole = [g.prefix + suffix for g in groups for suffix in g.suffixes]
    seen: dict[int, tuple[int, ...]] = {}
    for batch in plan(groups, budget, share_prefix=share_prefix):
        longest = max(map(len, batch.sequences))
        assert len(batch.sequences) == 1 or len(batch.sequences) * longest <= budget
        for position, sequence in zip(batch.positions, batch.sequences, strict=True):
            assert position not in seen
            seen[position] = batch.prefix + sequence
    assert [seen[i] for i in range(len(whole))] == whole


def test_small_groups_run_whole_and_large_ones_share_their_prefix() -> None:
    batches = list(plan([group([1], [3] * MIN_SHARED), group([2], [3])], 1000))
    assert [batch.prefix for batch in batches] == [(1,), ()]


def test_a_long_prefix_and_long_sequences_count() -> None:
    """Their keys and values, and attention's products, are memory as well."""
    (short,) = plan([group([1] * 30, [10] * 90)], 1000)
    assert len(short.sequences) == 90
    # 10 tokens behind 790: keys and values of 800 tokens take as much as 200 of its own.
    assert [len(batch.sequences) for batch in plan([group([1] * 790, [10] * 10)], 1000)] == [5, 5]
    # 2,048 tokens that each see 2,048 others at most.
    assert [len(batch.sequences) for batch in plan([group([1], [2047] * 4)], 4096 * 2)] == [2, 2]


def test_a_budget_below_one_is_refused() -> None:
    with pytest.raises(InputError, match="batch_tokens"):
        list(plan([], 0))
