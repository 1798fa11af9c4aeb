"""Training by a recipe on a tiny model: several processes, every stage."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from small_training import texts, train, write, write_pairs

from darl_rerank import Checkpoint, Reranker
from darl_rerank.model.head import grade_logits
from darl_rerank.training.data.features import extract_features
from darl_rerank.training.data.training_set import load_training_set
from darl_rerank.training.model.grade_model import load_grade_model
from darl_rerank.training.recipe.read import read_recipe
from darl_rerank.training.recipe.settings import Trainable
from darl_rerank.training.stages.probe import final_states


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_pairs(tmp_path)


@pytest.mark.parametrize("weights", ["lora"])
def test_two_processes_make_the_steps_of_one(data: Path, tiny_model: Path, weights: str) -> None:
    recipe = data / "two.toml"
    recipe.write_text(
        f'[model]\ncheckpoint = "{tiny_model}"\n[[source]]\nname = "home"\npairs = "train.jsonl"\n'
        f'[finetune]\nweights = "{weights}"\nbatch = 16\nmicro_batches = 2\nepochs = 2\ngroup_dro = 0.1\n'
    )
    command = ["darl_rerank.cli", "train", "--config", str(recipe), "--device", "cpu", "--output"]
    launch = ["torch.distributed.run", "--nproc_per_node=2", "--master_port=0", "--rdzv_backend=c10d",
              "--rdzv_endpoint=localhost:0", "-m"]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    losses, states = [], []
    for name, words in (("one", command), ("two", [*launch, *command])):
        done = subprocess.run(
            [sys.executable, "-m", *words, str(data / name)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        stage = data / f"{name}.work" / "finetune-0"
        assert json.loads((stage / "result.json").read_text())["processes"] == len(losses) + 1
        losses.append([json.loads(line)["loss"] for line in (stage / "log.jsonl").read_text().splitlines()])
        states.append(load_file(stage / "trainable.safetensors"))
    assert len(losses[0]) == 12
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=1e-3, atol=1e-5)


def test_all_stages_with_two_seeds(data: Path, tiny_model: Path) -> None:
    recipe = write(data, tiny_model, seeds="[0, 1]")
    result = train(recipe, data / "model")
    assert result.exit_code == 0, result.output
    checkpoint = Checkpoint.load(data / "model")
    assert checkpoint.trained
    assert checkpoint.novelty is not None
    assert checkpoint.provenance["stages"]["labels"]["pairs"] == 10
    assert str(data) not in (data / "model" / "checkpoint.json").read_text()
    card = (data / "model" / "README.md").read_text()
    for part in ("Linear probe", "dasa, 10 of 80 pairs", "seed 1", "Replay: 2", "α =", "OOD test", "ndcg@10"):
        assert part in card
    work = data / "model.work"
    assert "<svg" in (work / "evaluate" / "report.html").read_text()
    curve = json.loads((work / "merge" / "result.json").read_text())["curve"]
    assert curve["alphas"] == [0, 0.5, 1]
    assert set(curve["values"]) == {"ID dev", "OOD dev"}
    ranking = Reranker.from_pretrained(data / "model", device="cpu").rerank("laptop", ["laptop fox", "garden hose"])
    assert all(r.novelty is not None for r in ranking)
    # Everything is there: a second run only writes the checkpoint again.
    before = {path: path.stat().st_mtime_ns for path in work.rglob("result.json")}
    assert train(recipe, data / "model", "--overwrite").exit_code == 0
    assert before == {path: path.stat().st_mtime_ns for path in work.rglob("result.json")}
    assert Checkpoint.load(data / "model").fingerprint == checkpoint.fingerprint


def test_pairs_that_nobody_judged_are_trained_on_and_not_calibrated_on(data: Path, tiny_model: Path) -> None:
    texts(data, "made_up", 100, 10)
    recipe = data / "recipe.toml"
    recipe.write_text(
        f"""[model]
