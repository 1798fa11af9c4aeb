"""Fusion of rankings: by places (several first stages into one), or by standardised scores (first stage and model)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from darl_rerank.arguments import check_count
from darl_rerank.errors import InputError

# The constant of Cormack, Clarke and Büttcher (SIGIR 2009); it keeps one first place from outweighing two good ones.
RRF_K = 60.0


@dataclass(frozen=True, slots=True)
class FusedHit:
    """One document of a fused ranking; looks like a hit of Pyserini.

    Attributes:
        docid: its id.
        score: sum over the rankings of weight / (k + rank), ranks from 1.
        lucene_document: the stored document, from the first hit that carried one; None if none did.
    """

    docid: str
    score: float
    lucene_document: Any = None


def fuse(
    rankings: Sequence[Sequence[Any]],
    *,
    k: float = RRF_K,
    weights: Sequence[float] | None = None,
    top_k: int | None = None,
) -> list[FusedHit]:
    """Fuse rankings of one query: score = sum of weight / (k + rank), equation of Cormack et al., SIGIR 2009.

    Only places count, not scores. A document listed twice in a ranking counts once, at its better place. Documents
    with equal scores keep the order in which they first appear, reading the rankings one after the other.

    Args:
        rankings: each the best first; of docids, (docid, score) pairs, or objects with `docid`: hits, run entries,
            reranked documents.
        k: how flat the weight of places is, above 0.
        weights: one for each ranking, not negative; all 1 if None.
        top_k: how many documents to keep; all if None.

    Raises:
        InputError: no ranking, an element without docid, or an argument out of its range.
    """
    factors = check_weights(len(rankings), k, weights)
    if top_k is not None:
        check_count("top_k", top_k)
    scores: dict[str, float] = {}
    stored: dict[str, Any] = {}
    for number, (ranking, factor) in enumerate(zip(rankings, factors, strict=True)):
        if isinstance(ranking, (str, bytes, Mapping)):
            raise InputError(f"ranking {number}: expected a list of documents, got {type(ranking).__name__}")
        seen: set[str] = set()
        for item in ranking:
            docid = _docid(item, number)
            if docid in seen:
                continue
            seen.add(docid)
            scores[docid] = scores.get(docid, 0.0) + factor / (k + len(seen))
            if stored.get(docid) is None:
                stored[docid] = getattr(item, "lucene_document", None)
    ordered = sorted(scores, key=scores.__getitem__, reverse=True)[:top_k]
    return [FusedHit(docid, scores[docid], stored[docid]) for docid in ordered]


def fuse_runs(
    runs: Sequence[Mapping[str, Sequence[Any]]],
    *,
    k: float = RRF_K,
    weights: Sequence[float] | None = None,
    top_k: int | None = None,
) -> dict[str, list[FusedHit]]:
    """`fuse` for many queries: TREC runs (`read_run`) or what `batch_search` returned, by query id.

    A query that a run lacks is fused from the others.

    Raises:
        InputError: as `fuse`.
    """
    check_weights(len(runs), k, weights)
    qids = dict.fromkeys(qid for run in runs for qid in run)
    return {qid: fuse([run.get(qid, ()) for run in runs], k=k, weights=weights, top_k=top_k) for qid in qids}


def fuse_scores(
    first: Sequence[float] | NDArray[np.floating[Any]] | None, second: NDArray[np.floating[Any]], weight: float
) -> NDArray[np.float64]:
    """One score a document from two of one query: weight · z(second) + (1 - weight) · z(first).

    z takes the query's mean from a score and divides it by the query's standard deviation, so that scores of any two
    systems can be added; of scores that are all equal it makes zeros.

    Args:
        first: a score a document, shape (n,); None if only places are known, the best first: then -log(place).
        second: shape (n,).
        weight: of the second, 0..1.

    Raises:
        InputError: different lengths, or a score that is not a finite number.
    """
    other = np.asarray(second, dtype=np.float64)
    places = -np.log(np.arange(1, len(other) + 1, dtype=np.float64))
    one = places if first is None else np.asarray(first, dtype=np.float64)
    if one.shape != other.shape or not (np.isfinite(one).all() and np.isfinite(other).all()):
        raise InputError(
            f"a fusion needs a finite score from both for every document, got {one.shape} and {other.shape}"
        )
    return np.asarray(weight * _standardised(other) + (1 - weight) * _standardised(one))


def _standardised(values: NDArray[np.float64]) -> NDArray[np.float64]:
    if not len(values):
        return values
    centred = values - values.mean()
    spread = centred.std()
    # Below this the differences are rounding.
    return centred / spread if spread > 1e-12 * max(1.0, np.abs(values).max()) else np.zeros_like(values)


def check_weights(count: int, k: float, weights: Sequence[float] | None) -> Sequence[float]:
    """The weights of `count` rankings, all 1 if None; InputError for what `fuse` can't take."""
    if count == 0:
        raise InputError("expected at least one ranking to fuse, got none")
    if not k > 0:
        raise InputError(f"k must be above 0, got {k}")
    if weights is None:
        return [1.0] * count
    if len(weights) != count:
        raise InputError(f"got {count} rankings but {len(weights)} weights")
    if not all(0 <= weight < float("inf") for weight in weights):
        raise InputError(f"weights must be finite and not negative, got {list(weights)}")
    return weights


def _docid(item: Any, number: int) -> str:
    if isinstance(item, (tuple, list)) and item:
        item = item[0]
    docid = item if isinstance(item, str) else getattr(item, "docid", None)
    if not isinstance(docid, str):
        raise InputError(
            f"ranking {number}: expected docids, (docid, score) pairs or objects with docid, got {type(item).__name__}"
        )
    return docid
