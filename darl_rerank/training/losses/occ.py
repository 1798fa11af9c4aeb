"""The training loss of DaRL as implemented here (OCC) and its four terms, each a function on its own.

    occ = CE + rps · RPS + over · OVER + rank · RANK

The idea, a loss against over-confidence that tells fine degrees of relevance apart, is from Liu et al., "Boosting
LLM-based Relevance Modeling with Distribution-Aware Robust Learning" (arXiv 2412.12504). The formulas are from the
sources named at each function.

Every function has the signature `Loss`. A loss is first a value per example, shape (n,), then a mean weighted by
example; no value depends on another query's examples, so a batch may be cut anywhere between two queries and the
parts' means, weighted by their sizes, give the whole batch's mean.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from darl_rerank.errors import InputError

from ..recipe.settings import OccWeights

Reduction = Literal["mean", "none"]


class Loss(Protocol):
    """What every loss and every comparison arm is called with.

    Args:
        logits: shape (n, K), K >= 2; half-precision logits are raised to float32 first.
        targets: grades, shape (n,), integers 0..K-1; or probabilities of the grades, shape (n, K), rows summing to 1.
        queries: shape (n,), integers: which query each example belongs to. Needed where examples are compared (RANK).
        gains: shape (K,): what a grade is worth; 0..K-1 if None. Used where a score is computed (RANK).
        weights: shape (n,), >= 0: weight of each example; all 1 if None.
        reduction: "mean" for the weighted mean, a scalar; "none" for weight times loss of each example, shape (n,).

    Raises:
        InputError: a shape or type is not as above, or `queries` is missing where needed.
    """

    def __call__(
        self,
        logits: Tensor,
        targets: Tensor,
        *,
        queries: Tensor | None = None,
        gains: Tensor | None = None,
        weights: Tensor | None = None,
        reduction: Reduction = "mean",
    ) -> Tensor: ...


def full_precision(logits: Tensor) -> Tensor:
    """`logits` in float32, or in float64 if they are already; grade probabilities are never computed in less."""
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise InputError(f"logits must have shape (n, K) with K >= 2, got {tuple(logits.shape)}")
    return logits if logits.dtype == torch.float64 else logits.float()


def soft_targets(targets: Tensor, logits: Tensor) -> Tensor:
    """`targets` as probabilities of the grades, shape (n, K), in the type of `logits`; grades become one-hot rows."""
    n, grades = logits.shape
    if targets.shape == (n,) and not targets.is_floating_point():
        return F.one_hot(targets.long(), grades).to(logits.dtype)
    if targets.shape == (n, grades) and targets.is_floating_point():
        return targets.to(logits.dtype)
    raise InputError(
        f"targets must be grades of shape ({n},) or probabilities of shape ({n}, {grades}), "
        f"got {str(targets.dtype).removeprefix('torch.')} of shape {tuple(targets.shape)}"
    )


def reduce(values: Tensor, weights: Tensor | None, reduction: Reduction) -> Tensor:
    """Weight the examples' `values`, shape (n,), and average them unless `reduction` is "none"."""
    if weights is not None:
        if weights.shape != values.shape:
            raise InputError(f"weights must have shape {tuple(values.shape)}, got {tuple(weights.shape)}")
        weights = weights.to(values.dtype)
        values = values * weights
    if reduction == "none":
        return values
    return values.mean() if weights is None else values.sum() / weights.sum().clamp_min(torch.finfo(values.dtype).tiny)


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    queries: Tensor | None = None,
    gains: Tensor | None = None,
    weights: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """CE = −Σ_k t_k log p_k, which is −log p_y for a hard label. Shapes as in `Loss`."""
    logits = full_precision(logits)
    values = -(soft_targets(targets, logits) * logits.log_softmax(dim=1)).sum(dim=1)
    return reduce(values, weights, reduction)


