"""Whether an exported graph grades as torch does: measures on a sample, bounds a precision, layers that differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import kendalltau

from ..evaluation.ranking import ndcg as ndcg_of_queries
from ..results import PairScores
from ..trec.graded_pairs import GradedPair
from .activations import activations
from .agreement import Agreement
from .exit_parity import ExitParity
from .graph import GradeGraph

_DEPTH = 10


@dataclass(frozen=True, slots=True)
class Parity:
    """How far an export's results lie from torch's in float32.

    Attributes:
        pairs: number of pairs compared; grades are on `graded_pairs`.
        not_finite: how many of them the export gave no number for (an overflow).
        largest_difference, mean_difference: of probabilities.
        grade_agreement: share of pairs with the same grade, 0 to 1.
        grade_agreement_interval: of 95 %, see `Agreement.interval`.
        graded_pairs: number of pairs that these two are of.
        kendall_tau: tau-b of the scores, mean over queries with at least two documents; None if there is none.
        ndcg_difference: absolute difference of mean nDCG@10; None if the sample has no grades.
        novelty_difference, novelty_mean_difference: largest and mean, in percentile points; None without novelty.
        exit_margin, wrong_exits, exit_agreement: see `exit_parity.ExitParity`; None without early exits, which are off
            for all of the above.
    """

    pairs: int
    not_finite: int
    largest_difference: float
    mean_difference: float
    grade_agreement: float
    grade_agreement_interval: tuple[float, float]
    graded_pairs: int
    kendall_tau: float | None
    ndcg_difference: float | None
    novelty_difference: float | None
    novelty_mean_difference: float | None
    exit_margin: float | None = None
    wrong_exits: float | None = None
    exit_agreement: float | None = None

    def shown(self) -> dict[str, str]:
        """The measures as a person reads them; without those that are None."""
        rows = {}
        for name, value in asdict(self).items():
            if value is not None:
                parts = value if isinstance(value, tuple) else (value,)
                rows[name.replace("_", " ")] = " to ".join(f"{part:.3g}" for part in parts)
        return rows


# Measure: the worst value that passes; agreement is bounded from below, differences from above.
BOUNDS: dict[str, dict[str, float]] = {
    "float32": {"largest_difference": 1e-4, "grade_agreement": 0.99, "exit_margin": 1e-3, "wrong_exits": 0.01},
    "float16": {"largest_difference": 5e-3, "grade_agreement": 0.98, "exit_margin": 0.05, "wrong_exits": 0.01},
    "int8": {"grade_agreement": 0.97, "ndcg_difference": 0.005, "exit_margin": 0.25, "wrong_exits": 0.01},
    "int4": {"grade_agreement": 0.85, "ndcg_difference": 0.03, "exit_margin": 1.0, "wrong_exits": 0.01},
}
_AGREEMENTS = ("grade_agreement",)
# Percentile points, in the mean: beyond, an export's features say nothing of how strange a pair is.
NOVELTY_BOUND = 5.0


def compare(pairs: Sequence[GradedPair], torch_scores: PairScores, exported: PairScores) -> Parity:
    """The measures; all three arguments in the same order."""
    difference = np.abs(torch_scores.probabilities - exported.probabilities)
    groups: dict[str, list[int]] = {}
    for i, pair in enumerate(pairs):
        groups.setdefault(pair.qid, []).append(i)
    taus = [kendall_tau(torch_scores.score[g], exported.score[g]) for g in groups.values() if len(g) > 1]
    ndcg = None
    if all(pair.labelled for pair in pairs):
        means = [_mean_ndcg(pairs, groups, scores.score) for scores in (torch_scores, exported)]
        ndcg = None if means[0] is None or means[1] is None else abs(means[0] - means[1])
    novelty = None
    if torch_scores.novelty is not None and exported.novelty is not None:
        novelty = np.abs(torch_scores.novelty - exported.novelty)
    return Parity(
        pairs=len(pairs),
        not_finite=int((~np.isfinite(exported.logits)).any(axis=1).sum()),
        largest_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        **_of_grades(Agreement.of(torch_scores, exported)),
        kendall_tau=float(np.mean(taus)) if taus else None,
        ndcg_difference=ndcg,
        novelty_difference=None if novelty is None else float(novelty.max()),
        novelty_mean_difference=None if novelty is None else float(novelty.mean()),
    )


def with_agreement(parity: Parity, agreement: Agreement) -> Parity:
    """`parity` with its grades counted anew."""
    return replace(parity, **_of_grades(agreement))


def _of_grades(agreement: Agreement) -> dict[str, Any]:
    return {
        "grade_agreement": agreement.share,
        "grade_agreement_interval": agreement.interval,
        "graded_pairs": agreement.pairs,
    }


def with_exits(parity: Parity, exits: ExitParity) -> Parity:
    """`parity` with the measures of early exits."""
    return replace(parity, exit_margin=exits.margin, wrong_exits=exits.wrong, exit_agreement=exits.agreement)


def violations(parity: Parity, bounds: dict[str, float]) -> list[str]:
    """What lies beyond the bounds, one sentence each; a measure that is None is not judged, NaN never passes."""
    faults = []
    for name, bound in {"not_finite": 0.0, **bounds}.items():
        value = asdict(parity)[name]
        if value is None:
            continue
        least = name in _AGREEMENTS
        good = value >= bound if least else value <= bound
        if not good:
            sign = "at least" if least else "at most"
            of = f" of {parity.graded_pairs} pairs" if least else ""
            faults.append(f"{name.replace('_', ' ')} is {value:.3g}{of}, expected {sign} {bound:g}")
    return faults


def kendall_tau(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Tau-b (Kendall 1945) of two score vectors, shape (n,); 1 if either has ties only."""
    tau = float(kendalltau(first, second).statistic)
    return 1.0 if np.isnan(tau) else tau


