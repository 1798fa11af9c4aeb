"""Fine-tuning on a tiny model: losses, which weights change, a killed training, a time limit."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from darl_rerank import Checkpoint
from darl_rerank.training.data.examples import QueryExamples
from darl_rerank.training.loop import progress
from darl_rerank.training.loop.trainer import GradeTrainer
from darl_rerank.training.model.grade_model import GradeModel, load_grade_model
from darl_rerank.training.recipe.settings import FinetuneSettings, Trainable
from darl_rerank.training.stages.finetune import finetune

WORDS = ["laptop", "notebook", "garden", "hose", "printer", "toner", "battery", "quick", "fox", "house", "rain"]
SMALL: dict[str, Any] = {"batch": 8, "micro_batches": 2, "learning_rate": 3e-3, "epochs": 2}


def examples(count: int = 24) -> list[QueryExamples]:
    rng = np.random.default_rng(0)
    return [
        QueryExamples(
            f"query {i} {WORDS[i % 11]}",
            tuple(f"{WORDS[(i + j) % 11]} document {j}" for j in range(3)),
            np.eye(4, dtype=np.float32)[rng.integers(0, 4, 3)],
            np.ones(3, dtype=np.float32),
            "a" if i % 3 else "b",
        )
        for i in range(count)
    ]


def tuned(tiny_model: Path, folder: Path, trainable: Trainable, **settings: Any) -> tuple[GradeModel, list[float]]:
    checkpoint = Checkpoint.load(tiny_model)
    model = load_grade_model(checkpoint, trainable)
    finetune(model, checkpoint, examples(), FinetuneSettings(**{**SMALL, **settings}), folder, device="cpu",
             progress=False)  # fmt: skip
    losses = [json.loads(line)["loss"] for line in (folder / progress.LOG).read_text().splitlines()]
    return model, losses


@pytest.mark.parametrize("loss", ["occ", "ce", "label_smoothing", "sord", "emd", "corn"])
def test_every_loss_falls(tiny_model: Path, tmp_path: Path, loss: str) -> None:
    _, losses = tuned(tiny_model, tmp_path, Trainable("all"), loss=loss, epochs=8)
    assert np.mean(losses[-6:]) < 0.9 * np.mean(losses[:6])


@pytest.mark.parametrize("trainable", [Trainable("all", layers=1), Trainable("lora", layers=1, rank=2)])
def test_only_what_is_asked_for_is_trained(tiny_model: Path, tmp_path: Path, trainable: Trainable) -> None:
    before = load_grade_model(Checkpoint.load(tiny_model), trainable)
    old = {name: p.clone() for name, p in before.named_parameters()}
    model, _ = tuned(tiny_model, tmp_path, trainable)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, old[name])}
    assert changed
    assert all("layers.1." in name or name.startswith("head.") for name in changed)
    assert not any("norm" in name or "embed" in name for name in changed)


@pytest.mark.parametrize("trainable", [Trainable("all"), Trainable("lora", rank=2)])
def test_a_training_killed_between_steps_ends_as_if_it_had_not_been(
    tiny_model: Path, tmp_path: Path, trainable: Trainable, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, losses = tuned(tiny_model, tmp_path / "whole", trainable, group_dro=0.1)
    ended = progress.ProgressLog.finish_step

    def dies(log: progress.ProgressLog, *arguments: Any) -> None:
        ended(log, *arguments)
        if log.step == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(progress.ProgressLog, "finish_step", dies)
    with pytest.raises(KeyboardInterrupt):
        tuned(tiny_model, tmp_path / "cut", trainable, group_dro=0.1, save_minutes=1e-9)
    assert {p.suffix for p in (tmp_path / "cut").rglob("*") if p.is_file()} == {".json", ".jsonl", ".safetensors"}
    # A kill while a state is written leaves a folder without its last file: the one before it is taken.
    newest = max((tmp_path / "cut").glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    (newest / "trainer_state.json").unlink()
    monkeypatch.setattr(progress.ProgressLog, "finish_step", ended)
    resumed, again = tuned(tiny_model, tmp_path / "cut", trainable, group_dro=0.1, save_minutes=1e-9)
    assert again == pytest.approx(losses, abs=1e-6)
    for name, value in whole.trainable_state().items():
        torch.testing.assert_close(resumed.trainable_state()[name], value, rtol=1e-5, atol=1e-6)


def test_time_is_kept(tiny_model: Path, tmp_path: Path) -> None:
    _, losses = tuned(tiny_model, tmp_path, Trainable("all"), epochs=1000, max_minutes=0.01)
    assert 0 < len(losses) < 9000


def test_a_process_that_sees_two_gpus_takes_one(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, alone = tuned(tiny_model, tmp_path / "one", Trainable("head"), max_examples=48)
    made = transformers.TrainingArguments.__post_init__

    def sees_two(arguments: transformers.TrainingArguments) -> None:
        made(arguments)
        _ = arguments.n_gpu
        arguments._n_gpu = 2

    monkeypatch.setattr(transformers.TrainingArguments, "__post_init__", sees_two)
    _, losses = tuned(tiny_model, tmp_path / "two", Trainable("head"), max_examples=48)
    assert losses == pytest.approx(alone)


def test_what_is_overridden_of_trainer_is_still_there() -> None:
    """Trainer would never call a method that it has renamed, and go on to write pickles."""
    own = {name for name in vars(GradeTrainer) if not name.startswith("__") and callable(getattr(GradeTrainer, name))}
    of_ours = {"_end_step", "_losses"}
    for name in own - of_ours:
        theirs = inspect.signature(getattr(transformers.Trainer, name)).parameters
        ours = inspect.signature(getattr(GradeTrainer, name)).parameters
        assert list(ours)[: len(theirs)] == list(theirs), name
