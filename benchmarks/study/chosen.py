"""Which pairs of a seed's pool each strategy has labelled: the same number in every arm."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from darl_rerank.model.checkpoint import Checkpoint
from darl_rerank.model.novelty import NoveltyModel, fit_novelty
from darl_rerank.training.loop.probe import fit_probe
from darl_rerank.training.recipe.settings import SelectionSettings
from darl_rerank.training.selection.candidates import Candidates, describe_pool
from darl_rerank.training.selection.coverage import QueryCap, take_in_order
from darl_rerank.training.selection.select import select

from .collections_by_role import Collections, Rows, SeedSets, seed_sets
from .measured import temperature
from .settings import Study
from .states import BaseStates

# Of the features' parts: half the middle layer's mean and its last token, what novelty looked at up to version 0.5, so
# that the study can be repeated. Today's default is in `darl_rerank.model.novelty`.
PART_WEIGHTS = (0.5, 1.0, 0.0)


@dataclass(frozen=True, slots=True)
class Seed:
    """What the arms of a seed share.

    Attributes:
        number: the seed.
        sets: its training pairs and pool.
        novelty: fitted on base features of the training pairs.
        candidates: the pool as strategies see it; uncertainty is that of a head trained on the training pairs by CE.
    """

    number: int
    sets: SeedSets
    novelty: NoveltyModel
    candidates: Candidates


def prepare_seed(data: Collections, study: Study, states: BaseStates, checkpoint: Checkpoint, number: int) -> Seed:
    """Fit novelty and the first head, and describe the pool."""
    return prepare_pool(seed_sets(data, study, number), data, study, states, checkpoint, number)


def prepare_pool(
    sets: SeedSets, data: Collections, study: Study, states: BaseStates, checkpoint: Checkpoint, number: int
) -> Seed:
    """`prepare_seed` with a pool of one's own."""
    train, dev = sets.train, data.roles["home_dev"]
    features = states.features
    novelty = fit_novelty(
        features[train],
        features[dev],
        weights=np.repeat(np.array(PART_WEIGHTS, np.float32), features.shape[1] // len(PART_WEIGHTS)),
        k=min(10, len(train) - 1),
        seed=number,
    )
    head = fit_probe(
        checkpoint.head, *probe_set(data, states, train), probe_set(data, states, dev), checkpoint.scale.gains,
        loss="ce", seed=number, progress=False,
    ).head  # fmt: skip
    logits = {
        role: states.finals[data.roles[role]] @ head.weight.T + head.bias for role in ("home_dev", "away_dev")
    }  # fmt: skip
    in_pool = states.finals[sets.pool] @ head.weight.T + head.bias
    candidates = describe_pool(
        features[sets.pool], temperature(logits, data).probabilities(in_pool), data.queries[sets.pool],
        features[train], novelty, progress=False,
    )  # fmt: skip
    return Seed(number, sets, novelty, candidates)


def probe_set(data: Collections, states: BaseStates, rows: Rows) -> tuple[Any, Any, Any]:
    """Final states, targets and queries of some pairs, as `fit_probe` takes them."""
    return states.finals[rows], data.targets[rows], data.queries[rows]


def chosen_rows(
    seed: Seed, study: Study, strategy: str, budget: int, home: Rows, *, band: tuple[float, float] | None = None
) -> tuple[Rows, dict[str, Any]]:
    """The pairs to label, exactly `budget` of them if the pool has as many, and an account of the choice.

    `home` are the rows of the role "home", for the account; `band` is the study's if None.

    Where a strategy's band leaves fewer, the rest is drawn at random: the budget is what arms have in common.
    """
    settings = SelectionSettings(band=band or study.band, per_query=study.per_query, seed=seed.number)
    found = select(seed.candidates, budget, strategy, settings)
    rows = found.rows
    short = budget - len(rows)
    if short:
        cap = QueryCap(seed.candidates.queries, study.per_query)
        for row in rows:
            cap.take(int(row))
        left = np.setdiff1d(np.arange(len(seed.candidates)), rows)
        rows = np.concatenate([rows, take_in_order(np.random.default_rng(seed.number).permutation(left), short, cap)])
    picked = seed.sets.pool[rows]
    account = {
        "strategy": strategy if band is None else f"{strategy}, band {band[0]:g} to {band[1]:g}",
        "budget": budget, "pairs": len(rows), "filled_at_random": short,
        "home_share": float(np.isin(picked, home).mean()), "queries": found.summary["chosen"]["queries"],
        "mean_novelty": found.summary["chosen"]["mean_novelty"], "cut": found.summary["cut"],
        "mean_uncertainty": found.summary["chosen"]["mean_uncertainty"],
    }  # fmt: skip
    # Pairs of a query stand together in the pool, and do so again among the chosen ones.
    return np.sort(picked), account


def pool_by_group(seed: Seed, data: Collections, study: Study) -> dict[str, dict[str, int]]:
    """Where the band cuts: each group's pairs of the pool below, within and above it, and those that DASA chooses.

    Groups are those of the pairs, the largest first; all ID pairs are one.
    """
    home = set(data.roles["home"].tolist())
    names = np.array(["ID" if row in home else data.pairs[row].group or "" for row in seed.sets.pool.tolist()])
    low, high = study.band
    novelty = seed.candidates.novelty
    masks = {"pairs": novelty >= 0, "below": novelty < low, "above": novelty > high}
    settings = SelectionSettings(band=study.band, per_query=study.per_query, seed=seed.number)
    counts = {key: Counter(names[mask].tolist()) for key, mask in masks.items()}
    counts |= {
        f"chosen of {budget}": Counter(names[select(seed.candidates, budget, "dasa", settings).rows].tolist())
        for budget in study.budgets
    }
    return {
        name: {key: count[name] for key, count in counts.items()} for name, _ in counts["pairs"].most_common()
    }  # fmt: skip
