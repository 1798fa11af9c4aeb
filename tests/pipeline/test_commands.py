"""`init`, `evaluate` and `doctor`, and what the package loads when it is only imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from darl_rerank import Checkpoint, __version__, icecat
from darl_rerank.cli import cli
from darl_rerank.trec.runs import write_run


def call(*words: object) -> Result:
    return CliRunner().invoke(cli, list(map(str, words)))


def test_importing_loads_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "numpy", "tokenizers")
    script = f"import sys, darl_rerank; print([name for name in {heavy} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == "[]"


def test_help_and_version() -> None:
    listed = call("--help").output
    for command in ("init", "rerank", "evaluate", "train", "select", "export", "index", "search", "demo", "doctor"):
        assert f"  {command} " in listed
    assert __version__ in call("--version").output
    assert call("no-such-command").exit_code == 2


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """A perfect run and its reverse, on the catalogue's judgements."""
    judged = icecat.judgements()
    paths = tmp_path / "best.trec", tmp_path / "worst.trec"
    for path, best_first in zip(paths, (True, False), strict=True):
        rankings = {}
        for qid, grades in judged.items():
            order = sorted(grades, key=lambda docid: (grades[docid], docid), reverse=best_first)
            rankings[qid] = [(docid, float(len(order) - i)) for i, docid in enumerate(order)]
        write_run(path, rankings, "made")
    return paths


def test_evaluate_compares_runs(runs: tuple[Path, Path]) -> None:
    result = call("evaluate", icecat.FOLDER / "qrels.txt", *runs, "-m", "nDCG@10", "--format", "json", "--per-query")
    assert result.exit_code == 0, result.output
    best, worst = json.loads(result.stdout)
    assert best["mean"]["nDCG@10"] == pytest.approx(
        sum(any(grades.values()) for grades in icecat.judgements().values()) / len(icecat.judgements())
    )
    against = worst["against_first"]["nDCG@10"]
    assert against["difference"] == pytest.approx(worst["mean"]["nDCG@10"] - best["mean"]["nDCG@10"])
    assert against["low"] < against["difference"] < against["high"] < 0
    assert against["p"] < 0.001
    assert len(worst["per_query"]) == len(icecat.judgements())
    table = call("evaluate", icecat.FOLDER / "qrels.txt", *runs, "-m", "nDCG@10").output
    assert f"{worst['mean']['nDCG@10']:.4f}" in table


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q001 0 d1 two\n", "qrels.txt:1: expected an integer grade, found 'two'"),
        ("q001 0 d1\n", "qrels.txt:1: expected 4 columns"),
        ("other 0 d1 1\n", "no query of the run is in the qrels"),
    ],
)
def test_faulty_qrels(runs: tuple[Path, Path], tmp_path: Path, text: str, message: str) -> None:
    qrels = tmp_path / "qrels.txt"
    qrels.write_text(text, "utf-8")
    result = call("evaluate", qrels, runs[0])
    assert result.exit_code == 3
    assert message in result.stderr


def test_an_unknown_measure(runs: tuple[Path, Path]) -> None:
    result = call("evaluate", icecat.FOLDER / "qrels.txt", runs[0], "-m", "no such")
    assert result.exit_code == 3
    assert "unknown measure 'no such'" in result.stderr


def test_init_makes_a_checkpoint(tiny_model: Path, tmp_path: Path) -> None:
    # The tiny checkpoint's own weights, with their tokenizer beside them, are a base model like any other.
    base = tmp_path / "base"
    base.mkdir()
    for path in (tiny_model / "model").iterdir():
        (base / path.name).write_bytes(path.read_bytes())
    (base / "tokenizer.json").write_bytes((tiny_model / "tokenizer.json").read_bytes())
    result = call("init", tmp_path / "made", "--base", base, "--max-length", 64)
    assert result.exit_code == 0, result.output
    made = Checkpoint.load(tmp_path / "made")
    assert (len(made.scale), made.prompt.max_length, made.trained) == (4, 64, False)
    assert made.prefill_layers is None
    result = call("init", tmp_path / "shallow", "--base", base, "--prefill-layers", 1)
    assert result.exit_code == 0, result.output
    assert Checkpoint.load(tmp_path / "shallow").prefill_layers == 1
    result = call("init", tmp_path / "none", "--base", base, "--prefill-layers", 2)
    assert result.exit_code == 3
    assert "prefill_layers must lie between 1 and 1" in result.stderr
    again = call("init", tmp_path / "made", "--base", base)
    assert again.exit_code == 3
    assert "already exists" in again.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--scale", "grades7"], "unknown relevance scale 'grades7'; known: binary"),
        (["--base", "./nowhere"], "nowhere: expected a folder with a transformers model"),
    ],
)
def test_init_refuses(tmp_path: Path, words: list[str], message: str) -> None:
    result = call("init", tmp_path / "made", *words)
    assert result.exit_code == 3, result.output
    assert message in result.stderr
    assert not (tmp_path / "made").exists()


def test_doctor_finds_what_is_installed() -> None:
    result = call("doctor", "--json")
    assert result.exit_code == 0, result.output
    findings = {finding["name"]: finding for finding in json.loads(result.stdout)}
    assert findings["torch"]["state"] == "ok"
    assert findings["Java"]["state"] == "ok"
    assert "live:" in findings["onnxruntime"]["found"]
    assert "torch" in call("doctor").stdout
