"""`darl-rerank train --pairs` on made-up pairs and a tiny base model: from a JSONL to a checkpoint that reranks."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from darl_rerank import Checkpoint, Reranker
from darl_rerank.cli import cli
from darl_rerank.cli.train import held_out_queries, recipe_values, train
from darl_rerank.model.shipped import DEFAULT, SHIPPED
from darl_rerank.training.data.training_set import load_training_set
from darl_rerank.training.recipe.read import parse_recipe
from darl_rerank.training.recipe.settings import CalibrateStage

WORDS = ["laptop", "notebook", "garden", "hose", "printer", "toner", "battery", "quick", "fox", "house", "rain"]


def call(*words: object) -> Result:
    return CliRunner().invoke(cli, ["train", *map(str, words)])


@pytest.fixture(scope="module")
def base(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint's weights with their tokenizer beside them: a base model like any other."""
    folder = tmp_path_factory.mktemp("base")
    for path in [*(tiny_model / "model").iterdir(), tiny_model / "tokenizer.json"]:
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty queries of two words with six documents each; the grade counts the query's words in the document."""
    generator = random.Random(0)
    lines = []
    for number in range(40):
        query = generator.sample(WORDS, 2)
        for grade in (0, 1, 2, 0, 1, 2):
            others = [word for word in WORDS if word not in query]
            document = query[:grade] + generator.sample(others, 4 - grade)
            generator.shuffle(document)
            lines.append({"query": f"{' '.join(query)} {number}", "document": " ".join(document), "grade": grade})
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n", "utf-8")
    return path