def _mean_ndcg(pairs: Sequence[GradedPair], groups: Mapping[str, list[int]], scores: NDArray[Any]) -> float | None:
    """nDCG@10 over the queries that have a relevant document; None if none has. Equal scores keep the pairs' order."""
    qrels = {qid: {str(i): pairs[i].hard_grade or 0 for i in group} for qid, group in groups.items()}
    relevant = [qid for qid, judged in qrels.items() if max(judged.values()) > 0]
    if not relevant:
        return None
    run = {
        qid: {str(group[i]): -float(place) for place, i in enumerate(np.argsort(-scores[group], kind="stable"))}
        for qid, group in groups.items()
    }
    values = ndcg_of_queries(qrels, run, _DEPTH)
    return float(np.mean([values[qid] for qid in relevant]))


def layer_differences(graph: GradeGraph, made: Any, path: Path, inputs: dict[str, NDArray[Any]]) -> list[float]:
    """For each decoder layer how far its MLP's output in the exported graph lies from torch's: relative error in L2.

    Args:
        graph: the module that was traced.
        made: its float32 graph's products, by the name of their weight.
        path: the plain graph of the export.
        inputs: of the graph, one row without padding.
    """
    layers = graph.body.layers
    names = [made[f"layers.{i}.mlp.down_proj"].output[0] for i in range(len(layers))]
    seen: list[torch.Tensor] = []
    hooks = [layer.mlp.down_proj.register_forward_hook(lambda _, __, out: seen.append(out)) for layer in layers]
    try:
        with torch.no_grad():
            graph.of_row(torch.from_numpy(inputs["input_ids"]))
    finally:
        for hook in hooks:
            hook.remove()
    found = activations(path, names, [inputs])[0]
    # Of later layers both have the last token alone.
    exact = [states.numpy() for states in seen]
    return [
        float(np.linalg.norm(found[name] - e) / max(float(np.linalg.norm(e)), 1e-12))
        for name, e in zip(names, exact, strict=True)
    ]
