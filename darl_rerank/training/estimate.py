"""How long a training will take here, from a few seconds of measuring."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from darl_rerank.trec.graded_pairs import GradedPair

from .grade_model import load_grade_model
from .labels import sampled_queries
from .packing import pack
from .predict import predict_logits, reduced_precision
from .recipe import Recipe
from .start import start_checkpoint
from .steps import query_examples
from .training_set import TrainingSet

_SAMPLE = 32


@dataclass(frozen=True, slots=True)
class StageEstimate:
    """One stage.

    Attributes:
        stage: its name.
        work: what it does, in words.
        seconds: how long, at the measured speed.
    """

    stage: str
    work: str
    seconds: float


def estimate(recipe: Recipe, data: TrainingSet) -> list[StageEstimate]:
    """The plan of a training, each stage with the time it will take.

    Both speeds, of judging and of training, are measured on a few of the recipe's own pairs with its own model.
    """
    judging, training = _speeds(recipe, sampled_queries(data.train, _SAMPLE, recipe.seed))
    train, dev = len(data.train), len(data.dev)
    ood_dev, tests = len(data.of("ood_dev")), len(data.of("test", "ood_test"))
    found = []
    if recipe.probe is not None:
        found.append(StageEstimate("probe", f"features of {train + dev:,} pairs", (train + dev) / judging))
    total = train
    if recipe.select is not None:
        pool = len(data.of("pool"))
        work = f"features of {train + dev + pool:,} pairs, {recipe.select.budget} of {pool:,} chosen"
        found.append(StageEstimate("select", work, (train + dev + pool) / judging))
        replayed = train if recipe.replay is None else min(train, recipe.replay * recipe.select.budget)
        total = int(replayed + recipe.select.budget)
    settings = recipe.finetune
    examples = int(total * settings.epochs)
    if settings.max_examples is not None:
        examples = min(examples, settings.max_examples)
    for seed in recipe.seeds:
        seconds = examples / training
        if settings.max_minutes is not None:
            seconds = min(seconds, 60 * settings.max_minutes)
        work = f"{examples:,} examples, {settings.loss}, {recipe.trainable.weights}"
        found.append(StageEstimate(f"finetune-{seed}", work, seconds))
    if recipe.interpolate is not None:
        count = len(recipe.interpolate.alphas)
        work = f"{count} weights of {dev + ood_dev:,} held-out pairs"
        found.append(StageEstimate("merge", work, count * (dev + ood_dev) / judging))
    if recipe.calibrate and dev:
        known = min(train, 10_000) + dev + ood_dev
        found.append(StageEstimate("calibrate", f"features of {known:,} pairs", known / judging))
    if tests:
        found.append(StageEstimate("evaluate", f"{tests:,} test pairs", tests / judging))
    return found


def plan_table(stages: list[StageEstimate]) -> str:
    """The plan, a line a stage."""
    lines = [f"  {s.stage:<12} {s.work:<60} {_clock(s.seconds):>9}" for s in stages]
    return "\n".join(["plan, with times as measured here just now:", *lines, f"  {'':<73} {_clock(_total(stages)):>9}"])


def _total(stages: list[StageEstimate]) -> float:
    return sum(stage.seconds for stage in stages)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def _speeds(recipe: Recipe, pairs: list[GradedPair]) -> tuple[float, float]:
    """Pairs judged and examples trained on in a second."""
    checkpoint = start_checkpoint(recipe.model)
    model = load_grade_model(checkpoint, recipe.trainable, seed=recipe.seed)
    encoder = checkpoint.encoder()
    examples = query_examples(pairs, recipe.grades)

    def judge() -> None:
        predict_logits(model, encoder, pairs, progress=False)

    def train() -> None:
        packed = pack([encoder.encode(example.query, example.documents) for example in examples])
        with reduced_precision(torch.device("cpu")):
            model(packed.last, **packed.inputs()).square().mean().backward()

    return len(pairs) / _seconds(judge), len(pairs) / _seconds(train)


def _seconds(work: object) -> float:
    """Of the faster of two runs after one to warm up."""
    assert callable(work)
    times = []
    for _ in range(3):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return max(min(times[1:]), 1e-9)