@pytest.fixture(scope="module")
def trained(base: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "model"
    result = call("--pairs", pairs, "--base", base, "--output", folder, "--max-length", 96, "--device", "cpu")
    assert result.exit_code == 0, result.output
    return folder


def test_the_checkpoint_reranks(trained: Path, base: Path) -> None:
    checkpoint = Checkpoint.load(trained)
    assert checkpoint.trained
    assert checkpoint.novelty is not None
    assert checkpoint.calibration.temperature > 0
    assert (trained / "README.md").read_text("utf-8").strip()
    reranker = Reranker.from_pretrained(trained, engine="torch", device="cpu", precision="float32")
    ranking = reranker.rerank("laptop notebook", ["laptop notebook rain", "garden hose fox", "quick house price"])
    assert all(ranked.novelty is not None and 0 < ranked.novelty < 100 for ranked in ranking)


def test_a_finished_training_is_not_overwritten(trained: Path, base: Path, pairs: Path) -> None:
    before = Checkpoint.load(trained).fingerprint
    result = call("--pairs", pairs, "--base", base, "--output", trained, "--max-length", 96)
    assert result.exit_code in (1, 3)
    assert "Traceback" not in result.output
    assert Checkpoint.load(trained).fingerprint == before


def test_a_dry_run_trains_nothing(base: Path, pairs: Path, tmp_path: Path) -> None:
    result = call("--pairs", pairs, "--base", base, "--output", tmp_path / "model", "--max-length", 96, "--dry-run")
    assert result.exit_code == 0, result.output
    assert "240" in result.output or "216" in result.output
    assert "median, and range between the batches measured" in result.output
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"query": "a", "document": "b", "grade": 9}\n', "pairs.jsonl:1"),
        ('{"query": "a", "grade": 1}\n', "pairs.jsonl:1"),
        ("", "pairs.jsonl"),
    ],
)
def test_faulty_pairs_are_named(base: Path, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(text, "utf-8")
    result = call("--pairs", path, "--base", base, "--output", tmp_path / "model")
    assert result.exit_code == 3, result.output
    assert message in result.stderr
    assert not (tmp_path / "model").exists()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("darl_rerank.cli.train.find_spec", lambda name: None if name == "accelerate" else name)
    result = call("--pairs", tmp_path / "pairs.jsonl", "--output", tmp_path / "model")
    assert result.exit_code == 4
    assert "pip install 'darl-rerank[train]'" in result.stderr


def test_all_faults_of_a_file_are_reported(base: Path, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(
        '{"query": "a", "document": "b", "grade": 9}\n{"query": "a", "grade": 1}\n'
        '{"query": "a", "document": "b", "grade": "perfect"}\n{"query": "a", "document": "b", "grade": "good"}\n'
    )
    result = call("--pairs", path, "--base", base, "--output", tmp_path / "model")
    assert result.exit_code == 3
    assert all(f"pairs.jsonl:{line}: " in result.stderr for line in (1, 2, 4))
    assert "pairs.jsonl:3" not in result.stderr


@pytest.mark.parametrize(
    ("sizes", "queries"),
    [([4] * 40, 20), ([10] * 100, 20), ([50] * 100, 20), ([10] * 40, 20), ([2] * 3, 1), ([100] * 2, 1)],
)
def test_enough_is_held_out(sizes: list[int], queries: int) -> None:
    assert held_out_queries(sizes) == queries


def test_the_shipped_checkpoint_is_what_it_begins_with(pairs: Path) -> None:
    flags = {"base": DEFAULT, "scale": None, "loss": "occ", "weights": "lora", "epochs": 1.0, "max_length": None}
    recipe = parse_recipe(recipe_values(pairs, {**flags, "seed": 0}), pairs)
    assert recipe.model.checkpoint == SHIPPED / DEFAULT
    assert recipe.model.keep_if_better
    assert recipe.interpolate is None
    assert recipe.sources[0].dev_queries == 20
    assert recipe.sources[0].max_documents is None, "who hands in graded pairs expects all of them to be used"
    assert recipe.calibrate == CalibrateStage(novelty=True)
    few = pairs.with_name("few.jsonl")
    few.write_text("".join(pairs.read_text("utf-8").splitlines(keepends=True)[:60]), "utf-8")
    assert parse_recipe(recipe_values(few, {**flags, "seed": 0}), few).calibrate == CalibrateStage(novelty=False)
    assert next(p for p in train.params if p.name == "base").default == DEFAULT


def test_a_model_that_has_become_worse_is_not_delivered(tiny_model: Path, tmp_path: Path, pairs: Path) -> None:
    # Grades against what the model thinks, in training only: it gets worse on what is held out.
    reranker = Reranker.from_pretrained(tiny_model, engine="torch", device="cpu", precision="float32")
    recipe = parse_recipe(
        recipe_values(pairs, {"base": str(tiny_model), "scale": None, "loss": "ce", "weights": "all", "epochs": 6.0,
                              "max_length": None, "seed": 0}), pairs)  # fmt: skip
    texts = [json.loads(line) for line in pairs.read_text("utf-8").splitlines()]
    data = load_training_set(recipe)
    held_out = {pair.query for pair in data.dev}
    judged = reranker.score_pairs([(text["query"], text["document"]) for text in texts]).logits
    order = judged.argsort(axis=1)
    lines = [
        {**text, "grade": int(order[i, -1] if text["query"] in held_out else order[i, 0])}
        for i, text in enumerate(texts)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ("--pairs", path, "--base", tiny_model, "--weights", "all", "--epochs", 6, "--device", "cpu")
    result = call(*words, "--output", tmp_path / "model")
    assert result.exit_code == 0, result.output
    assert "the earlier model is kept as it was" in result.stderr
    assert "the earlier model is kept as it was" in (tmp_path / "model" / "README.md").read_text("utf-8")
    assert Checkpoint.load(tmp_path / "model").fingerprint == Checkpoint.load(tiny_model).fingerprint


def test_a_recipes_faults_are_reported_together(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('seed = "one"\n[model]\nscale = "nine"\n[finetune]\nloss = "none"\nepochs = -1\nunknown = 3\n')
    result = call("--config", recipe, "--output", tmp_path / "model")
    assert result.exit_code == 3, result.output
    for word in ("seed", "scale", "loss", "epochs", "unknown"):
        assert word in result.stderr
