"""`darl-rerank drift` on the tiny model with novelty made of a few pairs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from darl_rerank import Reranker
from darl_rerank.cli import cli
from darl_rerank.model.novelty import fit_novelty
from darl_rerank.trec.corpora import Document
from darl_rerank.trec.graded_pairs import read_graded_pairs
from darl_rerank.trec.runs import write_run

QUERIES = {f"q{i}": text for i, text in enumerate(["toner", "power supply", "paper", "battery", "laptop bag", "mouse"])}


@pytest.fixture(scope="module")
def files(tiny_reranker: Reranker, products: list[Document], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that knows pairs of other queries, a run with topics and corpus, and the run's details."""
    folder = tmp_path_factory.mktemp("drift")
    pairs = [(f"known {i % 7}", product.full_text) for i, product in enumerate(products[:120])]
    features = tiny_reranker.score_pairs(pairs, features=True).features
    assert features is not None
    novelty = fit_novelty(features[:80], features[80:], k=3)
    tiny_reranker.checkpoint.replace(novelty=novelty).save(folder / "model")
    rows = {qid: products[20 * i : 20 * i + 12] for i, qid in enumerate(QUERIES)}
    write_run(folder / "run.trec", {q: [(d.docid, 20.0 - i) for i, d in enumerate(ds)] for q, ds in rows.items()}, "x")
    (folder / "topics.tsv").write_text("".join(f"{qid}\t{text}\n" for qid, text in QUERIES.items()), "utf-8")
    lines = [json.dumps({"id": p.docid, "title": p.title, "text": p.text}) for p in products]
    (folder / "corpus.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    return folder


def call(files: Path, *more: object) -> Result:
    return CliRunner().invoke(cli, ["drift", str(files / "model"), *map(str, more)])


def test_a_run_is_judged_and_pairs_are_written_to_be_graded(files: Path, tmp_path: Path) -> None:
    texts = ["--topics", files / "topics.tsv", "--corpus", files / "corpus.jsonl"]
    output = tmp_path / "grade-me.jsonl"
    result = call(
        files, files / "run.trec", *texts, "--depth", 8, "--output", output, "--budget", 7, "--per-query", 3, "--json"
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["pairs"], found["queries"]) == (48, 6)
    strangest = [row["qid"] for row in found["strangest"]]
    pairs = read_graded_pairs(output, labels="optional")
    assert [pair.qid for pair in pairs] == [*strangest[:1] * 3, *strangest[1:2] * 3, *strangest[2:3]]
    assert all(pair.grade is None and pair.query == QUERIES[pair.qid] for pair in pairs)


def test_details_are_read_without_judging_again(files: Path, tmp_path: Path) -> None:
    details = tmp_path / "details.jsonl"
    novelty = np.linspace(2, 98, 60)
    lines = [
        {"qid": f"q{i}", "docid": f"d{i}", "rank": 1, "novelty": value, "probabilities": [1, 0, 0, 0], "judged": True}
        for i, value in enumerate(novelty.tolist())
    ]
    details.write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = call(files, details)
    assert result.exit_code == 0, result.output
    assert "No sign of drift." in result.output
    for line in lines:
        line["novelty"] = 90 + line["novelty"] / 20  # type: ignore[operator]
    details.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "not what the model was calibrated on" in call(files, details).output


def test_what_can_not_be_compared_says_why(files: Path, tiny_model: Path, tmp_path: Path) -> None:
    assert call(files, files / "run.trec").exit_code == 2
    assert call(files, files / "run.trec", "--output", tmp_path / "out.jsonl").exit_code == 2
    broken = tmp_path / "details.jsonl"
    broken.write_text('{"qid": "q1", "rank": 1, "docid": "d1", "novelty": null, "probabilities": []}\n')
    result = call(files, broken)
    assert result.exit_code == 3
    assert "details.jsonl:1: expected a line of" in result.output
    result = CliRunner().invoke(cli, ["drift", str(tiny_model), str(broken)])
    assert result.exit_code == 3
    assert "no novelty statistics" in result.output
