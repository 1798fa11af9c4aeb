"""Evaluate: the trained model on the test sources, as figures and as a report to look at."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from darl_rerank.evaluation.pairs import evaluate_pairs
from darl_rerank.evaluation.report import write_report
from darl_rerank.files import atomic_write
from darl_rerank.model.calibration import Calibration
from darl_rerank.progress import Progress
from darl_rerank.reranker import Reranker
from darl_rerank.trec.graded_pairs import GradedPair

from ..context import Context
from ..data.features import extract_features

REPORT = "report.html"
# What the model card shows.
HEADLINE = ("ndcg@10", "qwk", "macro_f1", "nll", "rps", "ece", "mass_above")


def run(context: Context, folder: Path) -> dict[str, Any]:
    """Returns the headline measures of each test source; see `evaluate_test_sets`."""
    tests = [source for source in context.data.sources if source.source.use in ("test", "ood_test")]
    return evaluate_test_sets(
        context.reranker(context.newest),
        {source.source.group or source.source.name: source.train for source in tests},
        folder,
        curve=context.results["merge"]["curve"],
        seed=context.recipe.seed,
        progress=context.progress,
    )


def evaluate_test_sets(
    reranker: Reranker,
    sets: Mapping[str, Sequence[GradedPair]],
    folder: Path,
    *,
    curve: Mapping[str, Any] | None = None,
    seed: int = 0,
    progress: Progress = True,
) -> dict[str, Any]:
    """Measure the model on each set, write evaluation.json and report.html, and return the headline measures.

    Args:
        reranker: the trained model.
        sets: graded pairs by name; the first is the one that others are compared with.
        folder: for the two files, and for the features, so that a killed evaluation goes on.
        curve: of the interpolation, for the report.
        seed: of the bootstrap.
        progress: see `darl_rerank.progress`.
    """
    checkpoint = reranker.checkpoint
    pairs = [pair for members in sets.values() for pair in members]
    groups = np.concatenate([np.full(len(members), name) for name, members in sets.items()])
    found = extract_features(reranker, pairs, folder / "features", progress=progress, description="test pairs")
    novelty = None if checkpoint.novelty is None else checkpoint.novelty.score(found.features)
    calibration: Calibration = checkpoint.calibration
    names = tuple(grade.name for grade in checkpoint.scale.grades)
    result = evaluate_pairs(
        np.array([pair.hard_grade for pair in pairs]),
        calibration.probabilities(found.logits, novelty),
        checkpoint.scale.gains,
        # The same query id in two collections is two queries.
        np.array([f"{group}/{pair.qid}" for group, pair in zip(groups, pairs, strict=True)]),
        groups=groups,
        novelty_scores=novelty,
        names=names,
        seed=seed,
    )
    with atomic_write(folder / "evaluation.json") as stream:
        json.dump(result, stream, indent=1)
    write_report(
        folder / REPORT,
        result,
        names,
        title="Test pairs",
        facts={"base model": checkpoint.base.name, "temperature": f"{calibration.temperature:.3f}"},
        novelty=novelty,
        groups=groups,
        alpha=None if curve is None else alpha_rows(curve),
    )
    return {
        "report": REPORT,
        "groups": {
            name: {
                "pairs": values["pairs"],
                "queries": values["queries"],
                "measures": {m: values["measures"][m] for m in HEADLINE},
            }
            for name, values in result["groups"].items()
        },
        "novelty": result["novelty"],
    }


def alpha_rows(curve: Mapping[str, Any]) -> list[dict[str, float]]:
    """The α curve as the report takes it: a row an α, a column for each set and measure."""
    return [
        {
            "alpha": alpha,
            **{
                f"{name.removesuffix(' dev')} {measure}": values[i]
                for name, measures in curve["values"].items()
                for measure, values in measures.items()
                # Together they fit one axis; the negative log-likelihood would flatten them.
                if measure != "nll"
            },
        }
        for i, alpha in enumerate(curve["alphas"])
    ]
