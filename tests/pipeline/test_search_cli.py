"""`darl-rerank index`, `search` and `rerank --index` on a few real products."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from darl_rerank import Reranker
from darl_rerank.cli import cli
from darl_rerank.trec.corpora import Document
from darl_rerank.trec.runs import read_run


def call(*words: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words], input=stdin)


def found(result: Result) -> list[dict[str, object]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture(scope="module", params=["lucene", "faiss", "both"])
def indexes(request: pytest.FixtureRequest) -> list[str]:
    kinds = ["lucene", "faiss"] if request.param == "both" else [request.param]
    return [word for kind in kinds for word in ("-i", str(request.getfixturevalue(f"{kind}_index")))]


def test_search_ranks_what_the_index_finds(indexes: list[str], tiny_model: Path, products: list[Document]) -> None:
    (answer,) = found(call("search", *indexes, "toner", "cartridge", "--json", "-k", 5, "--model", tiny_model))
    assert answer["query"] == "toner cartridge"
    results = answer["results"]
    texts = {product.docid: product.full_text for product in products}
    assert [r["rank"] for r in results] == [1, 2, 3, 4, 5]
    assert [r["score"] for r in results] == sorted((r["score"] for r in results), reverse=True)
    for r in results:
        assert r["text"] == texts[r["docid"]]
        assert sum(r["probabilities"]) == pytest.approx(1)
    # Both first stages have toners above the rest, whatever a random model makes of them.
    first = min(results, key=lambda r: r["first_stage_rank"])
    assert "toner" in first["text"].lower()


def test_fusion_finds_what_either_finds(lucene_index: Path, faiss_index: Path, tiny_model: Path) -> None:
    options = ("--json", "-k", 30, "--depth", 30, "--model", tiny_model, "xeon")

    def docids(*indexes: Path) -> set[str]:
        words = [word for index in indexes for word in ("-i", index)]
        return {r["docid"] for r in found(call("search", *words, *options))[0]["results"]}

    lucene, faiss, both = docids(lucene_index), docids(faiss_index), docids(lucene_index, faiss_index)
    assert len(lucene) < len(faiss) == len(both) == 30
    assert lucene < both
    assert both <= lucene | faiss


def test_the_table_says_what_the_json_says(lucene_index: Path, tiny_model: Path) -> None:
    options = ("search", "-i", lucene_index, "cyan toner", "-k", 2, "--model", tiny_model)
    (answer,) = found(call(*options, "--json"))
    lines = call(*options).stdout.splitlines()
    assert lines[0].startswith("cyan toner: the best 2 of ")
    for line, result in zip(lines[3:5], answer["results"], strict=True):
        assert line.split()[:4] == [
            str(result["rank"]), str(result["first_stage_rank"]), f"{result['score']:.3f}", result["grade_name"],
        ]  # fmt: skip


def test_without_a_query_each_line_is_one(lucene_index: Path, tiny_model: Path) -> None:
    lines = "toner\n\n  laptop case \nqqxyzzy\n"
    answers = found(call("search", "-i", lucene_index, "--json", "--model", tiny_model, stdin=lines))
    assert [answer["query"] for answer in answers] == ["toner", "laptop case", "qqxyzzy"]
    assert [bool(answer["results"]) for answer in answers] == [True, True, False]
    assert "qqxyzzy: nothing found" in call("search", "-i", lucene_index, "--model", tiny_model, "qqxyzzy").stdout


@pytest.mark.parametrize("kind", ["lucene", "faiss"])
def test_an_index_made_on_the_command_line_serves_rerank(
    kind: str, corpus: Path, tiny_model: Path, products: list[Document], tmp_path: Path
) -> None:
    assert call("index", kind, corpus, tmp_path / "index").exit_code == 0
    again = call("index", kind, corpus, tmp_path / "index")
    assert again.exit_code == 3
    assert "already exists" in again.stderr
    assert call("index", kind, corpus, tmp_path / "index", "--overwrite").exit_code == 0
    lines = [f"q1 Q0 {product.docid} {i} {100 - i} x\n" for i, product in enumerate(products[:20], 1)]
    (tmp_path / "run").write_text("".join(lines))
    (tmp_path / "topics").write_text("q1\tlaser printer\n")
    for name, source in (("index", tmp_path / "index"), ("corpus", corpus)):
        result = call(
            "rerank", tmp_path / "run", tmp_path / "topics", tmp_path / name / "out.trec", f"--{name}", source,
            "--model", tiny_model, "--precision", "float32",
        )  # fmt: skip
        assert result.exit_code == 0, result.output
    outputs = [(tmp_path / name / "out.trec").read_bytes() for name in ("index", "corpus")]
    assert outputs[0] == outputs[1]
    assert len(read_run(tmp_path / "index" / "out.trec")["q1"]) == 20


@pytest.mark.parametrize("kind", ["lucene", "faiss"])
@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "the corpus is empty"),
        ('{"id": "a", "text": "x"}\n{"id": "a", "text": "y"}\n', "document a: has the id of an earlier one"),
        ('{"id": "a", "text": " "}\n', "document a: has no text"),
        ('{"id": "a", "text": "x"}\nnothing\n', "corpus.jsonl:2: expected a JSON object"),
    ],
)
def test_a_bad_corpus_leaves_nothing_behind(kind: str, lines: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text(lines)
    result = call("index", kind, tmp_path / "corpus.jsonl", tmp_path / "index", "--missing", "error")
    assert result.exit_code == 3
    assert message in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.jsonl"]


@pytest.mark.parametrize("kind", ["lucene", "faiss"])
def test_a_bad_document_costs_only_itself(kind: str, products: list[Document], tmp_path: Path) -> None:
    good = [json.dumps({"id": p.docid, "title": p.title, "text": p.text}) for p in products[:20]]
    bad = ['{"id": "471", "text": " "}', '{"id": "half', '{"id": "one", "text": "a smile cut in two \\ud83d"}', good[0]]
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_bytes("\n".join([*good[:5], *bad, *good[5:]]).encode() + b'\n{"id": "2", "text": "\xff"}\n')
    result = call("index", kind, corpus, tmp_path / "index", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["documents"], found["left_out"], found["faulty_lines"]) == (21, 2, 2)
    assert "Warning: 2 of 23 documents were left out; the first: document 471: has no text" in result.stderr
    assert f"Warning: 2 lines are no documents and were left out; the first: {corpus}:7: expected" in result.stderr
    strict = call("index", kind, corpus, tmp_path / "strict", "--missing", "error")
    assert strict.exit_code == 3
    assert "document 471: has no text" in strict.stderr
    assert not (tmp_path / "strict").exists()


def test_a_folder_that_is_no_index_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    for words in (["search", "-i", tmp_path, "x"], ["search", "-i", tmp_path / "nothing", "x"]):
        result = call(*words, "--model", tiny_model)
        assert result.exit_code == 3
        assert f"{words[2]}: expected a Lucene index" in result.stderr
    (tmp_path / "documents.sqlite").write_bytes(b"")
    result = call("search", "-i", tmp_path, "x", "--model", tiny_model)
    assert result.exit_code == 3
    assert "expected an index folder of `darl-rerank index faiss`" in result.stderr


def test_a_wrong_model_is_said_before_the_catalogue_is_indexed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("darl_rerank.cli.search._catalogue", lambda: pytest.fail("the catalogue was indexed"))
    result = call("search", "--model", tmp_path / "nothing", "laptop")
    assert result.exit_code == 3
    assert "expected a checkpoint folder" in result.stderr


def test_a_budget_and_a_window_are_shown(lucene_index: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from darl_rerank import effort

    def spent(*arguments: object, **options: object) -> None:
        return None

    monkeypatch.setattr(effort._Waiting, "next", spent)
    monkeypatch.setattr(effort, "_check_budget", spent)
    options = ("search", "-i", lucene_index, "cyan toner", "-k", 3, "--model", tiny_model, "--budget-ms", 100)
    (answer,) = found(call(*options, "--json"))
    assert answer["judged"] == 0
    assert [r["first_stage_rank"] for r in answer["results"]] == [1, 2, 3]
    assert all(r["reason"] == "the budget of 100 ms was spent" for r in answer["results"])
    lines = call(*options).stdout.splitlines()
    assert lines[0].startswith("cyan toner: the best 3 of 0 judged")
    assert "not judged" in lines[3]
    assert call(*options[:-1], 0).exit_code == 2


def test_the_table_shows_the_best_window(tiny_reranker: Reranker) -> None:
    from darl_rerank.cli.search import _shown

    windowed = Reranker(tiny_reranker.checkpoint, tiny_reranker.engine, long_documents="window")
    text = "A title\n" + " ".join(f"word{i}" for i in range(900))
    long, short = sorted(windowed.rerank("laptop", [text, "Short\none"]), key=lambda ranked: ranked.index)
    assert long.span is not None
    start, end = long.span
    assert _shown(long) == f"[{start}:{end}] {text[start:end]}"
    assert _shown(short) == "Short"


def test_auto_needs_statistics(lucene_index: Path, tiny_model: Path) -> None:
    result = call("search", "-i", lucene_index, "toner", "--depth", "auto", "--model", tiny_model)
    assert result.exit_code == 3
    assert "needs statistics that this checkpoint lacks" in result.output
    assert call("search", "-i", lucene_index, "toner", "--depth", "deep").exit_code == 2
