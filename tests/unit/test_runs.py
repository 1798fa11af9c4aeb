from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from darl_rerank.errors import InputError
from darl_rerank.trec.runs import in_given_order, in_trec_order, read_run, run_lines, strictly_decreasing, write_run

scores = st.lists(st.floats(-1e6, 1e6), max_size=40).map(lambda values: sorted(values, reverse=True))


@given(scores)
def test_written_scores_strictly_decrease_as_text_and_as_float32(values: list[float]) -> None:
    texts = strictly_decreasing(values)
    as_text = [float(text) for text in texts]
    as_float32 = [np.float32(text) for text in texts]
    assert all(high > low for high, low in pairwise(as_text))
    assert all(high > low for high, low in pairwise(as_float32))


def test_scores_that_differ_are_written_as_they_are() -> None:
    assert strictly_decreasing([2.5, 1.25, -3.0]) == ["2.500000", "1.250000", "-3.000000"]
    assert strictly_decreasing([1.0, 1.0, 0.5]) == ["1.000000", "0.999999", "0.500000"]


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30))
def test_the_order_given_is_the_order_read(tmp_path_factory: pytest.TempPathFactory, values: list[float]) -> None:
    path = tmp_path_factory.mktemp("run") / "run"
    ranking = [(f"d{i}", value) for i, value in enumerate(sorted(values, reverse=True))]
    write_run(path, {"q1": ranking}, "test")
    assert [entry.docid for entry in read_run(path)["q1"]] == [docid for docid, _ in ranking]


def test_a_run_of_ids_keeps_its_order_where_trec_eval_would_go_by_id() -> None:
    docids = [f"d{i}" for i in (3, 1, 2, 10)]
    run = in_given_order({"q1": docids, "q2": []})
    scores = {entry.docid: entry.score for entry in run["q1"]}
    assert [entry.docid for entry in in_trec_order(scores)] == docids
    assert run["q2"] == []


def test_ties_are_read_in_trec_evals_order(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.write_text("q1 Q0 a 1 1.0 x\nq1 Q0 b 2 1.0 x\nq1 Q0 c 3 2.0 x\n")
    assert [entry.docid for entry in read_run(path)["q1"]] == ["c", "b", "a"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q1 Q0 d 1 0.5", "expected 6 columns .* found 5"),
        ("q1 Q0 d 1 high x", "expected a finite number as score, found 'high'"),
        ("q1 Q0 d 1 nan x", "found 'nan'"),
        ("q1 Q0 d 1 inf x", "found 'inf'"),
        ("q1 Q0 first 1 0.5 x", "document first is listed twice for query q1"),
    ],
)
def test_faulty_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "run"
    path.write_text(f"q1 Q0 first 1 1.0 x\n{line}\n")
    with pytest.raises(InputError, match=message) as caught:
        read_run(path)
    assert str(caught.value).startswith(f"{path}:2: ")


def test_all_faults_are_reported_at_once(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.write_text("".join(f"q{i} Q0 d\n" for i in range(30)))
    with pytest.raises(InputError) as caught:
        read_run(path)
    assert f"{path}:10:" in str(caught.value)
    assert "and 20 more faults" in str(caught.value)


def test_an_empty_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.write_text("\n")
    with pytest.raises(InputError, match="the run is empty"):
        read_run(path)


@pytest.mark.parametrize(
    ("qid", "docid", "tag"), [("q 1", "d", "t"), ("q", "d\t1", "t"), ("q", "d", ""), ("q", "", "t")]
)
def test_ids_with_white_space_are_not_written(tmp_path: Path, qid: str, docid: str, tag: str) -> None:
    path = tmp_path / "run"
    with pytest.raises(InputError, match="one word"):
        write_run(path, {qid: [(docid, 1.0)]}, tag)
    assert list(tmp_path.iterdir()) == []


def test_what_was_not_judged_stands_last(tmp_path: Path) -> None:
    write_run(tmp_path / "run", {"1": [("a", 0.5), ("b", None), ("c", None)], "2": [("z", None), ("a", None)]}, "t")
    run = read_run(tmp_path / "run")
    assert [entry.docid for entry in run["1"]] == ["a", "b", "c"]
    assert [entry.docid for entry in run["2"]] == ["z", "a"]


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf, 1e39])
def test_a_score_that_no_run_can_hold_is_refused(score: float) -> None:
    with pytest.raises(InputError, match="can't stand in a run: expected a finite number"):
        run_lines("q1", [("d1", score), ("d2", score)], "tag")
