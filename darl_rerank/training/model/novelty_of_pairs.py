"""Novelty for a model whose training set is not available: pairs like its traffic stand in for it."""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from darl_rerank.errors import InputError
from darl_rerank.model.novelty import NoveltyModel, fit_novelty, middle_layer_weights


def novelty_of_pairs(
    features: NDArray[np.floating[Any]], queries: Sequence[Hashable], *, seed: int = 0
) -> tuple[NoveltyModel, NDArray[np.bool_]]:
    """A novelty model that knows the pairs of half of the queries, its percentiles those of the other half.

    Args:
        features: the model's own, as the engines give them, shape (n, F).
        queries: which query each pair is of, n of them.
        seed: of the draw.

    Returns:
        the model, and which pairs it does not know, shape (n,): what else is fitted on novelty is fitted on these.

    Raises:
        InputError: fewer than four queries, or too few pairs.
        MissingDependencyError: scikit-learn is not installed.
    """
    order = sorted(set(queries), key=str)
    if len(order) < 4:
        raise InputError(f"novelty is fitted on half of the queries and tried on the others: {len(order)} are too few")
    random.Random(seed).shuffle(order)
    known_queries = set(order[: len(order) // 2])
    held = np.array([query not in known_queries for query in queries])
    known = features[~held]
    model = fit_novelty(
        known, features[held], weights=middle_layer_weights(features.shape[1]), k=min(10, len(known) - 1), seed=seed
    )
    return model, held