def ranked_probability_score(
    logits: Tensor,
    targets: Tensor,
    *,
    queries: Tensor | None = None,
    gains: Tensor | None = None,
    weights: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """RPS = Σ_{j<K−1} (F_j − T_j)², F and T the cumulative sums of p and t; T_j = 1[y ≤ j] for a hard label.

    Source: Epstein, "A scoring system for probability forecasts of ranked categories" (1969). It knows the order of
    the grades and is strictly proper. For a soft target it differs from the expected score over the target's grades
    by a term without p, so both have the same gradient. Shapes as in `Loss`; values in [0, K−1].
    """
    logits = full_precision(logits)
    forecast = logits.softmax(dim=1).cumsum(dim=1)[:, :-1]
    truth = soft_targets(targets, logits).cumsum(dim=1)[:, :-1]
    return reduce((forecast - truth).square().sum(dim=1), weights, reduction)


def log_complement(logits: Tensor) -> Tensor:
    """log(1 − p_k) for every grade, shape (n, K): logsumexp of the other grades' log-probabilities.

    Written as log(1 − p) it would be −inf as soon as p rounds to 1, from a logit margin of 17 in float32.
    """
    log_p = logits.log_softmax(dim=1)
    grades = logits.shape[1]
    others = log_p.unsqueeze(1).expand(-1, grades, -1)
    itself = torch.eye(grades, dtype=torch.bool, device=logits.device)
    return others.masked_fill(itself, -torch.inf).logsumexp(dim=2)


def overconfidence(
    logits: Tensor,
    targets: Tensor,
    *,
    queries: Tensor | None = None,
    gains: Tensor | None = None,
    weights: Tensor | None = None,
    reduction: Reduction = "mean",
    exponent: float = 1.0,
) -> Tensor:
    """OVER = Σ_{k>y} (k − y)^exponent · (−log(1 − p_k)): probability given to grades above the true one.

    Source: the upper half of the ordinal log-loss of Castagnos, Mihelich and Dognin, "A Simple Log-based Loss
    Function for Ordinal Text Classification" (COLING 2022). For a soft target, the expectation over its grades.
    Not proper: it draws the optimum below the true grade, which is why `OccWeights` gives it a small weight.
    Shapes as in `Loss`; zero for examples of the highest grade.
    """
    logits = full_precision(logits)
    rank = torch.arange(logits.shape[1], device=logits.device, dtype=logits.dtype)
    above = rank.unsqueeze(0) - rank.unsqueeze(1)
    # Row y, column k: what mass on grade k costs when the truth is y. The mask comes after the power: 0**0 is 1.
    cost = above.clamp_min(0).pow(exponent).masked_fill(above <= 0, 0)
    values = -((soft_targets(targets, logits) @ cost) * log_complement(logits)).sum(dim=1)
    return reduce(values, weights, reduction)


def pairwise_rank(
    logits: Tensor,
    targets: Tensor,
    *,
    queries: Tensor | None = None,
    gains: Tensor | None = None,
    weights: Tensor | None = None,
    reduction: Reduction = "mean",
    margin: float = 0.5,
) -> Tensor:
    """RANK = mean over pairs (i, j) of one query with t_i > t_j of w · softplus(margin · (t_i − t_j) − (s_i − s_j)).

    s = Σ_k p_k g_k is the score that orders documents, t the gain of the label (the expected gain of a soft target).
    w = min(1, (t_i − t_j) / the smallest step between two grades' gains) is 1 for hard labels: two soft labels that
    differ by less than a grade say that little about the order.
    Source: the logistic pairwise loss of RankNet (Burges et al., ICML 2005) with a margin that grows with the gap.

    A query's mean counts once for each of its n_q examples: example i of a query with P_q pairs has the value
    n_q / (2 P_q) times the sum over the pairs that contain i. Queries without such a pair have the value 0.
    Shapes as in `Loss`; memory is O(n²) for n examples in the call.
    """
    logits = full_precision(logits)
    if queries is None or queries.shape != logits.shape[:1]:
        found = "nothing" if queries is None else f"shape {tuple(queries.shape)}"
        raise InputError(
            f"a loss that compares a query's documents needs queries of shape ({len(logits)},), got {found}"
        )
    grades = logits.shape[1]
    if gains is None:
        gains = torch.arange(grades, device=logits.device)
    elif gains.shape != (grades,):
        raise InputError(f"gains must have shape ({grades},), got {tuple(gains.shape)}")
    gains = gains.to(logits)
    scores = logits.softmax(dim=1) @ gains
    truth = soft_targets(targets, logits) @ gains
    same = queries.unsqueeze(1) == queries.unsqueeze(0)
    gap = truth.unsqueeze(1) - truth.unsqueeze(0)
    ordered = (same & (gap > 0)).to(logits.dtype)
    importance = (gap / gains.diff().min()).clamp(0, 1)
    cost = ordered * importance * F.softplus(margin * gap - (scores.unsqueeze(1) - scores.unsqueeze(0)))
    membership = same.to(logits.dtype)
    pairs = membership @ ordered.sum(dim=1)
    values = membership.sum(dim=1) / (2 * pairs.clamp_min(1)) * (cost.sum(dim=1) + cost.sum(dim=0))
    return reduce(values, weights, reduction)


def occ_terms(
    logits: Tensor,
    targets: Tensor,
    *,
    queries: Tensor | None = None,
    gains: Tensor | None = None,
    weights: Tensor | None = None,
    reduction: Reduction = "mean",
    terms: OccWeights | None = None,
) -> dict[str, Tensor]:
    """The terms of `occ` that are switched on, each times its weight, for a log that shows them apart."""
    terms = terms or OccWeights()
    values = {"ce": cross_entropy(logits, targets, weights=weights, reduction=reduction)}
    if terms.rps:
        values["rps"] = terms.rps * ranked_probability_score(logits, targets, weights=weights, reduction=reduction)
    if terms.over:
        values["over"] = terms.over * overconfidence(
            logits, targets, weights=weights, reduction=reduction, exponent=terms.exponent
        )
    if terms.rank:
        values["rank"] = terms.rank * pairwise_rank(
            logits, targets, queries=queries, gains=gains, weights=weights, reduction=reduction, margin=terms.margin
        )
    return values


def occ(
    logits: Tensor,
    targets: Tensor,
    *,
    queries: Tensor | None = None,
    gains: Tensor | None = None,
    weights: Tensor | None = None,
    reduction: Reduction = "mean",
    terms: OccWeights | None = None,
) -> Tensor:
    """OCC, the over-confidence calibration loss of DaRL as implemented here: the sum of `occ_terms`.

    `queries` is needed unless `terms.rank` is 0. Shapes as in `Loss`.
    """
    parts = occ_terms(logits, targets, queries=queries, gains=gains, weights=weights, reduction=reduction, terms=terms)
    return torch.stack(list(parts.values())).sum(dim=0)
