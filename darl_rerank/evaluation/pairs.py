"""Everything that is measured on graded pairs, by group, with intervals and with the gaps between groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from darl_rerank.errors import InputError

from . import detection, grading, reliability
from .bootstrap import Measure, draw_values, interval
from .grading import Floats, Labels

ALL = "all"


def ndcg_per_query(labels: Labels, scores: Floats, gains: Floats, queries: NDArray[Any], *, cutoff: int = 10) -> Floats:
    """nDCG of each query, for every pair the value of its query, shape (n,); NaN where a query has no gain at all.

    DCG = Σ gain / log2(rank + 1) (Järvelin and Kekäläinen 2002), the ideal one from the same query's pairs. Documents
    of equal score keep their input order, as in a reranked run.
    """
    _, query_of = np.unique(np.asarray(queries), return_inverse=True)
    gain = np.asarray(gains, dtype=np.float64)[labels]
    found = _dcg(query_of, gain, -np.asarray(scores, dtype=np.float64), cutoff)
    ideal = _dcg(query_of, gain, -gain, cutoff)
    return np.divide(found, ideal, out=np.full_like(found, np.nan), where=ideal > 0)[query_of]


def _dcg(query_of: NDArray[np.intp], gain: Floats, key: Floats, cutoff: int) -> Floats:
    """DCG of each query with its pairs in the order of `key`."""
    order = np.lexsort((key, query_of))
    ordered = query_of[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
    discounted = np.where(rank < cutoff, gain[order] / np.log2(rank + 2), 0.0)
    return np.asarray(np.bincount(ordered, discounted), dtype=np.float64)


def measures_of(
    labels: Labels,
    probabilities: Floats,
    gains: Floats,
    queries: NDArray[Any],
    *,
    predicted: Labels | None = None,
    names: tuple[str, ...] | None = None,
) -> dict[str, Measure]:
    """Every measure on these pairs as a function of weights, for `bootstrap` and `paired_difference`.

    Args:
        labels: true grades, shape (n,).
        probabilities: shape (n, K).
        gains: what each grade is worth, shape (K,).
        queries: shape (n,).
        predicted: predicted grades, shape (n,); the most probable ones if None.
        names: what to call the grades in "f1:…", "auc:…", "ece:…"; their numbers if None.

    Returns:
        "ndcg@10" (mean over queries with any gain), "auc:G" (grade G or above against below), "accuracy", "macro_f1",
        "f1:G", "qwk", "spearman", "nll", "rps", "ece", "ece:G", "mass_above", "aurc".
    """
    grades = probabilities.shape[1]
    names = names or tuple(str(k) for k in range(grades))
    chosen = probabilities.argmax(axis=1) if predicted is None else np.asarray(predicted)
    scores = probabilities @ np.asarray(gains, dtype=np.float64)
    ndcg = ndcg_per_query(labels, scores, gains, queries)
    # One pair stands for its query: pairs of a query share their weight, so this is the mean over drawn queries.
    _, first = np.unique(np.asarray(queries), return_index=True)
    first = first[np.isfinite(ndcg[first])]

    def counts(weights: Floats) -> Floats:
        return grading.confusion(labels, chosen, grades, weights)

    found: dict[str, Measure] = {
        "ndcg@10": lambda w: grading.weighted_mean(ndcg[first], w[..., first]),
        "accuracy": lambda w: grading.accuracy(counts(w)),
        "macro_f1": lambda w: grading.macro_f1(counts(w)),
        "qwk": lambda w: grading.quadratic_weighted_kappa(counts(w)),
        "spearman": lambda w: grading.spearman(labels, scores, w),
        "nll": lambda w: reliability.negative_log_likelihood(labels, probabilities, w),
        "rps": lambda w: reliability.ranked_probability_score(labels, probabilities, w),
        "ece": lambda w: reliability.expected_calibration_error(labels, probabilities, weights=w),
        "mass_above": lambda w: reliability.mass_above(labels, probabilities, w),
        "aurc": lambda w: reliability.area_under_risk_coverage(labels, probabilities, w),
    }
    for k, name in enumerate(names):
        found[f"f1:{name}"] = lambda w, k=k: grading.f1_per_grade(counts(w))[..., k]  # type: ignore[misc]
        found[f"ece:{name}"] = lambda w, k=k: reliability.classwise_calibration_error(  # type: ignore[misc]
            labels, probabilities, weights=w
        )[..., k]
        if k:
            found[f"auc:{name}"] = lambda w, k=k: grading.area_at_cut(labels, scores, k, w)  # type: ignore[misc]
    return found


def evaluate_pairs(
    labels: Labels,
    probabilities: Floats,
    gains: Floats,
    query_ids: NDArray[Any],
    *,
    groups: NDArray[Any] | None = None,
    novelty_scores: NDArray[Any] | None = None,
    reference: str | None = None,
    predicted: Labels | None = None,
    names: tuple[str, ...] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """All measures of graded pairs with 95 % intervals from a bootstrap over queries.

    Args:
        labels: true grades, shape (n,), 0..K-1.
        probabilities: calibrated grade probabilities, shape (n, K).
        gains: shape (K,).
        query_ids: shape (n,).
        groups: name of each pair's group, e.g. "ID", "near-OOD", shape (n,); one group, "all", if None.
        novelty_scores: shape (n,), higher is stranger; used with groups to tell each from the reference group.
        reference: the group that others are compared with; the first to occur if None.
        predicted: the grades that the model gives, shape (n,); the most probable ones if None.
        names: names of the grades.
        resamples, seed: of the bootstrap.

    Returns:
        A dictionary that JSON can hold: "pairs", "queries", "reference"; "groups": for each group "pairs", "queries",
        "measures" (name to value, low, high, draws), "confusion" (true by row), "reliability" ("top" and each grade);
        "gaps": for each other group the measures' excess over the reference group, drawn together; "novelty": for each
        other group "auroc" and "fpr95" against the reference group.

    Raises:
        InputError: shapes don't fit, there are no pairs, a label is off the scale, or rows don't sum to 1.
    """
    labels, queries = np.asarray(labels), np.asarray(query_ids)
    probabilities = np.asarray(probabilities, dtype=np.float64)
    gains = np.asarray(gains, dtype=np.float64)
    group_of = np.full(len(labels), ALL) if groups is None else np.asarray(groups)
    _check(labels, probabilities, gains, queries, group_of, novelty_scores)
    predicted = probabilities.argmax(axis=1) if predicted is None else np.asarray(predicted)
    names = names or tuple(str(k) for k in range(len(gains)))
    order = [str(group_of[i]) for i in np.sort(np.unique(group_of, return_index=True)[1])]
    reference = order[0] if reference is None else reference
    if reference not in order:
        raise InputError(f"there is no group {reference!r} to compare with; groups: {', '.join(order)}")
    masks = {group: group_of == group for group in order}

    measures: dict[str, Measure] = {}
    described: dict[str, Any] = {}
    for group, mask in masks.items():
        own = measures_of(
            labels[mask], probabilities[mask], gains, queries[mask], predicted=predicted[mask], names=names
        )
        # All groups see the same draws of queries, so a gap between groups that share queries is a paired one.
        measures |= {f"{group}\n{name}": _on(measure, mask) for name, measure in own.items()}
        described[group] = _describe(labels[mask], probabilities[mask], predicted[mask], queries[mask], names)
        if novelty_scores is not None and group != reference:
            both = mask | masks[reference]
            outside, strange = mask[both], np.asarray(novelty_scores)[both]
            measures[f"{group}\nauroc"] = _on(lambda w, o=outside, s=strange: detection.auroc(o, s, w), both)  # type: ignore[misc]
            measures[f"{group}\nfpr95"] = _on(lambda w, o=outside, s=strange: detection.fpr_at_recall(o, s, w), both)  # type: ignore[misc]

    whole = {key: float(measure(np.ones((1, len(labels))))[0]) for key, measure in measures.items()}
    draws = draw_values(measures, queries, resamples=resamples, seed=seed)
    result: dict[str, Any] = {
        "pairs": len(labels),
        "queries": len(np.unique(queries)),
        "reference": reference,
        "groups": described,
        "gaps": {group: {} for group in order if group != reference},
        "novelty": {},
    }
    for key, value in whole.items():
        group, name = key.split("\n")
        if name in ("auroc", "fpr95"):
            result["novelty"].setdefault(group, {})[name] = interval(value, draws[key]).to_dict()
            continue
        described[group]["measures"][name] = interval(value, draws[key]).to_dict()
        if group != reference:
            base = f"{reference}\n{name}"
            result["gaps"][group][name] = interval(value - whole[base], draws[key] - draws[base]).to_dict()
    return result


def _on(measure: Measure, mask: NDArray[np.bool_]) -> Measure:
    """`measure`, made for the pairs in `mask`, as a function of all pairs' weights."""
    return lambda weights: measure(weights[..., mask])


