"""Deliver: the last checkpoint with its model card and the facts of its training, in the output folder."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from darl_rerank.model.checkpoint import Checkpoint

from ..card import model_card
from ..context import Context
from ..model.lowrank import read_adapter
from ..work_folder import portable


@dataclass(frozen=True, slots=True)
class Trained:
    """What a training made.

    Attributes:
        checkpoint: as saved.
        stages: what each stage returned, by name.
    """

    checkpoint: Checkpoint
    stages: dict[str, Any]


def run(context: Context, output: Path, *, overwrite: bool) -> Trained:
    """Write the checkpoint to `output`."""
    recipe, start = context.recipe, Checkpoint.load(context.checkpoint("start"))
    earlier = _earlier(start)
    facts = {
        "recipe": portable(asdict(recipe)),
        "stages": context.results,
        "data": context.data.table(),
        "earlier": earlier,
    }
    rank = None
    if start.adapter_folder is not None and recipe.trainable.weights == "lora":
        rank = read_adapter(start.adapter_folder).rank
    final = Checkpoint.load(context.newest)
    card = model_card(final, recipe, context.data, context.results, earlier, rank)
    final = final.replace(provenance=facts)
    return Trained(final.save(output, overwrite=overwrite, card=final.card(card)), context.results)


def _earlier(start: Checkpoint) -> list[dict[str, Any]]:
    """The trainings of the checkpoint that this one began with, oldest first."""
    facts = dict(start.provenance)
    before: list[dict[str, Any]] = facts.pop("earlier", [])
    return [*before, facts] if "recipe" in facts else before
