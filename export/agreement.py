"""How many pairs keep torch's grade, counted on as many as it takes to tell whether enough of them do.

Of 64 pairs one or two change their grade where .97 are to keep it, so that 64 alone pass or refuse by chance. So pairs
are added until Wald's sequential probability ratio test (1945) tells a share of changes that is half of what the bound
allows from one that is five thirds of it, each with an error of 10 %, or until there are no more: then the count itself
decides. Under .97 a share of .985 passes with 95 %, one of .95 with 8 % (of 64 pairs alone 75 and 16 %).

A pair can change its grade only where its score lies next to a cut point. So of the pairs that are added torch grades
only those that the export places nearer to one than twice the largest difference of scores in the first ones; the
others count as kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import log

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from ..results import PairScores
from ..trec.graded_pairs import GradedPair

_GOOD, _BAD, _ERROR = 1 / 2, 5 / 3, 0.1
_NEAR = 2.0
_CONFIDENCE = 0.95

Pairs = Sequence[GradedPair]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How many of `pairs` have the same grade."""

    same: int
    pairs: int

    @classmethod
    def of(cls, exact: PairScores, found: PairScores) -> Agreement:
        return cls(int((exact.grade == found.grade).sum()), len(exact))

    @property
    def share(self) -> float:
        return self.same / self.pairs

    @property
    def interval(self) -> tuple[float, float]:
        """Of the share, 95 % (Clopper and Pearson, 1934), as if pairs were independent of each other."""
        found = binomtest(self.same, self.pairs).proportion_ci(_CONFIDENCE)
        return float(found.low), float(found.high)

    def settled(self, bound: float) -> bool:
        """Whether the test tells on which side of `bound`, below 1, the share lies."""
        good, bad = (1 - bound) * _GOOD, (1 - bound) * _BAD
        ratio = self.same * log((1 - good) / (1 - bad)) + (self.pairs - self.same) * log(good / bad)
        return abs(ratio) >= log((1 - _ERROR) / _ERROR)


def counted(
    exact: PairScores,
    found: PairScores,
    further: Iterable[Pairs],
    bound: float,
    cuts: Sequence[float],
    *,
    by_torch: Callable[[Pairs], NDArray[np.intp]],
    by_export: Callable[[Pairs], PairScores],
) -> Agreement:
    """Of the first pairs, and of as many further parts as it takes.

    Args:
        exact, found: of the first pairs by torch and by the export, in one order.
        further: parts to go on with.
        bound: the share of pairs that are to keep their grade.
        cuts: the scores at which the grade changes.
        by_torch: grades pairs, shape (n,).
        by_export: scores pairs.
    """
    agreement = Agreement.of(exact, found)
    near = _NEAR * float(np.abs(exact.score - found.score).max())
    points = np.asarray(cuts, dtype=np.float64)
    parts = iter(further)
    while not agreement.settled(bound) and (part := next(parts, None)) is not None:
        scores = by_export(part)
        # What is not a number is near, and has torch's grade only by torch.
        rows = np.flatnonzero(~(np.abs(scores.score[:, None] - points).min(axis=1) > near)).tolist()
        same = len(part) - len(rows)
        if rows:
            same += int((by_torch([part[row] for row in rows]) == scores.grade[rows]).sum())
        agreement = Agreement(agreement.same + same, agreement.pairs + len(part))
    return agreement
