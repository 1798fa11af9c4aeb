"""Calibrate: novelty statistics on the final model's own features, then the temperature, on pairs people judged."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from darl_rerank.errors import InputError
from darl_rerank.model.checkpoint import Checkpoint
from darl_rerank.model.decisions import Decisions, Promise
from darl_rerank.model.novelty import fit_novelty, middle_layer_weights
from darl_rerank.progress import Progress
from darl_rerank.reranker import Reranker
from darl_rerank.trec.graded_pairs import GradedPair

from ..context import Context
from ..data.features import extract_features
from ..data.labels import label_matrix, sampled_queries
from ..decisions.decide import recalibrated
from ..model.temperature import determined_calibration
from ..recipe.settings import CalibrateStage

# Novelty statistics of a training set are a mean, covariances and a sample: more pairs than this change little.
log = logging.getLogger(__name__)

NOVELTY_PAIRS = 5_000


def run(context: Context, folder: Path) -> dict[str, Any]:
    stage = context.recipe.calibrate
    assert stage is not None
    final, facts = calibrated(
        context.reranker(context.checkpoint("merge")), context.data.judged[0],
        context.data.calibration_sets(novelty=stage.novelty), stage, folder, seed=context.recipe.seed,
        progress=context.progress,
    )  # fmt: skip
    final.save(folder / "checkpoint", overwrite=True)
    return facts


def calibrated(
    reranker: Reranker,
    known: Sequence[GradedPair],
    sets: Mapping[str, Sequence[GradedPair]],
    stage: CalibrateStage,
    folder: Path,
    *,
    seed: int = 0,
    progress: Progress = True,
) -> tuple[Checkpoint, dict[str, Any]]:
    """The model's checkpoint with novelty and calibration, and what was found in fitting them.

    Args:
        reranker: the final model; what it has of both does not count.
        known: pairs that people judged, of what it was trained on or is to know; some of their queries are drawn if
            they are many.
        sets: held-out pairs by name, those of the same queries' kind first: novelty's percentiles are of these. See
            `TrainingSet.calibration_sets`.
        stage: what the calibration is, and whether soft labels count for it.
        folder: keeps features, so that an interrupted stage goes on.
        seed: of the draw.
        progress: see `darl_rerank.progress`.
    """
    pairs = sampled_queries(known, NOVELTY_PAIRS, seed)
    grades = len(reranker.scale)
    trained = extract_features(reranker, pairs, folder / "training", progress=progress, description="novelty")
    seen = {
        name: extract_features(
            reranker, members, folder / name.replace(" ", "-"), progress=progress, description=name
        )
        for name, members in sets.items()
    }  # fmt: skip
    first = next(iter(sets))
    model = fit_novelty(
        trained.features, seen[first].features, weights=middle_layer_weights(trained.features.shape[1]),
        k=min(10, len(pairs) - 1), seed=seed,
    )  # fmt: skip
    novelty = {name: model.score(seen[name].features) for name in sets}
    columns = []
    for name, members in sets.items():
        counted = np.array([stage.soft or pair.probabilities is None for pair in members])
        if counted.any():
            # The sets count alike, however many pairs they have.
            weights = np.full(counted.sum(), 1 / counted.sum())
            labels = label_matrix(members, grades)
            columns.append((np.asarray(seen[name].logits)[counted], labels[counted], novelty[name][counted], weights))
    logits, labels, novelties, weights = map(np.concatenate, zip(*columns, strict=True))
    fit = determined_calibration(
        logits, labels, novelties, weights=weights, with_novelty=stage.novelty, with_bias=stage.bias,
        earlier=reranker.checkpoint.calibration,
    )  # fmt: skip
    if fit.at_bound:
        log.warning("calibrate: %d held-out pairs do not determine %s", fit.pairs, fit.at_bound)
    medians = {name: float(np.median(found)) for name, found in novelty.items()}
    facts = {**asdict(fit), "calibration": fit.calibration.to_dict(), "median_novelty": medians}
    final = reranker.checkpoint.replace(novelty=model, calibration=fit.calibration, decisions=Decisions())
    # What people graded decides; soft labels say how sure to be, not where a grade begins.
    graded = [(name, i) for name, members in sets.items() for i, p in enumerate(members) if p.grade is not None]
    if len({sets[name][i].grade for name, i in graded}) < 2:
        if stage.cuts:
            raise InputError("calibrate.cuts needs held-out pairs that people graded, with different grades")
        return final, facts
    final = recalibrated(
        final, fit.calibration,
        np.stack([seen[name].logits[i] for name, i in graded]),
        np.array([sets[name][i].grade for name, i in graded]),
        np.array([f"{name}/{sets[name][i].qid}" for name, i in graded]),
        novelty=np.array([novelty[name][i] for name, i in graded]),
        promises=[Promise.parse(cut, reranker.scale) for cut in stage.cuts],
    )  # fmt: skip
    return final, {**facts, "decisions": final.decisions.to_dict(final.scale)}
