"""Pairs of the bundled catalogue: what an export is compared on, and what int8 is fitted to, which are others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from .. import icecat
from ..trec.graded_pairs import GradedPair

_QUERIES = 8
_DOCUMENTS = 8
_CALIBRATION_QUERIES = 24
# More than are needed: some have fewer documents.
_FURTHER_QUERIES, _FURTHER_PARTS = 32, 3


def bundled_sample() -> list[GradedPair]:
    """64 pairs: the first queries, the first judged products of each."""
    return _pairs(0, _QUERIES, _DOCUMENTS)


def calibration_sample() -> list[GradedPair]:
    """A pair each of later queries."""
    return _pairs(_QUERIES, _QUERIES + _CALIBRATION_QUERIES, 1)


def further_samples() -> Iterator[list[GradedPair]]:
    """Three parts of 64 pairs of queries that neither has, to go on with where the first 64 leave it open."""
    size, first = _QUERIES * _DOCUMENTS, _QUERIES + _CALIBRATION_QUERIES
    pairs = _pairs(first, first + _FURTHER_QUERIES, _DOCUMENTS)
    for start in range(0, _FURTHER_PARTS * size, size):
        yield pairs[start : start + size]


def halves(sample: Sequence[GradedPair]) -> tuple[list[GradedPair], list[GradedPair]]:
    """A sample of a user's own: what is fitted to and what is measured, which share no query.

    They have every other query each, in the order in which queries come; the measured half has the first. A single
    query is measured, and what is fitted to are pairs of the catalogue.
    """
    queries = list(dict.fromkeys(pair.qid for pair in sample))
    if len(queries) == 1:
        return calibration_sample(), list(sample)
    measured = set(queries[::2])
    return [pair for pair in sample if pair.qid not in measured], [pair for pair in sample if pair.qid in measured]


def _pairs(first: int, end: int, documents: int) -> list[GradedPair]:
    """Of these queries, in the order of their ids, so many products each, in the order of theirs."""
    texts, judged = icecat.queries(), icecat.judgements()
    chosen = {qid: list(islice(sorted(judged[qid]), documents)) for qid in islice(sorted(judged), first, end)}
    wanted = {docid for docids in chosen.values() for docid in docids}
    products_by_id = {p.docid: f"{p.title}\n{p.text}" for p in icecat.read_products() if p.docid in wanted}
    return [
        GradedPair(texts[qid], products_by_id[docid], judged[qid][docid], None, qid, docid)
        for qid, docids in chosen.items()
        for docid in docids
        if docid in products_by_id
    ]
