"""Training by a recipe that is killed, waits for annotators, or finds other inputs than it began with."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from small_training import texts, train, write, write_pairs

from darl_rerank import Checkpoint, __version__
from darl_rerank.model.head import Head


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_pairs(tmp_path)


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
