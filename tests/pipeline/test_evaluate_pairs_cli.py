"""`darl-rerank evaluate --pairs` with the tiny model: table, JSON and the report."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from darl_rerank import Reranker
from darl_rerank.cli import cli
from darl_rerank.trec.corpora import Document


@pytest.fixture
def pairs(products: list[Document], tmp_path: Path, tiny_reranker: Reranker) -> Path:
    path = tmp_path / "pairs.jsonl"
    rows = [
        {"query": f"{products[q].title.split()[0]} {q}", "document": products[(q + 5 * d) % 150].full_text,
         "grade": (q + d) % len(tiny_reranker.scale), "group": "ID" if q < 10 else "far & <OOD>"}
        for q in range(20)
        for d in range(4)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def run(model: Path, *options: str | Path) -> Result:
    command = ["evaluate", *map(str, options), "--model", str(model), "--precision", "float32"]
    return CliRunner().invoke(cli, command)


def test_json_and_report(pairs: Path, tiny_model: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    result = run(tiny_model, "--pairs", pairs, "--format", "json", "--report", page)
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    assert {name: group["pairs"] for name, group in values["groups"].items()} == {"ID": 40, "far & <OOD>": 40}
    assert set(values["gaps"]) == {"far & <OOD>"}
    text = page.read_text("utf-8")
    assert text.count("<svg") == text.count("</svg>") >= 4
    assert "far &amp; &lt;OOD&gt;" in text
    assert "far & <OOD>" not in text
    assert not re.search(r"<script|<link|src=|@import|url\(http", text), "the page must stand alone"


def test_the_table_has_intervals_and_gaps(pairs: Path, tiny_model: Path) -> None:
    result = run(tiny_model, "--pairs", pairs, "--reference", "ID")
    assert result.exit_code == 0, result.output
    header = next(line for line in result.stdout.splitlines() if line.startswith("measure"))
    assert "far & <OOD> - ID" in header
    assert re.search(r"^qwk +-?0\.\d{4} \[", result.stdout, re.MULTILINE)


def test_bad_use_and_bad_input(pairs: Path, tiny_model: Path) -> None:
    assert run(tiny_model).exit_code == 2
    assert run(tiny_model, "--pairs", pairs, "-m", "AP").exit_code == 2
    assert run(tiny_model, "qrels", "--report", "x.html").exit_code == 2
    result = run(tiny_model, "--pairs", pairs, "--reference", "near")
    assert result.exit_code == 3
    assert "there is no group 'near' to compare with; groups: ID, far & <OOD>" in result.output
    pairs.write_text('{"query": "q", "document": "d", "grade": 9}\n', "utf-8")
    result = run(tiny_model, "--pairs", pairs)
    assert result.exit_code == 3
    assert "pairs.jsonl:1: grade 9 is outside of the scale" in result.output
