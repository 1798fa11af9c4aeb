"""The estimate of a training's time: what is made of the speeds that were measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from darl_rerank import Checkpoint
from darl_rerank.training import estimate
from darl_rerank.training.context import WEIGHTS, Context
from darl_rerank.training.data.sources import SourcePairs
from darl_rerank.training.data.training_set import TrainingSet
from darl_rerank.training.estimate import Speed, StageEstimate, plan_table
from darl_rerank.training.model.grade_model import GradeModel, load_grade_model, save_weights
from darl_rerank.training.model.predict import training_device
from darl_rerank.training.recipe.settings import InterpolateStage, ModelChoice, Recipe, Trainable
from darl_rerank.training.recipe.source import Source
from darl_rerank.training.stages import merge, start
from darl_rerank.trec.graded_pairs import GradedPair


def test_one_slow_batch_does_not_move_the_estimate() -> None:
    speed = Speed.of([10.0, 11.0, 1.0, 10.5, 9.5])
    assert speed == Speed(usual=10.0, slowest=1.0, fastest=11.0)
    stage = estimate._stage("probe", "features", 110, speed)
    assert (stage.seconds, stage.least, stage.most) == (11.0, 10.0, 110.0)
    assert estimate._stage("finetune-0", "examples", 6600, speed, max_minutes=5).most == 300


def test_every_batch_but_the_first_is_timed_and_goes_on_through_the_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: float(next(clock)))
    pairs = [GradedPair("q", f"d{i}", 0, None, "q") for i in range(100)]
    seen: list[list[GradedPair]] = []
    speed = estimate._speed(seen.append, pairs)
    # 3 whole batches of 32, again from the first; a second a batch, by this clock.
    assert [batch[0].document for batch in seen[:4]] == ["d0", "d32", "d64", "d0"]
    assert speed == Speed(32.0, 32.0, 32.0)


def test_the_plan_shows_the_range() -> None:
    shown = plan_table([StageEstimate("probe", "features", 60, 50, 80), StageEstimate("merge", "weights", 30, 20, 100)])
    assert "0:01:00  (0:00:50 to 0:01:20)" in shown
    assert "0:01:30  (0:01:10 to 0:03:00)" in shown.splitlines()[-1]


def test_estimate_and_sweep_run_where_training_does(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert training_device("cpu").type == "cpu"
    moved: list[torch.device] = []

    def moves(model: GradeModel, device: torch.device) -> GradeModel:
        moved.append(device)
        return model

    def judged(*_: Any, **__: Any) -> np.ndarray:
        raise InterruptedError

    monkeypatch.setattr(GradeModel, "to", moves)
    pairs = [GradedPair(f"q{i // 4}", f"d{i}", i % 4, None, f"q{i // 4}") for i in range(24)]
    source = Source(name="s", pairs=tmp_path / "pairs.jsonl", dev_queries=2)
    recipe = Recipe(
        path=tmp_path / "recipe.toml", model=ModelChoice(checkpoint=tiny_model), sources=(source,),
        trainable=Trainable(weights="head"), interpolate=InterpolateStage(),
    )  # fmt: skip
    data = TrainingSet((SourcePairs(source, pairs[:16], pairs[16:]),))
    for module in (estimate, merge):
        monkeypatch.setattr(module, "predict_logits", judged)
    with pytest.raises(InterruptedError):
        estimate.estimate(recipe, data)
    context = Context.open(recipe, data, tmp_path / "work", device=None, progress=False)
    context.run("start", start.run)
    weights = load_grade_model(Checkpoint.load(tiny_model), recipe.trainable).trainable_state()
    context.work.path("finetune-0").mkdir()
    save_weights(context.work.path("finetune-0") / WEIGHTS, weights)
    with pytest.raises(InterruptedError):
        context.run("merge", merge.run)
    assert moved == [torch.device("cuda"), torch.device("cuda")]
