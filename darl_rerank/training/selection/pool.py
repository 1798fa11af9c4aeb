"""The pool of unlabelled pairs: from runs, without what is labelled already and without the test set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from darl_rerank.errors import InputError
from darl_rerank.offline import prepare, wanted_documents
from darl_rerank.trec.corpora import load_documents
from darl_rerank.trec.graded_pairs import GradedPair
from darl_rerank.trec.runs import read_run
from darl_rerank.trec.topics import read_topics

_SHOWN = 3


def pool_pairs(runs: Sequence[Path], topics: Path, corpus: Path, depth: int) -> list[GradedPair]:
    """The first `depth` documents of every query of every run, each pair once; documents without text are left out."""
    queries = read_topics(topics)
    read = [read_run(path) for path in runs]
    documents = load_documents(corpus, set().union(*(wanted_documents(run, depth) for run in read)))
    found: dict[tuple[str, str], GradedPair] = {}
    for run in read:
        job = prepare(run, queries, documents, depth=depth, missing="skip")
        for qid, candidates in job.candidates.items():
            for docid, text in candidates:
                found.setdefault((qid, docid), GradedPair(queries[qid], text, None, None, qid, docid))
    # Pairs of one query stand together, so that they share the run of its prompt's prefix.
    return sorted(found.values(), key=lambda pair: pair.qid)


def labelled_split(
    pairs: Sequence[GradedPair], held_out: float, *, seed: int = 0
) -> tuple[list[GradedPair], list[GradedPair]]:
    """Training pairs, and the pairs of a share of the queries that novelty's percentiles are made from.

    Raises:
        InputError: a share outside of 0..1, or too few queries for two parts.
    """
    if not 0 < held_out < 1:
        raise InputError(f"the held-out share of queries must lie between 0 and 1, got {held_out}")
    queries = sorted({pair.query.casefold() for pair in pairs})
    count = max(1, round(held_out * len(queries)))
    if count >= len(queries):
        raise InputError(f"the labelled set has {len(queries)} queries: too few to hold some out")
    rng = np.random.default_rng(seed)
    away = {queries[i] for i in rng.choice(len(queries), count, replace=False)}
    inside = [pair for pair in pairs if pair.query.casefold() not in away]
    return inside, [pair for pair in pairs if pair.query.casefold() in away]


def without_overlap(
    pool: Sequence[GradedPair], labelled: Sequence[GradedPair], tested: Sequence[GradedPair], *, refuse: bool
) -> tuple[NDArray[np.intp], dict[str, int]]:
    """Which pairs of the pool are no repeats, not labelled and not of the test set's queries, and the counts of those.

    Texts are compared without regard to case and white space.

    Args:
        pool, labelled, tested: pairs.
        refuse: raise an error if the pool shares queries with the test set, instead of leaving them out.

    Returns:
        numbers of the pairs that are left, increasing, shape (n,), and counts by reason.

    Raises:
        InputError: it does (with `refuse`), or nothing is left.
    """
    # Hashes of the texts, not the texts: a pool of a million pairs would stand in memory twice. 64 bits: that any two
    # of them agree by chance has a probability below 1e-7.
    known = {hash(pair.key) for pair in labelled}
    test_queries = {pair.key[0] for pair in tested}
    seen: set[int] = set()
    kept: list[int] = []
    counts = {"duplicates": 0, "already_labelled": 0, "in_test_set": 0}
    shared: dict[str, str] = {}
    for row, pair in enumerate(pool):
        key = pair.key
        digest = hash(key)
        if key[0] in test_queries:
            counts["in_test_set"] += 1
            shared.setdefault(key[0], pair.query)
        elif digest in known:
            counts["already_labelled"] += 1
        elif digest in seen:
            counts["duplicates"] += 1
        else:
            seen.add(digest)
            kept.append(row)
    if shared and refuse:
        some = "; ".join(list(shared.values())[:_SHOWN]) + (" …" if len(shared) > _SHOWN else "")
        raise InputError(
            f"the pool overlaps the test set: {counts['in_test_set']} pairs of {len(shared)} of its queries ({some}); "
            "--overlap skip leaves them out"
        )
    if not kept:
        why = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in counts.items() if count)
        raise InputError(f"nothing of the pool's {len(pool)} pairs is left: {why or 'it is empty'}")
    return np.array(kept, dtype=np.intp), counts