checkpoint = "{tiny_model}"
[[source]]
name = "home"
pairs = "train.jsonl"
dev_queries = 6
[[source]]
name = "made up"
pairs = "made_up.jsonl"
dev_queries = 4
judged = false
[finetune]
weights = "head"
batch = 16
"""
    )
    result = train(recipe, data / "model")
    assert result.exit_code == 0, result.output
    checkpoint = Checkpoint.load(data / "model")
    assert checkpoint.novelty is not None
    assert checkpoint.provenance["stages"]["finetune-0"]["queries"] == 18 + 6
    assert checkpoint.novelty.settings["training_pairs"] == 18 * 4
    assert checkpoint.provenance["stages"]["calibrate"]["pairs"] == 6 * 4


def test_known_pairs_are_not_trained_on_and_no_news(data: Path, tiny_model: Path) -> None:
    texts(data, "field", 100, 10)
    recipe = data / "recipe.toml"
    home = f'[model]\ncheckpoint = "{tiny_model}"\n[[source]]\nname = "home"\npairs = "train.jsonl"\ndev_queries = 6\n'
    field = '[[source]]\nname = "field"\nuse = "known"\npairs = "field.jsonl"\ndev_queries = 4\n'
    rest = '[finetune]\nweights = "head"\nbatch = 16\n'
    recipe.write_text(home + field + rest)
    result = train(recipe, data / "model")
    assert result.exit_code == 0, result.output
    checkpoint = Checkpoint.load(data / "model")
    assert checkpoint.novelty is not None
    assert checkpoint.provenance["stages"]["finetune-0"]["queries"] == 18
    assert checkpoint.novelty.settings["training_pairs"] == (18 + 6) * 4
    assert checkpoint.novelty.settings["held_out_pairs"] == (6 + 4) * 4
    assert checkpoint.provenance["stages"]["calibrate"]["pairs"] == (6 + 4) * 4
    assert "| field | known | 10 | 24 | 16 |" in (data / "model" / "README.md").read_text()
    # A temperature that doesn't follow novelty has nothing to fear from pairs that novelty was fitted on.
    recipe.write_text(home + field + rest + "[calibrate]\nnovelty = false\n")
    result = train(recipe, data / "flat")
    assert result.exit_code == 0, result.output
    assert Checkpoint.load(data / "flat").provenance["stages"]["calibrate"]["pairs"] == (6 + 10) * 4
    shutil.copy(data / "train.jsonl", data / "field.jsonl")
    overlap = train(recipe, data / "other")
    assert overlap.exit_code == 3
    assert "train source 'home' and known source 'field' share 24 queries" in overlap.output


def test_calibration_on_grades_alone(data: Path, tiny_model: Path) -> None:
    soft = [json.loads(line) for line in (data / "train.jsonl").read_text().splitlines()]
    for line in soft:
        line["probabilities"] = [0.7 if grade == line["grade"] else 0.1 for grade in range(4)]
        del line["grade"]
    (data / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in soft))
    recipe = data / "recipe.toml"
    home = f'[model]\ncheckpoint = "{tiny_model}"\n[[source]]\nname = "home"\npairs = "train.jsonl"\ndev_queries = 6\n'
    away = '[[source]]\nname = "away"\nuse = "ood_dev"\npairs = "ood_dev.jsonl"\n'
    rest = '[finetune]\nweights = "head"\nbatch = 16\n[calibrate]\nsoft = false\ncuts = ["recall 0.5 of related"]\n'
    recipe.write_text(home + rest)
    result = train(recipe, data / "model")
    assert result.exit_code == 3
    assert "all labels held out are soft" in result.output
    assert train(recipe, data / "model", "--dry-run").exit_code == 3
    recipe.write_text(home + away + rest)
    result = train(recipe, data / "model")
    assert result.exit_code == 0, result.output
    stage = Checkpoint.load(data / "model").provenance["stages"]["calibrate"]
    assert stage["pairs"] == 6 * 4
    # What people graded decides where grades begin, and what a cut keeps.
    decisions = Checkpoint.load(data / "model").decisions
    assert [cut.facts["pairs"] for cut in decisions.cuts] == [6 * 4]
    assert decisions.grades is not None
    assert stage["decisions"]["grades"]["points"] == list(decisions.grades.points)
    recipe.write_text(home + away + rest.replace("soft = false", "soft = true"))
    result = train(recipe, data / "all")
    assert result.exit_code == 0, result.output
    both = Checkpoint.load(data / "all").provenance["stages"]["calibrate"]
    assert both["pairs"] == 2 * 6 * 4
    assert both["calibration"] != stage["calibration"]


def test_all_weights_delivered_as_an_adapter_and_trained_on(data: Path, tiny_model: Path) -> None:
    base = data / "base"
    base.mkdir()
    for path in [*(tiny_model / "model").iterdir(), tiny_model / "tokenizer.json"]:
        shutil.copy(path, base)
    recipe = data / "recipe.toml"
    rest = """[[source]]