def _describe(
    labels: Labels, probabilities: Floats, predicted: Labels, queries: NDArray[Any], names: tuple[str, ...]
) -> dict[str, Any]:
    curves: Mapping[str, Any] = {
        "top": reliability.reliability_curve(labels, probabilities),
        **{name: reliability.reliability_curve(labels, probabilities, k) for k, name in enumerate(names)},
    }
    return {
        "pairs": len(labels),
        "queries": len(np.unique(queries)),
        "measures": {},
        "confusion": grading.confusion(labels, predicted, len(names)).astype(int).tolist(),
        "reliability": curves,
    }


def _check(
    labels: Labels,
    probabilities: Floats,
    gains: Floats,
    queries: NDArray[Any],
    group_of: NDArray[Any],
    novelty_scores: NDArray[Any] | None,
) -> None:
    n = len(labels)
    faults = []
    if n == 0:
        faults.append("there are no pairs")
    if probabilities.shape != (n, len(gains)):
        faults.append(f"probabilities must have shape ({n}, {len(gains)}), got {probabilities.shape}")
    elif not np.allclose(probabilities.sum(axis=1), 1, atol=1e-4):
        faults.append("the probabilities of a pair must sum to 1")
    if n and not (labels.min() >= 0 and labels.max() < len(gains)):
        faults.append(f"labels must be grades 0..{len(gains) - 1}, got {labels.min()}..{labels.max()}")
    for name, values in (("query_ids", queries), ("groups", group_of), ("novelty_scores", novelty_scores)):
        if values is not None and np.shape(values) != (n,):
            faults.append(f"{name} must have shape ({n},), got {np.shape(values)}")
    if faults:
        raise InputError("; ".join(faults))
