"""Training by a recipe on a tiny model: resuming, several processes, every stage, bad input."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from darl_rerank import Checkpoint, Reranker, __version__
from darl_rerank.cli import cli
from darl_rerank.model.head import Head, grade_logits
from darl_rerank.training.data.features import extract_features
from darl_rerank.training.data.training_set import load_training_set
from darl_rerank.training.model.grade_model import load_grade_model
from darl_rerank.training.recipe.read import read_recipe
from darl_rerank.training.recipe.settings import Trainable
from darl_rerank.training.stages.probe import final_states

WORDS = ["laptop", "notebook", "garden", "hose", "printer", "toner", "battery", "quick", "fox", "house", "rain"]


def texts(folder: Path, name: str, first: int, queries: int, *, labelled: bool = True) -> None:
    rng = random.Random(name)
    lines = []
    for number in range(first, first + queries):
        query = rng.sample(WORDS, 2)
        for grade in (0, 1, 2, 3):
            document = query[:grade] + rng.sample(WORDS, 3)
            label = grade if labelled else None
            lines.append({"query": f"{' '.join(query)} {number}", "document": " ".join(document), "grade": label})
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


RECIPE = """
seed = 3
[model]
checkpoint = "{model}"
[[source]]
name = "home"
pairs = "train.jsonl"
dev_queries = 6
[[source]]
name = "elsewhere"
use = "pool"
pairs = "pool.jsonl"
[[source]]
name = "dev away"
use = "ood_dev"
pairs = "ood_dev.jsonl"
[[source]]
name = "ID test"
use = "test"
pairs = "test.jsonl"
[[source]]
name = "OOD test"
use = "ood_test"
pairs = "ood_test.jsonl"
[probe]
epochs = 3
[select]
budget = 10
labels = "{labels}"
annotations = "graded.jsonl"
band = [5, 99]
[finetune]
weights = "lora"
rank = 4
batch = 16
micro_batches = 2
replay = 2
seeds = {seeds}
[interpolate]
alphas = [0, 0.5, 1]
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name, first, queries in (("train", 0, 24), ("ood_dev", 60, 6), ("test", 70, 6), ("ood_test", 80, 6)):
        texts(tmp_path, name, first, queries)
    texts(tmp_path, "pool", 30, 20)
    return tmp_path


def write(folder: Path, model: Path, *, labels: str = "pool", seeds: str = "[0]") -> Path:
    path = folder / "recipe.toml"
    path.write_text(RECIPE.format(model=model, labels=labels, seeds=seeds), "utf-8")
    return path


def train(recipe: Path, output: Path, *words: object) -> Result:
    arguments = ["train", "--config", recipe, "--output", output, "--device", "cpu", *words]
    return CliRunner().invoke(cli, [str(word) for word in arguments])


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


def test_a_kill_in_any_stage_changes_nothing(data: Path, tiny_model: Path) -> None:
    recipe = write(data, tiny_model)
    assert train(recipe, data / "whole").exit_code == 0
    expected = Checkpoint.load(data / "whole").fingerprint
    command = [sys.executable, "-m", "darl_rerank.cli", "train", "--config", str(recipe), "--device", "cpu"]
    command += ["--output", str(data / "cut")]
    left = ["probe", "select", "finetune-0", "merge", "calibrate", "evaluate"]
    killed = []
    for _ in range(len(left) + 1):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None:
            begun = [s for s in left if (data / "cut.work" / s).is_dir()]
            if begun:
                process.send_signal(signal.SIGKILL)
                process.wait()
                left.remove(begun[0])
                killed.append(begun[0])
            time.sleep(0.01)
        if process.returncode == 0:
            break
    assert process.returncode == 0
    assert killed == ["probe", "select", "finetune-0", "merge", "calibrate", "evaluate"]
    assert Checkpoint.load(data / "cut").fingerprint == expected


