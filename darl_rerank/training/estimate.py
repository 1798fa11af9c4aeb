"""How long a training will take here, from half a minute of measuring."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

from darl_rerank.trec.graded_pairs import GradedPair

from .data.examples import query_examples
from .data.labels import sampled_queries
from .data.training_set import TrainingSet
from .model.grade_model import load_grade_model
from .model.initial import initial_checkpoint
from .model.packing import pack
from .model.predict import predict_logits, reduced_precision, to_device, training_device
from .recipe.settings import Recipe
from .stages.calibrate import NOVELTY_PAIRS
from .stages.exits import TRAINING_PAIRS

# Pairs of a timed batch; how many batches after one to warm up, of other pairs each; and when three are enough:
# so many seconds after the start.
_SAMPLE = 32
_BATCHES = 7
_LONG = 20.0


@dataclass(frozen=True, slots=True)
class Speed:
    """Pairs a second in the timed batches: the median, the slowest and the fastest.

    One batch says little where other programs share the cores, or where pairs are of very different lengths.
    """

    usual: float
    slowest: float
    fastest: float

    @classmethod
    def of(cls, rates: list[float]) -> Speed:
        return cls(median(rates), min(rates), max(rates))


@dataclass(frozen=True, slots=True)
class StageEstimate:
    """One stage.

    Attributes:
        stage: its name.
        work: what it does, in words.
        seconds: how long, at the median of the measured speeds.
        least, most: how long at the fastest and at the slowest of them.
    """

    stage: str
    work: str
    seconds: float
    least: float
    most: float


def estimate(recipe: Recipe, data: TrainingSet, *, device: str | None = None) -> list[StageEstimate]:
    """The plan of a training, each stage with the time it will take.

    Both speeds, of judging and of training, are measured on batches of the recipe's own pairs with its own model.
    """
    sample = sampled_queries(data.train, (_BATCHES + 1) * _SAMPLE, recipe.seed)
    judging, training = _speeds(recipe, sample, training_device(device))
    train, dev = len(data.train), len(data.dev)
    ood_dev, tests = len(data.of("ood_dev")), len(data.of("test", "ood_test"))
    found = []
    if recipe.probe is not None:
        found.append(_stage("probe", f"features of {train + dev:,} pairs", train + dev, judging))
    total = train
    if recipe.select is not None:
        pool = len(data.of("pool"))
        work = f"features of {train + dev + pool:,} pairs, {recipe.select.budget} of {pool:,} chosen"
        found.append(_stage("select", work, train + dev + pool, judging))
        replayed = train if recipe.replay is None else min(train, recipe.replay * recipe.select.budget)
        total = int(replayed + recipe.select.budget)
    settings = recipe.finetune
    examples = int(total * settings.epochs)
    if settings.max_examples is not None:
        examples = min(examples, settings.max_examples)
    for seed in recipe.seeds:
        work = f"{examples:,} examples, {settings.loss}, {recipe.trainable.weights}"
        found.append(_stage(f"finetune-{seed}", work, examples, training, settings.max_minutes))
    if recipe.interpolate is not None:
        count = len(recipe.interpolate.alphas)
        work = f"{count} weights of {dev + ood_dev:,} held-out pairs"
        found.append(_stage("merge", work, count * (dev + ood_dev), judging))
    if recipe.calibrate is not None and data.judged[1]:
        sets = data.calibration_sets(novelty=recipe.calibrate.novelty)
        known = min(len(data.judged[0]), NOVELTY_PAIRS) + sum(map(len, sets.values()))
        found.append(_stage("calibrate", f"features of {known:,} pairs", known, judging))
    if recipe.exits is not None:
        known = min(train, TRAINING_PAIRS) + len(data.judged[1] or data.dev)
        found.append(_stage("exits", f"states of {known:,} pairs", known, judging))
    if tests:
        found.append(_stage("evaluate", f"{tests:,} test pairs", tests, judging))
    return found


def _stage(name: str, work: str, pairs: int, speed: Speed, max_minutes: float | None = None) -> StageEstimate:
    limit = float("inf") if max_minutes is None else 60 * max_minutes
    usual, least, most = (min(pairs / rate, limit) for rate in (speed.usual, speed.fastest, speed.slowest))
    return StageEstimate(name, work, usual, least, most)


def plan_table(stages: list[StageEstimate]) -> str:
    """The plan, a line a stage."""
    lines = [f"  {s.stage:<12} {s.work:<60} {_clock(s.seconds):>9} {_range(s.least, s.most):>21}" for s in stages]
    usual, least, most = (sum(getattr(s, name) for s in stages) for name in ("seconds", "least", "most"))
    head = "plan, with times as measured here just now: median, and range between the batches measured"
    return "\n".join([head, *lines, f"  {'':<73} {_clock(usual):>9} {_range(least, most):>21}"])


def _range(least: float, most: float) -> str:
    return f"({_clock(least)} to {_clock(most)})"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def _speeds(recipe: Recipe, pairs: list[GradedPair], device: torch.device) -> tuple[Speed, Speed]:
    """Pairs judged and examples trained on in a second."""
    checkpoint = initial_checkpoint(recipe.model)
    model = load_grade_model(checkpoint, recipe.trainable, seed=recipe.seed).to(device)
    encoder = checkpoint.encoder()

    def judge(some: list[GradedPair]) -> None:
        predict_logits(model, encoder, some, progress=False)

    def train(some: list[GradedPair]) -> None:
        examples = query_examples(some, recipe.grades)
        packed = pack([encoder.encode(example.query, example.documents) for example in examples])
        with reduced_precision(device):
            # The value is fetched, so that a GPU's work is done when the clock is read.
            loss = model(packed.last.to(device), **to_device(packed.inputs(), device)).square().mean()
            loss.backward()
        loss.item()

    return _speed(judge, pairs), _speed(train, pairs)


def _speed(work: Callable[[list[GradedPair]], None], pairs: list[GradedPair]) -> Speed:
    """Of some batches, one after the other through `pairs`, after one to warm up."""
    batches = [pairs[start : start + _SAMPLE] for start in range(0, len(pairs), _SAMPLE)]
    if len(batches) > 1 and len(batches[-1]) < _SAMPLE:
        batches.pop()
    rates: list[float] = []
    started = time.perf_counter()
    for i in range(_BATCHES + 1):
        batch = batches[i % len(batches)]
        begun = time.perf_counter()
        work(batch)
        now = time.perf_counter()
        if i:
            rates.append(len(batch) / max(now - begun, 1e-9))
        if len(rates) >= 3 and now - started > _LONG:
            break
    return Speed.of(rates)
