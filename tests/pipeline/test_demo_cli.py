"""`darl-rerank demo` with the tiny model: the catalogue is indexed once, and a second call has nothing left to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from darl_rerank import icecat
from darl_rerank.cli import cli
from darl_rerank.trec.runs import read_run


def call(*words: object) -> Result:
    return CliRunner().invoke(cli, ["demo", *map(str, words)])


@pytest.fixture(scope="module")
def demo(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DARL_RERANK_CACHE", str(folder / "cache"))
        words = ["--model", tiny_model, "--depth", 10, "--output", folder / "out", "--query", "laptop"]
        result = call(*words)
        assert result.exit_code == 0, result.output
        again = call(*words)
        assert again.exit_code == 0, again.output
        assert "Indexing" not in again.output
        assert again.stdout == result.stdout
    return folder / "out", result.stdout


def test_both_runs_are_written_and_compared(demo: tuple[Path, str]) -> None:
    folder, shown = demo
    before, after = read_run(folder / "bm25.trec"), read_run(folder / "darl-rerank.depth10.trec")
    assert list(before) == list(after)
    assert before.keys() <= icecat.queries().keys()
    for qid, entries in after.items():
        assert {entry.docid for entry in entries} == {entry.docid for entry in before[qid][:10]}
    assert f"nDCG@10 over {len(icecat.judgements())} queries: BM25 0." in shown
    assert "both orders fused, as `darl-rerank rerank --fuse` does it, 0." in shown


def test_lists_are_shown_before_and_after(demo: tuple[Path, str]) -> None:
    folder, shown = demo
    titles = {product.docid: " ".join(product.title.split()) for product in icecat.read_products()}
    (laptop,) = (qid for qid, text in icecat.queries().items() if text == "laptop")
    first = read_run(folder / "bm25.trec")[laptop][0].docid
    assert "Query: laptop" in shown
    assert titles[first][:40] in shown
    assert "grade" in shown


def test_bad_options(tiny_model: Path, tmp_path: Path) -> None:
    unknown = call("--model", tiny_model, "--output", tmp_path / "x", "--query", "no such query")
    assert unknown.exit_code == 3
    assert "is not one of the demo's queries" in unknown.output
    assert call("--depth", 3).exit_code == 2


def test_a_query_that_lucene_finds_nothing_for(
    demo: tuple[Path, str], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DARL_RERANK_CACHE", str(demo[0].parent / "cache"))
    result = call("--model", tiny_model, "--output", demo[0].parent / "other", "--query", "netflix")
    assert result.exit_code == 3, result.output
    assert "--query 'netflix': Lucene finds nothing in the catalogue" in result.output
    assert not (demo[0].parent / "other").exists()
