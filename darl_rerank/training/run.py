"""Trains by a recipe, stage after stage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from darl_rerank.checkpoint import Checkpoint
from darl_rerank.prompt import Prompt
from darl_rerank.trec.graded_pairs import GradedPair

from .finetune import FinetuneOutcome, finetune
from .grade_model import load_grade_model, save_trained
from .recipe import Recipe
from .sources import Exclusions, SourcePairs, load_source
from .steps import query_examples


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """The pairs of all sources."""

    sources: tuple[SourcePairs, ...]

    @property
    def train(self) -> list[GradedPair]:
        return [pair for source in self.sources for pair in source.train]

    @property
    def dev(self) -> list[GradedPair]:
        return [pair for source in self.sources for pair in source.dev]

    def table(self) -> str:
        """Counts of every source, a line each."""
        return "\n".join(
            f"{source.source.name}: " + ", ".join(f"{count} {name}" for name, count in source.counts.items())
            for source in self.sources
        )


def load_training_set(recipe: Recipe) -> TrainingSet:
    """Read all sources of a recipe."""
    excluded = Exclusions(recipe.exclude_topics, recipe.exclude_corpora)
    return TrainingSet(
        tuple(load_source(source, recipe.grades, seed=recipe.seed, excluded=excluded) for source in recipe.sources)
    )


def start(recipe: Recipe) -> Checkpoint:
    """The checkpoint that training begins with."""
    choice = recipe.model
    if choice.checkpoint is not None:
        checkpoint = Checkpoint.load(choice.checkpoint)
    else:
        checkpoint = Checkpoint.from_base(choice.base, choice.scale)
    if choice.max_length is not None:
        prompt = Prompt.from_dict({**checkpoint.prompt.to_dict(), "max_length": choice.max_length})
        checkpoint = checkpoint.replace(prompt=prompt)
    return checkpoint


def train_by(
    recipe: Recipe, data: TrainingSet, output: Path, work: Path, *, device: str | None = None, overwrite: bool = False
) -> FinetuneOutcome:
    """Fine-tune and write the checkpoint."""
    checkpoint = start(recipe)
    model = load_grade_model(checkpoint, recipe.trainable, seed=recipe.seed)
    weights = {source.group or source.name: source.weight for source in recipe.sources}
    examples = query_examples(data.train, len(checkpoint.scale), weights=weights)
    outcome = finetune(model, checkpoint, examples, recipe.finetune, work / "finetune", device=device)
    save_trained(model, checkpoint, output, overwrite=overwrite)
    return outcome