name = "home"
pairs = "train.jsonl"
dev_queries = 6
[finetune]
weights = "all"
learning_rate = 3e-3
batch = 16
epochs = 4
delivered_rank = 3
[interpolate]
alphas = [1]
[calibrate]
enabled = false
"""
    recipe.write_text(f'[model]\nbase = "{base}"\nscale = "trec4"\n{rest}')
    result = train(recipe, data / "first")
    assert result.exit_code == 0, result.output
    first = Checkpoint.load(data / "first")
    assert first.adapter_folder is not None
    assert first.model_folder is None
    kept = first.provenance["stages"]["merge"]["kept"]
    assert 0 < kept < 1
    assert f"adapter of rank 3, which holds {kept:.0%}" in (data / "first" / "README.md").read_text()
    # A second training starts from the merged adapter, and what it delivers is again one on the base model.
    recipe.write_text(f'[model]\ncheckpoint = "first"\n{rest}'.replace("epochs = 4", "max_examples = 1"))
    start = load_grade_model(first, Trainable("all")).lm.state_dict()
    plain = load_grade_model(Checkpoint.from_base(base, first.scale), Trainable("all")).lm.state_dict()
    changed = [name for name in plain if not torch.equal(plain[name], start[name])]
    assert changed
    assert all("_proj." in name for name in changed)
    result = train(recipe, data / "second")
    assert result.exit_code == 0, result.output
    second = Checkpoint.load(data / "second")
    assert second.adapter_folder is not None
    assert second.base.name == first.base.name
    # Its card says what the first was trained on, too.
    assert [facts["data"] for facts in second.provenance["earlier"]] == [first.provenance["data"]]
    card = (data / "second" / "README.md").read_text()
    examples = first.provenance["stages"]["finetune-0"]["examples"]
    assert f"1. Loss occ, {examples} examples, of\n   - home (train): " in card
    assert "Trained before" not in (data / "first" / "README.md").read_text()
    # Under LoRA it is the first's adapter that is trained.
    lora = f'[model]\ncheckpoint = "first"\n{rest}'.replace('weights = "all"', 'weights = "lora"')
    recipe.write_text(lora.replace("delivered_rank = 3", "rank = 4\nseeds = [0, 1]"))
    result = train(recipe, data / "third")
    assert result.exit_code == 3
    assert "finetune.rank, finetune.seeds with more than one seed, interpolate can't be given where" in result.output
    lora = lora.replace("delivered_rank = 3\n[interpolate]\nalphas = [1]\n", "")
    recipe.write_text(lora.replace("epochs = 4", "max_examples = 1"))
    result = train(recipe, data / "third")
    assert result.exit_code == 0, result.output
    assert "its adapter of rank 3 (LoRA); loss occ" in (data / "third" / "README.md").read_text()
    pairs = [("laptop", "laptop fox"), ("hose", "garden hose")]
    plain_scores, *scores = (
        Reranker.from_pretrained(c, device="cpu", precision="float32").score_pairs(pairs).logits
        for c in (Checkpoint.from_base(base, first.scale).save(data / "plain").folder, data / "first", data / "second")
    )
    assert np.abs(scores[1] - scores[0]).max() < 0.5 * np.abs(plain_scores - scores[0]).max()


def test_corn_is_read_as_corn_wherever_it_is_used(data: Path, tiny_model: Path) -> None:
    recipe = data / "recipe.toml"
    text = (
        f'[model]\ncheckpoint = "{tiny_model}"\n[[source]]\nname = "home"\npairs = "train.jsonl"\ndev_queries = 6\n'
        '[probe]\nepochs = 2\n[finetune]\nloss = "corn"\nweights = "all"\nbatch = 16\n[interpolate]\nalphas = [0, 1]\n'
    )
    recipe.write_text(text)
    result = train(recipe, data / "model")
    assert result.exit_code == 0, result.output
    assert Checkpoint.load(data / "model").link == "corn"
    dev = load_training_set(read_recipe(recipe)).dev
    with np.load(data / "model.work" / "merge" / "logits-1.npz") as kept:
        swept = kept["ID dev"]
    served = Reranker.from_pretrained(data / "model.work" / "merge" / "checkpoint", device="cpu")
    logits = served.score_pairs([(pair.query, pair.document) for pair in dev]).logits
    # CORN's grade logits are log probabilities; the head's outputs, read by softmax, would not be.
    for found in (swept, logits, np.load(data / "model.work" / "calibrate" / "ID-dev" / "logits.npy")):
        assert np.logaddexp.reduce(found, axis=1) == pytest.approx(np.zeros(len(found)), abs=1e-4)
    states = final_states(
        extract_features(served, dev, data / "features", progress=False), served.checkpoint.head, "corn"
    )
    again = grade_logits("corn", states @ served.checkpoint.head.weight.T + served.checkpoint.head.bias)
    assert np.allclose(again, logits, atol=2e-2)
    recipe.write_text(text.replace(str(tiny_model), "model").replace('"corn"', '"ce"'))
    assert "ce reads a head by softmax, but that of model.checkpoint" in train(recipe, data / "other").output
