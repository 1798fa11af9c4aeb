"""Weights between the probed and the fine-tuned model: θ = (1 − α)·θ_probe + α·θ_finetuned, head and body together.

Source: WiSE-FT, Wortsman et al., "Robust fine-tuning of zero-shot models" (CVPR 2022); the average of several
fine-tuned models is a model soup (Wortsman et al., ICML 2022).

Under LoRA the difference ΔW = B·A·alpha/rank is what is interpolated: scaled by α. Averaging A and B on their own
would give cross terms B_i·A_j that no model has been trained with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from darl_rerank.errors import InputError
from darl_rerank.evaluation import calibration as measures
from darl_rerank.evaluation.grading import confusion, quadratic_weighted_kappa
from darl_rerank.evaluation.pairs import ndcg_per_query
from darl_rerank.model.calibration import Calibration

from .calibrate import fit_calibration

State = Mapping[str, Tensor]
ALPHAS = tuple(i / 10 for i in range(11))
MEASURES = ("ndcg@10", "qwk", "nll", "rps")
# Which way a measure improves.
_SIGN = {"ndcg@10": 1, "qwk": 1, "nll": -1, "rps": -1}


@dataclass(frozen=True, slots=True)
class GradedSet:
    """Pairs that a state of the model is judged on.

    Attributes:
        labels: grades, shape (n,).
        queries: shape (n,).
    """

    labels: NDArray[np.intp]
    queries: NDArray[Any]


@dataclass(frozen=True, slots=True)
class AlphaCurve:
    """What each α gives, and the one chosen.

    Attributes:
        alphas: in rising order.
        values: by name of the set ("ID dev", "OOD dev") and measure, a value an α.
        chosen: the best α.
        chosen_by: the measure, whose mean over the sets decides.
    """

    alphas: tuple[float, ...]
    values: dict[str, dict[str, list[float]]]
    chosen: float
    chosen_by: str

    def to_dict(self) -> dict[str, Any]:
        return {
            "alphas": list(self.alphas),
            "values": self.values,
            "chosen": self.chosen,
            "chosen_by": self.chosen_by,
        }


def interpolated(start: State, end: State, alpha: float) -> dict[str, Tensor]:
    """The state at `alpha` between two states of `GradeModel.trainable_state`, 0 the first and 1 the second.

    LoRA's B is scaled and its A kept, which scales ΔW, provided that ΔW is zero at the start.

    Raises:
        InputError: other weights in the two, or an adapter that does not start at zero.
    """
    if start.keys() != end.keys():
        raise InputError("states with different weights can't be interpolated")
    result = {}
    for name, value in end.items():
        if ".lora_A." in name:
            result[name] = value.clone()
            continue
        if ".lora_B." in name and bool(start[name].any()):
            raise InputError("interpolation starts from the model without an adapter, but this one had one already")
        result[name] = torch.lerp(start[name].float(), value.float(), alpha).to(value.dtype)
    return result


def average(states: Sequence[State]) -> dict[str, Tensor]:
    """The mean of fine-tuned states (a model soup).

    LoRA's factors are put side by side, so that the new ΔW is exactly the mean of the old ones; the rank becomes the
    sum of the ranks, and the model that takes it needs `rank` and `alpha` times as large.

    Raises:
        InputError: no states, or states with different weights.
    """
    if not states or any(state.keys() != states[0].keys() for state in states):
        raise InputError("an average needs states of the same weights")
    result = {}
    for name in states[0]:
        values = [state[name].float() for state in states]
        if ".lora_A." in name:
            result[name] = torch.cat(values, dim=0)
        elif ".lora_B." in name:
            result[name] = torch.cat(values, dim=1) / len(values)
        else:
            result[name] = torch.stack(values).mean(0)
    return result


def alpha_curve(
    logits_at: Callable[[float], Mapping[str, NDArray[np.floating[Any]]]],
    sets: Mapping[str, GradedSet],
    gains: NDArray[np.floating[Any]],
    *,
    alphas: Sequence[float] = ALPHAS,
    choose_by: str = "rps",
) -> AlphaCurve:
    """Judge every α on every set and choose the best; of equals the smallest, which is nearest to the base model.

    Before probabilities are judged they are temperature-scaled, one temperature for all sets, so that no α is chosen
    for what one scalar does afterwards.

    Args:
        logits_at: α to grade logits of each set, (n, K).
        sets: by name.
        gains: shape (K,).
        alphas: to try.
        choose_by: one of `MEASURES`.

    Raises:
        InputError: an unknown measure, no sets, or an α outside [0, 1].
    """
    if choose_by not in MEASURES:
        raise InputError(f"α is chosen by one of {', '.join(MEASURES)}, got {choose_by!r}")
    if not sets:
        raise InputError("α needs graded pairs to be chosen on")
    if not alphas or not all(0 <= alpha <= 1 for alpha in alphas):
        raise InputError(f"α must lie within 0 and 1, got {list(alphas)}")
    ordered = tuple(sorted(alphas))
    values: dict[str, dict[str, list[float]]] = {name: {m: [] for m in MEASURES} for name in sets}
    for alpha in ordered:
        logits = logits_at(alpha)
        scaled = _temperature(logits, sets)
        for name, members in sets.items():
            found = judged(scaled.probabilities(logits[name]), members, np.asarray(gains, dtype=np.float64))
            for measure, value in found.items():
                values[name][measure].append(value)
    sign = _SIGN[choose_by]
    means = sign * np.mean([values[name][choose_by] for name in sets], axis=0)
    return AlphaCurve(ordered, values, ordered[int(np.nanargmax(means))], choose_by)


def judged(probabilities: NDArray[np.float64], members: GradedSet, gains: NDArray[np.float64]) -> dict[str, float]:
    """The `MEASURES` of grade probabilities, shape (n, K)."""
    labels = members.labels
    ndcg = ndcg_per_query(labels, probabilities @ gains, gains, members.queries)
    _, first = np.unique(members.queries, return_index=True)
    # A set of queries without any relevant document has no nDCG; 0 says less than NaN but can be averaged.
    per_query = ndcg[first][np.isfinite(ndcg[first])]
    counts = confusion(labels, probabilities.argmax(axis=1), len(gains))
    return {
        "ndcg@10": float(per_query.mean()) if len(per_query) else 0.0,
        "qwk": float(quadratic_weighted_kappa(counts)),
        "nll": float(measures.negative_log_likelihood(labels, probabilities)),
        "rps": float(measures.ranked_probability_score(labels, probabilities)),
    }


def _temperature(logits: Mapping[str, NDArray[np.floating[Any]]], sets: Mapping[str, GradedSet]) -> Calibration:
    together = np.concatenate([logits[name] for name in sets])
    # Every set counts alike, however many pairs it has.
    weights = np.concatenate([np.full(len(members.labels), 1 / len(members.labels)) for members in sets.values()])
    labels = np.concatenate([members.labels for members in sets.values()])
    return fit_calibration(together, labels, weights=weights).calibration
