"""Plans of steps, and the learning rate along them."""

from __future__ import annotations

import pytest

from darl_rerank.errors import InputError
from darl_rerank.training.data.examples import in_parts, query_examples
from darl_rerank.training.loop.steps import plan_steps
from darl_rerank.training.loop.trainer import learning_rate_schedule
from darl_rerank.trec.graded_pairs import GradedPair


def test_every_query_once_an_epoch_and_no_query_is_cut() -> None:
    sizes = [(7 * i) % 5 + 1 for i in range(50)]
    steps = plan_steps(sizes, batch=12, micro_batches=2, epochs=3)
    counts = [0] * 50
    for step in steps:
        assert len(step) == 2
        assert sum(sizes[i] for part in step for i in part) >= 12
        assert all(part for part in step)
        for part in step:
            for query in part:
                counts[query] += 1
    assert sum(c * s for c, s in zip(counts, sizes, strict=True)) > 3 * sum(sizes) - 12 - 5
    assert max(counts) <= 3
    assert plan_steps(sizes, batch=12, micro_batches=2, epochs=3) == steps
    assert plan_steps(sizes, batch=12, micro_batches=2, epochs=3, seed=1) != steps


def test_micro_batches_are_about_equal() -> None:
    for step in plan_steps([4] * 64, batch=32, micro_batches=4):
        assert [len(part) for part in step] == [2, 2, 2, 2]


def test_at_most_so_many_examples() -> None:
    steps = plan_steps([2] * 100, batch=10, max_examples=30)
    assert len(steps) == 3
    # Fewer than one step still is one.
    assert len(plan_steps([2, 3], batch=100)) == 1


def test_a_step_that_cannot_be_cut() -> None:
    with pytest.raises(InputError, match="1 queries can't be cut into 2"):
        plan_steps([40, 40], batch=32, micro_batches=2)
    with pytest.raises(InputError, match="nothing to train on"):
        plan_steps([], batch=32)


def test_examples_keep_queries_of_different_groups_apart() -> None:
    pairs = [
        GradedPair("q", "a", 1, None, "q", group="x"),
        GradedPair("q", "b", None, (0.5, 0.5, 0.0), "q", group="y"),
        GradedPair("q", "c", 2, None, "q", group="x"),
    ]
    found = query_examples(pairs, 3, weight=2.0)
    assert [(e.group, e.documents) for e in found] == [("x", ("a", "c")), ("y", ("b",))]
    assert found[0].targets.tolist() == [[0, 1, 0], [0, 0, 1]]
    assert found[1].targets.tolist() == [[0.5, 0.5, 0]]
    assert found[0].weights.tolist() == [2.0, 2.0]
    with pytest.raises(InputError, match="no label"):
        query_examples([GradedPair("q", "d", None, None, "q")], 3)


def test_learning_rate_rises_then_falls_with_steps_or_time() -> None:
    used = 0.0
    factor = learning_rate_schedule(100, 0.1, lambda: used)
    rates = [factor(step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert max(rates) == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=0.01)
    used = 1.0
    assert factor(20) == pytest.approx(0.1)


def test_long_lists_are_cut_into_parts_with_an_even_share_of_labels() -> None:
    pairs = [GradedPair("q", f"text {i}", i % 4 if i < 8 else 0, None, "q") for i in range(18)]
    pairs += [GradedPair("q2", "text", 1, None, "q2")]
    examples = query_examples(pairs, 4, weight=0.5)
    labels = dict(zip(examples[0].documents, examples[0].targets.argmax(axis=1).tolist(), strict=True))
    parts = in_parts(examples, 8, seed=3)
    assert [len(part) for part in parts] == [6, 6, 6, 1]
    assert sorted(d for part in parts[:3] for d in part.documents) == sorted(examples[0].documents)
    for part in parts[:3]:
        assert part.query == "q"
        assert 3 <= part.targets[:, 0].sum() <= 5
        assert part.targets.argmax(axis=1).tolist() == [labels[document] for document in part.documents]
        assert part.weights.tolist() == [0.5] * 6
    assert parts[3] is examples[1]
    assert [part.documents for part in in_parts(examples, 8, seed=3)] == [part.documents for part in parts]
    assert in_parts(examples, 18, seed=3) == examples
