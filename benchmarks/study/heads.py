"""Screening: many cheap arms that train the head alone, on final states of the base model that were computed once.

What it can say is limited: the backbone never moves, so a loss or a selection that works by changing features shows
nothing here. It is a level of its own and never mixed with the fine-tuned arms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from darl_rerank.model.checkpoint import Checkpoint
from darl_rerank.model.head import Head, grade_logits
from darl_rerank.training.loop.probe import fit_probe
from darl_rerank.training.losses.comparison import link_of
from darl_rerank.training.recipe.settings import OccWeights
from darl_rerank.training.selection.strategies import STRATEGIES

from .chosen import Seed, chosen_rows, probe_set
from .collections_by_role import Collections
from .measured import Run, Tests, measure_run, read_run
from .settings import Study, digest
from .states import BaseStates

# There are many of these arms, and a bootstrap takes longer than training a head.
MEASURES = ("ndcg@10", "qwk", "macro_f1", "nll", "rps", "ece", "ece_before", "mass_above")
MEASURED_ROLES = ("home_dev", "away_dev", "home_test", "away_test")


@dataclass(frozen=True, slots=True)
class HeadArm:
    """A loss with a strategy.

    Attributes:
        name: in tables.
        loss: a name of `arms.LOSSES`; "" for the zero-shot head.
        strategy: a name of `STRATEGIES`; "" for no pairs of the pool at all.
        terms: of the loss "occ".
        band: of novelty percentiles; the study's if None.
    """

    name: str
    loss: str
    strategy: str
    terms: OccWeights = field(default_factory=OccWeights)
    band: tuple[float, float] | None = None


# "random" is the partner of every loss, and "ce" of every strategy, so that one thing differs at a time.
LOSS_ARMS = (
    HeadArm("CE", "ce", "random"),
    HeadArm("OCC", "occ", "random"),
    HeadArm("CE + label smoothing", "label_smoothing", "random"),
    HeadArm("SORD", "sord", "random"),
    HeadArm("EMD", "emd", "random"),
    HeadArm("CORN", "corn", "random"),
    HeadArm("OCC less RPS", "occ", "random", OccWeights(rps=0)),
    HeadArm("OCC less OVER", "occ", "random", OccWeights(over=0)),
    HeadArm("OCC less RANK", "occ", "random", OccWeights(rank=0)),
)
SELECTION_ARMS = tuple(HeadArm(f"CE, {name}", "ce", name) for name in STRATEGIES if name != "random")
OTHER_ARMS = (
    HeadArm("CE, dasa, no upper end", "ce", "dasa", band=(80.0, 100.0)),
    HeadArm("OCC, dasa", "occ", "dasa"),
    HeadArm("CE, no labels of the pool", "ce", ""),
)
ZERO_SHOT = HeadArm("zero-shot", "", "")
HEAD_ARMS = (*LOSS_ARMS, *SELECTION_ARMS, *OTHER_ARMS)


def run_head_arm(
    arm: HeadArm,
    budget: int,
    seed: Seed,
    data: Collections,
    tests: Tests,
    study: Study,
    states: BaseStates,
    checkpoint: Checkpoint,
    folder: Path,
) -> Run:
    """Train and measure one arm with one seed, or read what an earlier call kept in `folder`."""
    facts: dict[str, Any] = {"arm": arm.name, "budget": budget, "seed": seed.number, "level": "head"}
    rows = seed.sets.train
    if arm.strategy:
        more, facts["selection"] = chosen_rows(seed, study, arm.strategy, budget, data.roles["home"], band=arm.band)
        rows = np.concatenate([rows, more])
    # What an arm leaves to the study is no part of its name.
    own = {key: value for key, value in asdict(arm).items() if value is not None}
    name = digest([own, facts, digest(rows.tolist()), study.resamples, checkpoint.fingerprint, MEASURES])
    found = read_run(folder / name)
    if found is not None:
        return found
    head = checkpoint.head
    if arm.loss:
        outcome = fit_probe(
            checkpoint.head, *probe_set(data, states, rows), probe_set(data, states, data.roles["home_dev"]),
            checkpoint.scale.gains, loss=arm.loss, terms=arm.terms, seed=seed.number, progress=False,
        )  # fmt: skip
        head = outcome.head
        facts |= {"epochs": outcome.epochs, "norm": outcome.norm, "pairs": len(rows)}
    logits = head_logits(head, arm.loss or "ce", states, data)
    return measure_run(folder / name, logits, data, tests, checkpoint.scale.gains, facts, study.resamples, MEASURES)


def head_logits(
    head: Head, loss: str, states: BaseStates, data: Collections
) -> Mapping[str, NDArray[np.floating[Any]]]:
    """Grade logits by role of a head on the base model's final states; CORN's rows brought to grade logits."""
    weight, bias = head.weight.astype(np.float64), head.bias.astype(np.float64)
    found = {}
    for role in MEASURED_ROLES:
        raw = torch.from_numpy(states.finals[data.roles[role]].astype(np.float64) @ weight.T + bias)
        found[role] = grade_logits(link_of(loss), raw.numpy())
    return found
