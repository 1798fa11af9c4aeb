"""Early exits of an export: how far its probabilities there lie from torch's, and the threshold that allows for it.

A pair leaves where P_e(grade >= g) lies below the rule's threshold. An export that finds less than torch lets pairs go
that torch keeps, and the rule's promise was made for torch. One that finds more keeps pairs that torch lets go, which
costs time alone. So it is the first that has to be bounded, and it can be made good. For each pair of a sample let

    drop = log-odds of the smallest P_e by torch - the same by the export

and `margin` the largest drop, at least 0, by which the export's threshold is lowered, in log-odds. Then no pair of the
sample leaves that torch keeps. Of pairs like those of the sample one in n + 1 at most has a larger drop (the rank of a
new pair's among n + 1 is uniform: split conformal prediction; Vovk et al., 2005), and of those only such leave wrongly
as lie near the threshold.

To count pairs that leave alike says less: of 64 a single one near the threshold decides it, whichever side it is on.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..model.decisions import reaches
from ..model.exits import Exits

_CERTAIN = 1e-9


@dataclass(frozen=True, slots=True)
class WatchedExits(Exits):
    """Exits that note what an engine finds at them and let nothing go before the last.

    Attributes:
        stop: whether all pairs leave behind the last exit; False to run them whole.
        seen: P_e(grade >= g) by the exit's layer, in the order in which the engine asks; that of its micro-batches.
    """

    stop: bool = False
    seen: dict[int, list[float]] = field(default_factory=dict)

    @classmethod
    def of(cls, exits: Exits, *, stop: bool) -> WatchedExits:
        return cls(exits.heads, exits.rule, stop)

    def leaving(self, layer: int, logits: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
        assert self.rule is not None
        found = reaches(self.at(layer).probabilities(logits), self.rule.promise.grade)
        self.seen.setdefault(layer, []).extend(found.tolist())
        return np.full(len(logits), self.stop and layer == self.layers[-1])

    def log_odds(self) -> NDArray[np.float64]:
        """Of what was seen, shape (exits, n)."""
        return _log_odds([self.seen[layer] for layer in self.layers])


@dataclass(frozen=True, slots=True)
class ExitParity:
    """What `Parity` has of exits.

    Attributes:
        margin: by how much the threshold is lowered, in log-odds.
        wrong: share of pairs that would leave and that torch keeps, each under the margin of the other pairs, 0 to 1.
        agreement: share of pairs that leave behind the same layer, or stay, under the lowered threshold.
    """

    margin: float
    wrong: float
    agreement: float


def compare_exits(by_torch: WatchedExits, by_export: WatchedExits) -> ExitParity:
    """The measures, from what both found for the same pairs in the same order, at least one."""
    assert by_torch.rule is not None
    exact, exported = by_torch.log_odds(), by_export.log_odds()
    limit = _log_odds(by_torch.rule.threshold)
    drop = np.maximum(exact.min(axis=0) - exported.min(axis=0), 0)
    margin = float(drop.max())
    others = np.full(len(drop), margin)
    # The margin without a pair is another's drop only if the pair's own was the largest.
    others[drop.argmax()] = np.partition(drop, -2)[-2] if len(drop) > 1 else 0
    wrong = (exported.min(axis=0) < limit - others) & (exact.min(axis=0) >= limit)
    left = [_first(odds < bound) for odds, bound in ((exact, limit), (exported, limit - margin))]
    return ExitParity(margin, float(wrong.mean()), float((left[0] == left[1]).mean()))


def with_margin(exits: Exits, margin: float) -> Exits:
    """Exits whose threshold is lowered by `margin` in log-odds."""
    assert exits.rule is not None
    threshold = exits.rule.threshold
    lowered = threshold / (threshold + (1 - threshold) * np.exp(margin))
    facts = {**exits.rule.facts, "export_margin": margin}
    return Exits(exits.heads, replace(exits.rule, threshold=float(lowered), facts=facts))


def _first(below: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Of each pair the first exit at which it is below, the number of exits where it is at none."""
    found: NDArray[np.intp] = np.where(below.any(axis=0), below.argmax(axis=0), len(below))
    return found


def _log_odds(probabilities: Any) -> NDArray[np.float64]:
    found = np.clip(np.asarray(probabilities, dtype=np.float64), _CERTAIN, 1 - _CERTAIN)
    odds: NDArray[np.float64] = np.log(found) - np.log1p(-found)
    return odds
