"""Exits: heads at earlier layers on the final model's states, their calibration, and the rule by which pairs leave.

The body is not changed. Heads that were trained along with it (`exits.weight`) are where fitting begins; others begin
as the model's own head under the final norm.

Three sets of queries that have none in common: one trains the heads, one ends their training and calibrates them, and
on the third the rule is chosen, so that what it promises rests on pairs that have shaped nothing.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from darl_rerank.errors import InputError
from darl_rerank.model.base_weights import load_body
from darl_rerank.model.checkpoint import Checkpoint
from darl_rerank.model.exits import ExitHead, Exits, exit_logits
from darl_rerank.model.head import Head
from darl_rerank.progress import Progress
from darl_rerank.trec.graded_pairs import GradedPair

from ..context import Context
from ..data.exit_states import ExitStates
from ..data.labels import hard_grades, label_matrix, numbered, sampled_queries
from ..decisions.exits import fit_exit_calibrations, fit_exit_rule
from ..loop.probe import fit_probe
from ..recipe.settings import ExitsStage, FinetuneSettings

log = logging.getLogger(__name__)

# A head has some thousand numbers: more pairs than this change little.
TRAINING_PAIRS = 20_000


def run(context: Context, folder: Path) -> dict[str, Any]:
    stage = context.recipe.exits
    assert stage is not None
    checkpoint = Checkpoint.load(context.newest)
    held = context.data.judged[1] or context.data.dev
    fitting, ruling = halves(held, context.recipe.seed)
    final, facts = with_exits(
        checkpoint, PairsOfExits(context.data.train, fitting, ruling), stage, folder,
        finetune=context.recipe.finetune, device=context.device, seed=context.recipe.seed, progress=context.progress,
    )  # fmt: skip
    final.save(folder / "checkpoint", overwrite=True)
    return facts


@dataclass(frozen=True, slots=True)
class PairsOfExits:
    """Graded pairs to fit exits to, whole queries each.

    Attributes:
        training: train the heads; empty to leave them as they are.
        fitting: end the heads' training and calibrate them.
        ruling: choose the rule; pairs without a grade don't count.
    """

    training: Sequence[GradedPair]
    fitting: Sequence[GradedPair]
    ruling: Sequence[GradedPair]


def halves(pairs: Sequence[GradedPair], seed: int, share: float = 0.5) -> tuple[list[GradedPair], list[GradedPair]]:
    """The pairs of `share` of the queries, drawn at random, and the others; a single query is of the first."""
    order = sorted({pair.qid for pair in pairs})
    if len(order) < 2:
        return list(pairs), []
    random.Random(seed).shuffle(order)
    first = set(order[: min(max(1, round(share * len(order))), len(order) - 1)])
    return [p for p in pairs if p.qid in first], [p for p in pairs if p.qid not in first]


def with_exits(
    checkpoint: Checkpoint,
    pairs: PairsOfExits,
    stage: ExitsStage,
    folder: Path,
    *,
    finetune: FinetuneSettings | None = None,
    device: str | None = None,
    seed: int = 0,
    progress: Progress = True,
) -> tuple[Checkpoint, dict[str, Any]]:
    """The checkpoint with exits, and what was found in fitting them.

    Where the pairs are too few to promise what is asked, the exits have no rule and nothing leaves; the facts say why.

    Args:
        checkpoint: the final model; heads that it has at these layers are begun with.
        pairs: to fit to.
        stage: which layers, and what the rule promises.
        folder: keeps states, so that an interrupted stage goes on.
        finetune: the loss of the heads; OCC if None.
        device: "cpu" to stay off a GPU.
        seed: of the draws.
        progress: see `darl_rerank.progress`.

    Raises:
        InputError: a layer that is not before the last, or no exit there and no pairs to train one.
    """
    finetune = finetune or FinetuneSettings()
    grade = stage.lowest_grade(checkpoint.scale)
    begun = _begun(checkpoint, stage.layers, trains=bool(pairs.training))
    states_of = ExitStates(checkpoint, stage.layers, device=device)
    sets = {"training": sampled_queries(pairs.training, TRAINING_PAIRS, seed), "fitting": list(pairs.fitting),
            "ruling": [pair for pair in pairs.ruling if pair.grade is not None]}  # fmt: skip
    states = {
        name: states_of.of(members, folder / name, progress=progress, description=f"exits, {name}")
        for name, members in sets.items()
        if members
    }
    heads, outcomes = [], {}
    for each in begun:
        if sets["training"]:
            fitted, outcomes[str(each.layer)] = _trained(each, checkpoint, sets, states, finetune, seed, progress)
            heads.append(fitted)
        else:
            heads.append(each)

    def logits(name: str) -> dict[int, NDArray[np.float32]]:
        return {each.layer: exit_logits(each.head, checkpoint.link, states[name][each.layer]) for each in heads}

    labels = label_matrix(sets["fitting"], len(checkpoint.scale))
    exits = fit_exit_calibrations(Exits(tuple(heads)), logits("fitting"), labels)
    facts: dict[str, Any] = {
        "layers": list(exits.layers),
        "pairs": {name: len(members) for name, members in sets.items()},
        "heads": outcomes,
    }
    try:
        if not sets["ruling"]:
            raise InputError("no pair is left for it that has a grade")
        queries = numbered(pair.qid for pair in sets["ruling"])
        exits = fit_exit_rule(
            exits, logits("ruling"), hard_grades(sets["ruling"]), queries, grade=grade, share=stage.share
        )
    except InputError as error:
        log.warning("exits: nothing leaves early, as there is no rule: %s", error)
        facts["no rule"] = str(error)
    if exits.rule is not None:
        facts["rule"] = exits.rule.to_dict(checkpoint.scale)
    return checkpoint.replace(exits=exits), facts


def _begun(checkpoint: Checkpoint, layers: Sequence[int], *, trains: bool) -> list[ExitHead]:
    """The heads that fitting begins with."""
    own = {} if checkpoint.exits is None else {each.layer: each for each in checkpoint.exits.heads}
    missing = [layer for layer in layers if layer not in own]
    if missing and not trains:
        raise InputError(
            f"there is no exit behind layer {missing[0]}, and no pairs to train one", path=checkpoint.folder
        )
    if not missing:
        return [own[layer] for layer in layers]
    body = load_body(checkpoint, torch.float32)
    count = len(body.layers)
    if max(layers) >= count:
        raise InputError(f"an exit stands before the last layer, of which {checkpoint.base.name} has {count}; "
                         f"got {max(layers)}")  # fmt: skip
    if max(layers) > (checkpoint.prefill_layers or count):
        raise InputError(f"an exit stands no later than prefill_layers, {checkpoint.prefill_layers}; got {max(layers)}")
    norm = getattr(getattr(body, "norm", None), "weight", None)
    hidden = checkpoint.head.weight.shape[1]
    scale = np.ones(hidden, np.float32) if norm is None else norm.detach().float().numpy().copy()
    new = Head(checkpoint.head.weight, checkpoint.head.bias, scale)
    return [own.get(layer) or ExitHead(layer, new) for layer in layers]


def _trained(
    begun: ExitHead,
    checkpoint: Checkpoint,
    sets: dict[str, list[GradedPair]],
    states: dict[str, dict[int, NDArray[np.float32]]],
    finetune: FinetuneSettings,
    seed: int,
    progress: Progress,
) -> tuple[ExitHead, dict[str, float]]:
    norm = begun.head.norm
    assert norm is not None
    data = []
    for name in ("training", "fitting"):
        labels = label_matrix(sets[name], len(checkpoint.scale))
        data.append((states[name][begun.layer] * norm, labels, numbered(p.qid for p in sets[name])))
    outcome = fit_probe(
        begun.head, *data[0], data[1], checkpoint.scale.gains, loss=finetune.loss, terms=finetune.occ, seed=seed,
        progress=progress,
    )  # fmt: skip
    facts = {"epochs": outcome.epochs, "loss_before": outcome.loss_before, "loss_after": outcome.loss_after}
    return ExitHead(begun.layer, outcome.head), facts
