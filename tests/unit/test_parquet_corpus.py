"""A corpus in Parquet: every document is found by its id, whatever the order and the size it came in."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from click.testing import CliRunner

from darl_rerank import InputError
from darl_rerank.cli import cli
from darl_rerank.trec import parquet_corpus
from darl_rerank.trec.corpora import Document
from darl_rerank.trec.parquet_corpus import Converted, ParquetDocuments, write_parquet_corpus


def some(count: int) -> list[Document]:
    names = [f"{'é' if i % 7 == 0 else 'd'}{i}" for i in range(count)]
    random.Random(0).shuffle(names)
    return [Document(name, f"title of {name}", f"text of {name}\nsecond line") for name in names]


@pytest.mark.parametrize("count", [1, 4, 5, 12, 13, 100])
def test_every_document_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(parquet_corpus, "_ROW_GROUP", 4)
    monkeypatch.setattr(parquet_corpus, "_FILE", 12)
    monkeypatch.setattr(parquet_corpus, "_SORTED", 3000)
    documents = some(count)
    again = [Document(documents[0].docid, "", "a second one"), *documents[:0]]
    made = write_parquet_corpus([*documents, *again], tmp_path / "corpus", progress=False)
    assert made == Converted(count, 1)
    store = ParquetDocuments(tmp_path / "corpus")
    assert len(store) == count
    assert len(list((tmp_path / "corpus").glob("*.parquet"))) == -(-count // 12)
    assert store.load([d.docid for d in documents]) == {d.docid: d for d in documents}
    assert store.load(["", "a", "d0x", "zzz", documents[-1].docid]) == {documents[-1].docid: documents[-1]}


def test_faults_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no documents"):
        write_parquet_corpus([], tmp_path / "corpus", progress=False)
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match=r"has no corpus\.json"):
        ParquetDocuments(tmp_path)
    write_parquet_corpus(some(3), tmp_path / "corpus", progress=False)
    with pytest.raises(InputError, match="already exists"):
        write_parquet_corpus(some(3), tmp_path / "corpus", progress=False)
    (tmp_path / "corpus" / "part-00000.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"part-00000\.parquet: can't be read as Parquet"):
        ParquetDocuments(tmp_path / "corpus").load(["d1"])
    manifest = tmp_path / "corpus" / "corpus.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 9}))
    with pytest.raises(InputError, match="format 9, expected 1"):
        ParquetDocuments(tmp_path / "corpus")


def test_a_corpus_without_one_document_names_its_first_line(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"query": "q", "document": "d"}\n', "utf-8")
    result = CliRunner().invoke(cli, ["corpus-to-parquet", str(corpus), str(tmp_path / "folder")])
    assert result.exit_code == 3
    assert f"{corpus}:1: expected an id" in result.output
    assert list(tmp_path.iterdir()) == [corpus]
