"""A reranker of another family through the commands: init --from, calibrate, rerank, export, train to more grades."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from yes_no_models import save_model

from darl_rerank import Checkpoint, Reranker
from darl_rerank.cli import cli

WORDS = ["laptop", "notebook", "garden", "hose", "printer", "toner", "battery", "cable", "computer", "cartridge"]


def call(*words: object) -> Result:
    return CliRunner().invoke(cli, [*map(str, words)])


@pytest.fixture(scope="module")
def reranker_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("qwen3-reranker", tmp_path_factory.mktemp("models") / "Qwen3-Reranker-tiny")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Graded pairs of 12 queries: a document is as good as it has words of the query."""
    rng = random.Random(2)
    lines = []
    for i in range(96):
        query = WORDS[i % 12 % 10 : i % 12 % 10 + 2] or WORDS[:2]
        text = rng.sample(WORDS, 4)
        grade = len(set(query) & set(text))
        lines.append(
            {"qid": str(i % 12), "query": f"{' '.join(query)} {i % 12}", "document": " ".join(text), "grade": grade}
        )
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return path


@pytest.fixture(scope="module")
def calibrated(reranker_folder: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    made = call("init", root / "made", "--from", reranker_folder, "--scale", "ternary", "--max-length", "256")
    assert made.exit_code == 0, made.output
    assert "reranker (qwen3-reranker)" in made.output
    fitted = call("calibrate", root / "made", pairs, "--output", root / "calibrated", "--novelty", "--device", "cpu")
    assert fitted.exit_code == 0, fitted.output
    return root / "calibrated"


def test_a_calibrated_reranker_says_how_strange_a_pair_is(calibrated: Path) -> None:
    reranker = Reranker.from_pretrained(calibrated, engine="torch", device="cpu", precision="float32")
    ranking = reranker.rerank("garden hose", ["garden hose cable", "a printer", "日本 …"])
    assert all(document.novelty is not None for document in ranking)
    assert [document.score for document in ranking] == sorted((d.score for d in ranking), reverse=True)


def test_an_export_grades_alike(calibrated: Path, tmp_path: Path) -> None:
    """Other precisions are compared by benchmarks/reranker_families.py."""
    result = call("export", calibrated, tmp_path / "out", "--precision", "fp32")
    assert result.exit_code == 0, result.output
    exported = Reranker.from_pretrained(tmp_path / "out", engine="onnx", device="cpu")
    original = Reranker.from_pretrained(calibrated, engine="torch", device="cpu", precision="float32")
    pairs = [("garden hose", " ".join(WORDS[: i + 1])) for i in range(8)]
    found, expected = (r.score_pairs(pairs) for r in (exported, original))
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-4)
    assert found.novelty is not None


def test_it_is_fine_tuned_to_more_grades(calibrated: Path, pairs: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f"""
        [model]
        checkpoint = "{calibrated}"
        [[source]]
        name = "words"
        pairs = "{pairs}"
        max_documents = 8
        dev_queries = 4
        [finetune]
        weights = "lora"
        rank = 4
        epochs = 4
        [calibrate]
        enabled = false
        """,
        "utf-8",
    )
    result = call("train", "--config", recipe, "--output", tmp_path / "trained", "--device", "cpu")
    assert result.exit_code == 0, result.output
    trained, before = Checkpoint.load(tmp_path / "trained"), Checkpoint.load(calibrated)
    assert trained.adapter_folder is not None
    assert trained.prompt == before.prompt
    assert len(trained.scale) == 3
    read = [json.loads(line) for line in pairs.read_text("utf-8").splitlines()]
    texts, grades = [(v["query"], v["document"]) for v in read], [v["grade"] for v in read]
    likelihood = [
        np.log(
            Reranker.from_pretrained(folder, engine="torch", device="cpu", precision="float32")
            .score_pairs(texts)
            .probabilities[range(len(read)), grades]
        ).mean()
        for folder in (calibrated, tmp_path / "trained")
    ]
    assert likelihood[1] > likelihood[0]


def test_bad_usage(reranker_folder: Path, tmp_path: Path) -> None:
    both = call("init", tmp_path / "x", "--from", reranker_folder, "--base", "smollm2")
    assert both.exit_code == 2
    assert "--from can't be given with --base" in both.output
    alone = call("init", tmp_path / "x", "--family", "qwen3-reranker")
    assert alone.exit_code == 2
    assert "--family and --task go with --from" in alone.output
    unknown = call("init", tmp_path / "x", "--from", reranker_folder, "--family", "monot5")
    assert unknown.exit_code == 3
    assert "known: qwen3-reranker" in unknown.output
