"""Merge: the mean of several seeds, then the weight α between the model that fine-tuning began with and its outcome.

With `keep_if_better` the outcome is compared with the model that the training began with.

Every candidate is judged on the held-out pairs, temperature-scaled first, so that none is chosen for what one scalar
does afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file

from darl_rerank.errors import InputError
from darl_rerank.evaluation.grading import confusion, quadratic_weighted_kappa
from darl_rerank.evaluation.pairs import ndcg_per_query
from darl_rerank.evaluation.reliability import negative_log_likelihood, ranked_probability_score
from darl_rerank.model.calibration import Calibration
from darl_rerank.model.checkpoint import Checkpoint
from darl_rerank.trec.graded_pairs import GradedPair

from ..context import WEIGHTS, Context
from ..data.features import extract_features
from ..data.labels import hard_grades, numbered
from ..losses.comparison import link_of
from ..model.grade_model import GradeModel, load_grade_model, save_trained, supervised_layers
from ..model.interpolate import State, average, interpolated
from ..model.lowrank import as_adapter
from ..model.predict import predict_logits, training_device
from ..model.temperature import fit_calibration
from ..recipe.settings import ALPHAS, Trainable

Logits = Mapping[str, NDArray[np.float32]]


def run(context: Context, folder: Path) -> dict[str, Any]:
    """Write the merged checkpoint; returns the α curve, what an adapter kept, and the comparison with the start."""
    recipe = context.recipe
    checkpoint = Checkpoint.load(context.begun).replace(link=link_of(recipe.finetune.loss))
    states = [load_file(context.work.path(f"finetune-{seed}") / WEIGHTS) for seed in recipe.seeds]
    model = load_grade_model(
        checkpoint, _soup(recipe.trainable, len(states)), exits=supervised_layers(recipe.exits), seed=recipe.seeds[0]
    )
    model.to(training_device(context.device))
    first, last = model.trainable_state(), states[0] if len(states) == 1 else average(states)
    curve: dict[str, Any] | None = None
    if recipe.interpolate is not None:
        curve = _sweep(context, folder, model, checkpoint, first, last)
        last = interpolated(first, last, curve["chosen"])
    model.load_trainable(dict(last))
    rank = recipe.trainable.delivered_rank
    saved = save_trained(model, checkpoint, folder / ("checkpoint" if rank is None else "whole"), overwrite=True)
    kept = 1.0
    if rank is not None:
        kept = as_adapter(saved, folder / "checkpoint", rank=rank, overwrite=True)[1].kept
    against = _against_earlier(context, folder) if recipe.model.keep_if_better else None
    if against is not None and against["keep"]:
        Checkpoint.load(context.checkpoint("start")).save(folder / "checkpoint", overwrite=True)
    return {"seeds": list(recipe.seeds), "curve": curve, "kept": kept, "against_earlier": against}


def _soup(trainable: Trainable, count: int) -> Trainable:
    """What holds the mean of `count` fine-tuned models; see `interpolate.average`."""
    if trainable.weights != "lora" or count == 1:
        return trainable
    return replace(trainable, rank=trainable.rank * count, alpha=trainable.alpha * count)


def _sweep(
    context: Context, folder: Path, model: GradeModel, checkpoint: Checkpoint, first: State, last: State
) -> dict[str, Any]:
    """The α curve between two states of the model."""
    stage, sets = context.recipe.interpolate, context.held_out
    assert stage is not None
    encoder = checkpoint.encoder()

    def logits_at(alpha: float) -> Logits:
        # Each α is kept: a kill costs one of them, not all.
        path = folder / f"logits-{alpha:g}.npz"
        if path.is_file():
            with np.load(path, allow_pickle=False) as kept:
                return {name: kept[name] for name in sets}
        model.load_trainable(interpolated(first, last, alpha))
        found = {
            name: predict_logits(model, encoder, pairs, progress=context.progress, description=f"α = {alpha:g}, {name}")
            for name, pairs in sets.items()
        }
        temporary = path.with_name(f".{path.name}")
        with temporary.open("wb") as stream:
            np.savez(stream, **found)  # type: ignore[arg-type]
        temporary.replace(path)
        return found

    gains = checkpoint.scale.gains
    return alpha_curve(logits_at, _graded(sets), gains, alphas=stage.alphas, choose_by=stage.choose_by).to_dict()


def _against_earlier(context: Context, folder: Path) -> dict[str, Any]:
    """RPS on the held-out pairs of the model that the training began with and of the trained one, and whether the first
    is to be kept."""
    sets = context.held_out
    models = {0.0: ("earlier", context.checkpoint("start")), 1.0: ("trained", folder / "checkpoint")}

    def logits_of(place: float) -> Logits:
        name, path = models[place]
        reranker = context.reranker(path)
        return {
            kind: extract_features(
                reranker, pairs, folder / f"{name}-{kind.replace(' ', '-')}", with_features=False,
                progress=context.progress, description=f"{name} model, {kind}",
            ).logits
            for kind, pairs in sets.items()
        }  # fmt: skip

    gains = Checkpoint.load(models[0.0][1]).scale.gains
    curve = alpha_curve(logits_of, _graded(sets), gains, alphas=tuple(models), choose_by="rps")
    earlier, trained = (float(np.mean([values["rps"][i] for values in curve.values.values()])) for i in (0, 1))
    return {"pairs": sum(map(len, sets.values())), "earlier": earlier, "trained": trained, "keep": not curve.chosen}


def _graded(sets: Mapping[str, list[GradedPair]]) -> dict[str, GradedSet]:
    return {name: GradedSet(hard_grades(p), numbered(x.qid for x in p)) for name, p in sets.items()}


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
        choose_by: a measure: ndcg@10, qwk, nll or rps.

    Raises:
        InputError: an unknown measure, no sets, or an α outside [0, 1].
    """
    if choose_by not in _SIGN:
        raise InputError(f"α is chosen by one of {', '.join(_SIGN)}, got {choose_by!r}")
    if not sets:
        raise InputError("α needs graded pairs to be chosen on")
    if not alphas or not all(0 <= alpha <= 1 for alpha in alphas):
        raise InputError(f"α must lie within 0 and 1, got {list(alphas)}")
    ordered = tuple(sorted(alphas))
    values: dict[str, dict[str, list[float]]] = {name: {m: [] for m in _SIGN} for name in sets}
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
    """The the measures of grade probabilities, shape (n, K)."""
    labels = members.labels
    ndcg = ndcg_per_query(labels, probabilities @ gains, gains, members.queries)
    _, first = np.unique(members.queries, return_index=True)
    # A set of queries without any relevant document has no nDCG; 0 says less than NaN but can be averaged.
    per_query = ndcg[first][np.isfinite(ndcg[first])]
    counts = confusion(labels, probabilities.argmax(axis=1), len(gains))
    return {
        "ndcg@10": float(per_query.mean()) if len(per_query) else 0.0,
        "qwk": float(quadratic_weighted_kappa(counts)),
        "nll": float(negative_log_likelihood(labels, probabilities)),
        "rps": float(ranked_probability_score(labels, probabilities)),
    }


def _temperature(logits: Mapping[str, NDArray[np.floating[Any]]], sets: Mapping[str, GradedSet]) -> Calibration:
    together = np.concatenate([logits[name] for name in sets])
    # Every set counts alike, however many pairs it has.
    weights = np.concatenate([np.full(len(members.labels), 1 / len(members.labels)) for members in sets.values()])
    labels = np.concatenate([members.labels for members in sets.values()])
    return fit_calibration(together, labels, weights=weights).calibration
