"""`darl-rerank select` from files to an annotation file, with the tiny model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from darl_rerank.cli import cli
from darl_rerank.model.scale import RelevanceScale
from darl_rerank.training.selection.annotation import read_annotations
from darl_rerank.trec.corpora import Document


@pytest.fixture
def files(products: list[Document], tmp_path: Path) -> Path:
    def write(name: str, rows: list[dict[str, Any]]) -> None:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")

    pairs = [
        {"query": f"{products[q].title.split()[0]} {q}", "document": products[(q + 7 * d) % 150].full_text}
        for q in range(40)
        for d in range(4)
    ]
    write("labelled.jsonl", [{**pair, "grade": i % 3} for i, pair in enumerate(pairs[:80])])
    write("pool.jsonl", [*pairs[76:], *pairs[100:104]])
    write("test.jsonl", pairs[156:])
    return tmp_path


def run(files: Path, model: Path, *options: str) -> Result:
    return CliRunner().invoke(
        cli,
        ["select", str(files / "out.jsonl"), "--labelled", str(files / "labelled.jsonl"), "--model", str(model),
         "--pool", str(files / "pool.jsonl"), "--budget", "10", "--precision", "float32", "--features", "model",
         *options],
    )  # fmt: skip


def test_pool_to_annotation_file(files: Path, tiny_model: Path) -> None:
    result = run(files, tiny_model, "--band", "0", "100", "--per-query", "2", "--exclude", str(files / "test.jsonl"),
                 "--overlap", "skip")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "strategy random: no other is shown to train a better model" in result.stderr
    rows = [json.loads(line) for line in (files / "out.jsonl").read_text("utf-8").splitlines()]
    assert len(rows) == len({(row["query"], row["document"]) for row in rows}) == 10
    assert all(row["grade"] is None and 0 < row["novelty"] < 100 for row in rows)
    summary = json.loads((files / "out.jsonl.summary.json").read_text("utf-8"))
    pool = summary["pool"]
    assert (pool["read"], pool["pairs"]) == (88, 76)
    assert (pool["already_labelled"], pool["duplicates"], pool["in_test_set"]) == (4, 4, 4)

    filled = "".join(json.dumps({**row, "grade": 1}) + "\n" for row in rows)
    (files / "filled.jsonl").write_text(filled, "utf-8")
    assert len(read_annotations(files / "filled.jsonl", RelevanceScale.named("ternary"))) == 10


def test_an_overlap_with_the_test_set_is_refused(files: Path, tiny_model: Path) -> None:
    result = run(files, tiny_model, "--exclude", str(files / "test.jsonl"))
    assert result.exit_code == 3
    assert "the pool overlaps the test set: 4 pairs of 1 of its queries" in result.output
    assert not (files / "out.jsonl").exists()


def test_a_missing_package_is_said_before_features_are_computed(
    files: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.covariance", None)
    result = run(files, tiny_model)
    assert result.exit_code == 4
    assert "scikit-learn is needed (to fit novelty)" in result.output
    assert not list(files.rglob("pool/*"))


def test_bad_arguments(files: Path, tiny_model: Path) -> None:
    assert run(files, tiny_model, "--run", "x").exit_code == 2
    result = run(files, tiny_model, "--strategy", "best")
    assert result.exit_code == 3
    assert "known: dasa" in result.output


def test_a_second_round_reads_the_pools_features_of_the_first(files: Path, tiny_model: Path) -> None:
    """More pairs are labelled by then, so the pool that may be chosen from is smaller; the features are the same."""
    wide = ("--band", "0", "100", "--strategy", "random")
    assert run(files, tiny_model, *wide).exit_code == 0
    first = json.loads((files / "out.jsonl.summary.json").read_text("utf-8"))
    chosen = [json.loads(line) for line in (files / "out.jsonl").read_text("utf-8").splitlines()]
    with (files / "labelled.jsonl").open("a", encoding="utf-8") as stream:
        stream.writelines(json.dumps({**row, "grade": 1}) + "\n" for row in chosen)
    features = files / "out.jsonl.work" / "pool"
    again = (*wide, "--workspace", str(files / "second"), "--pool-features", str(features))
    result = run(files, tiny_model, *again)
    assert result.exit_code == 0, result.output
    assert not (files / "second" / "pool").exists()
    summary = json.loads((files / "out.jsonl.summary.json").read_text("utf-8"))
    assert summary["pool"]["pairs"] == first["pool"]["pairs"] - 10
    rows = [json.loads(line) for line in (files / "out.jsonl").read_text("utf-8").splitlines()]
    assert not {(row["query"], row["document"]) for row in rows} & {(row["query"], row["document"]) for row in chosen}


def test_features_that_are_not_the_pools_are_refused(files: Path, tiny_model: Path) -> None:
    wide = ("--band", "0", "100")
    assert run(files, tiny_model, *wide).exit_code == 0
    work = files / "out.jsonl.work"
    result = run(files, tiny_model, *wide, "--pool-features", str(work / "training"))
    assert result.exit_code == 3
    assert "training: holds the features of other pairs" in result.output
    result = run(files, tiny_model, *wide, "--pool-features", str(files / "nowhere"))
    assert result.exit_code == 3
    assert "nowhere: expected finished features, found none" in result.output
    result = run(files, tiny_model, *wide, "--pool-features", str(work / "pool"), "--long-documents", "window")
    assert result.exit_code == 3
    assert "holds the features of another model" in result.output
