"""Data frames: candidates in rows, of pandas or polars, reranked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from darl_rerank import Reranker
from darl_rerank.errors import InputError
from darl_rerank.results import RankedDocument

Frame = TypeVar("Frame")


def rerank_frame(
    reranker: Reranker,
    frame: Frame,
    *,
    qid: str = "qid",
    query: str = "query",
    text: str = "text",
    title: str | None = None,
    top_k: int | None = None,
    **options: Any,
) -> Frame:
    """Rerank each query's candidates; batches are filled across queries.

    Args:
        reranker: what judges.
        frame: a pandas or polars data frame, a candidate a row.
        qid: its column with query ids; rows of one id are one query's candidates, wherever they stand.
        query: its column with the queries' texts.
        text: its column with the documents' texts.
        title: its column with their titles, if it has one.
        top_k: how many rows of each query to return; all if None.
        options: other arguments of `Reranker.rerank_many`, such as min_grade="relevant".

    Returns:
        A frame of the same kind, queries in the order they came in, each one's rows the best first. All columns are
        kept; `score` (expected gain), `rank` (from 1), `grade`, `grade_name`, `probabilities`, `novelty`, `truncated`,
        `judged` and `reason` are added or replaced. A row that was not judged has null in the first ones.

    Raises:
        InputError: another kind of frame, a column that is not there, a query id with two texts, or an empty query.
    """
    columns = [qid, query, text, *([title] if title else [])]
    values = _columns(frame, columns)
    texts, members = group_rows(values[qid], values[query])
    titles = values[title] if title else [None] * len(values[text])
    documents = [[{"title": titles[i], "text": values[text][i]} for i in rows] for rows in members]
    rankings = reranker.rerank_many(texts, documents, top_k=top_k, **options) if texts else []
    rows = [members[n][ranked.index] for n, ranking in enumerate(rankings) for ranked in ranking]
    found: Frame = _taken(frame, rows, result_columns([ranked for ranking in rankings for ranked in ranking]))
    return found


def group_rows(qids: Sequence[Any], queries: Sequence[str]) -> tuple[list[str], list[list[int]]]:
    """The text of each query, in the order they come in, and the places of its rows.

    Raises:
        InputError: a query id with two texts.
    """
    members: dict[Any, list[int]] = {}
    for i, qid in enumerate(qids):
        members.setdefault(qid, []).append(i)
    for qid, rows in members.items():
        if other := next((i for i in rows if queries[i] != queries[rows[0]]), None):
            raise InputError(f"row {other}: query id {qid!r} has two texts: {queries[rows[0]]!r}, {queries[other]!r}")
    return [queries[rows[0]] for rows in members.values()], list(members.values())


def result_columns(ranked: Sequence[RankedDocument]) -> dict[str, list[Any]]:
    """The columns of a result, a row a document."""
    return {
        "score": [r.score for r in ranked],
        "rank": [r.rank for r in ranked],
        "grade": [r.grade for r in ranked],
        "grade_name": [r.grade_name for r in ranked],
        "probabilities": [list(r.probabilities) for r in ranked],
        "novelty": [r.novelty for r in ranked],
        "truncated": [r.truncated for r in ranked],
        "judged": [r.judged for r in ranked],
        "reason": [r.reason for r in ranked],
    }


def _columns(frame: Any, names: Sequence[str]) -> dict[str, list[Any]]:
    if not hasattr(frame, "columns") or not hasattr(frame, "__getitem__"):
        raise InputError(f"expected a pandas or polars data frame, got {type(frame).__name__}")
    if missing := [name for name in names if name not in frame.columns]:
        found = ", ".join(map(str, frame.columns))
        raise InputError(f"the frame lacks the columns {', '.join(missing)}; it has {found}")
    return {name: frame[name].to_list() for name in names}


def _taken(frame: Any, rows: list[int], columns: dict[str, list[Any]]) -> Any:
    if hasattr(frame, "with_columns"):
        import polars

        kinds = {
            "score": polars.Float64, "rank": polars.Int64, "grade": polars.Int64, "grade_name": polars.String,
            "probabilities": polars.List(polars.Float64), "novelty": polars.Float64, "truncated": polars.Boolean,
            "judged": polars.Boolean, "reason": polars.String,
        }  # fmt: skip
        new = [polars.Series(name, values, dtype=kinds[name]) for name, values in columns.items()]
        return frame[rows].with_columns(new)
    import pandas

    taken = frame.iloc[rows].reset_index(drop=True)
    for name, values in columns.items():
        # Int64 has a null where a grade is missing; plain integers would become floats.
        taken[name] = pandas.array(values, dtype="Int64") if name == "grade" else pandas.Series(values)
    return taken