def test_annotators_fill_the_file_in(data: Path, tiny_model: Path) -> None:
    recipe = write(data, tiny_model, labels="annotations")
    waiting = train(recipe, data / "model")
    assert waiting.exit_code == 3
    assert "10 pairs wait for their grades" in waiting.output
    blank = (data / "model.work" / "select" / "annotations.jsonl").read_text().splitlines()
    lines = [{**json.loads(line), "grade": i % 4} for i, line in enumerate(blank)]
    half = [line if i % 2 else {**line, "grade": None} for i, line in enumerate(lines)]
    (data / "graded.jsonl").write_text("".join(json.dumps(line) + "\n" for line in half))
    refused = train(recipe, data / "model")
    assert refused.exit_code == 3
    assert "5 of 10 pairs have no grade yet (lines 1, 3, 5, 7, 9)" in refused.output
    (data / "graded.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = train(recipe, data / "model")
    assert done.exit_code == 0, done.output


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


def test_a_folder_of_another_training_is_refused(data: Path, tiny_model: Path) -> None:
    recipe = write(data, tiny_model)
    assert train(recipe, data / "model").exit_code == 0
    shutil.rmtree(data / "model")
    recipe.write_text(recipe.read_text().replace("rank = 4", "rank = 2"))
    result = train(recipe, data / "model")
    assert result.exit_code == 3
    assert "holds a training that differs in recipe.trainable.rank (4, now 2)" in result.output


def test_changed_inputs_are_not_gone_on_from(data: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = data / "recipe.toml"
    model, teacher = data / "begun", data / "teacher"
    for folder in (model, teacher):
        shutil.copytree(tiny_model, folder)
    text = (
        '[model]\ncheckpoint = "begun"\n[[source]]\nname = "home"\npairs = "train.jsonl"\ndev_queries = 6\n[[source]]\n'
        'name = "pool"\nuse = "pool"\npairs = "pool.jsonl"\n[select]\nbudget = 6\nstrategy = "random"\n'
        'LABELS\n[finetune]\nweights = "head"\nmax_examples = 16\nbatch = 16\n[calibrate]\nenabled = false\n'
    )
    recipe.write_text(text.replace("LABELS", 'teacher = "teacher"'))
    assert train(recipe, data / "model").exit_code == 0

    def again() -> str:
        result = train(recipe, data / "model", "--overwrite")
        assert result.exit_code == 3, result.output
        return result.output

    other = Checkpoint.load(tiny_model)
    other = other.replace(head=Head(other.head.weight * 2, other.head.bias))
    for folder, named in ((model, "differs in model ("), (teacher, "differs in teacher (")):
        other.save(folder, overwrite=True)
        assert named in again()
        Checkpoint.load(tiny_model).save(folder, overwrite=True)
    assert train(recipe, data / "model", "--overwrite").exit_code == 0
    with monkeypatch.context() as patched:
        patched.setattr("darl_rerank.training.context.__version__", "9.9")
        assert f"differs in darl-rerank ({__version__}, now 9.9)" in again()
    # What annotators write can't be in the plan: it is made later.
    recipe.write_text(text.replace("LABELS", 'annotations = "graded.jsonl"'))
    shutil.rmtree(data / "model.work")
    assert "6 pairs wait" in again()
    blank = [json.loads(x) for x in (data / "model.work" / "select" / "annotations.jsonl").read_text().splitlines()]
    for grade in (1, 2):
        lines = [json.dumps({**line, "grade": (i + grade) % 4}) + "\n" for i, line in enumerate(blank)]
        (data / "graded.jsonl").write_text("".join(lines))
        if grade == 1:
            assert train(recipe, data / "model", "--overwrite").exit_code == 0
    assert "stage labels is finished, and since then there is a change in annotations (" in again()


def test_bad_input(data: Path, tiny_model: Path) -> None:
    recipe = write(data, tiny_model)
    shutil.copy(data / "test.jsonl", data / "pool.jsonl")
    overlap = train(recipe, data / "model")
    assert overlap.exit_code == 3
    assert "pool source 'elsewhere' and test source 'ID test' share 6 queries" in overlap.output
    texts(data, "pool", 30, 20)
    lines = [json.loads(line) for line in (data / "train.jsonl").read_text().splitlines()]
    (data / "train.jsonl").write_text("".join(json.dumps({**line, "grade": 2}) + "\n" for line in lines))
    one = train(recipe, data / "model")
    assert one.exit_code == 3
    assert "all training examples have grade 2" in one.output
    assert "Traceback" not in one.output
