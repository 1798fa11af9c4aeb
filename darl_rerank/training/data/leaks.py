"""Whether what is trained on overlaps what is tested on: the same query, or a document that is nearly the same.

Near-duplicates are found by MinHash with banding (Broder 1997; Indyk and Motwani 1998) over runs of five words and
then counted exactly, by the Jaccard coefficient of those runs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from darl_rerank.errors import InputError
from darl_rerank.trec.graded_pairs import GradedPair

_WORDS = 5
_BANDS, _ROWS = 16, 4
# With 16 bands of 4, two documents of this Jaccard coefficient meet with probability .97.
NEAR_DUPLICATE = 0.7


@dataclass(frozen=True, slots=True)
class Leaks:
    """What two sets of pairs share.

    Attributes:
        queries: queries that are in both, as text without regard to case and white space.
        documents: how many distinct documents of the second set stand in the first one too.
        near_duplicates: how many more have a near-duplicate there.
    """

    queries: tuple[str, ...]
    documents: int
    near_duplicates: int


def find_leaks(first: Sequence[GradedPair], second: Sequence[GradedPair]) -> Leaks:
    """What the second set (a test set) shares with the first (a training set)."""
    queries = {pair.key[0] for pair in first} & {pair.key[0] for pair in second}
    known = {pair.key[1] for pair in first}
    tested = {pair.key[1] for pair in second}
    return Leaks(tuple(sorted(queries)), len(known & tested), _near(known, tested - known))


def refuse_shared_queries(name: str, leaks: Leaks) -> None:
    """Raise InputError if there are shared queries; `name` says between what."""
    if leaks.queries:
        shown = "; ".join(repr(query[:60]) for query in leaks.queries[:3])
        raise InputError(f"{name} share {len(leaks.queries)} queries ({shown} …): split by query, or use `part`")


def _near(known: Iterable[str], tested: Iterable[str]) -> int:
    shingles = {text: _shingles(text) for text in tested}
    shingles = {text: found for text, found in shingles.items() if len(found)}
    buckets: dict[tuple[int, bytes], list[str]] = {}
    for text, found in shingles.items():
        for band in _bands(found):
            buckets.setdefault(band, []).append(text)
    hits: set[str] = set()
    for text in known:
        found = _shingles(text)
        if not len(found):
            continue
        candidates = {other for band in _bands(found) for other in buckets.get(band, ())} - hits
        for other in candidates:
            shared = len(np.intersect1d(found, shingles[other], assume_unique=True))
            if shared / (len(found) + len(shingles[other]) - shared) >= NEAR_DUPLICATE:
                hits.add(other)
    return len(hits)


def _shingles(text: str) -> NDArray[np.uint64]:
    """Digests of all runs of five words, distinct and sorted; shorter texts have none."""
    words = text.split()
    runs = {" ".join(words[i : i + _WORDS]) for i in range(len(words) - _WORDS + 1)}
    digests = [int.from_bytes(hashlib.blake2b(run.encode(), digest_size=8).digest(), "little") for run in runs]
    return np.sort(np.array(digests, dtype=np.uint64))


# Odd multipliers: each is a permutation of the 64-bit numbers.
_MULTIPLIERS = np.random.default_rng(0).integers(0, 2**63, _BANDS * _ROWS, dtype=np.uint64) * np.uint64(2) + np.uint64(
    1
)


def _bands(shingles: NDArray[np.uint64]) -> list[tuple[int, bytes]]:
    smallest = (shingles[:, None] * _MULTIPLIERS).min(axis=0).reshape(_BANDS, _ROWS)
    return [(band, row.tobytes()) for band, row in enumerate(smallest)]
