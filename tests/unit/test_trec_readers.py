from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from darl_rerank.documents import ID_FIELDS, TEXT_FIELDS, read_document
from darl_rerank.errors import InputError
from darl_rerank.trec.corpora import Document, load_documents, read_corpus
from darl_rerank.trec.graded_pairs import read_graded_pairs
from darl_rerank.trec.lines import Faults
from darl_rerank.trec.qrels import read_qrels
from darl_rerank.trec.runs import read_run
from darl_rerank.trec.topics import read_topics


def written(path: Path, text: str | bytes) -> Path:
    data = text.encode() if isinstance(text, str) else text
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["topics", "topics.gz"])
@pytest.mark.parametrize(
    "text",
    [
        "1\tgarden hose\n2\tlap top \n",
        '{"_id": "1", "text": "garden hose"}\n{"_id": 2, "text": "lap top"}\n',
        "<top>\n<num> Number: 1\n<title> garden hose\n\n<desc> x\n</top>\n"
        "<top>\n<num>2</num>\n<title>lap\ntop</title>\n</top>",
    ],
)
def test_topics_in_three_formats(tmp_path: Path, name: str, text: str) -> None:
    assert read_topics(written(tmp_path / name, text)) == {"1": "garden hose", "2": "lap top"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the topics are empty"),
        ("1\ta\n2\n", ":2: expected a query id, a tab and the query"),
        ("1\ta\n2\t  \n", ":2: query 2 is empty"),
        ("1\ta\n1\tb\n", ":2: query 1 is given twice"),
        ('{"_id": "1", "text": "a"}\n{"_id": "2"}\n', ":2: expected _id"),
        ('{"_id": "1", "text": "a"}\n{oops\n', ":2: expected a JSON object"),
        ("<top>\n<num>1\n</top>\n", ":1: expected <num> and <title>"),
    ],
)
def test_faulty_topics(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_topics(written(tmp_path / "topics", text))


@pytest.mark.parametrize("name", ["corpus", "corpus.gz"])
@pytest.mark.parametrize(
    "text",
    [
        '{"id": "a", "title": "T", "text": "x"}\n{"_id": "b", "contents": "y", "other": {"z": 1}}\n',
        "a\tT\tx\nb\t\ty\n",
    ],
)
def test_corpora(tmp_path: Path, name: str, text: str) -> None:
    path = written(tmp_path / name, text)
    assert list(read_corpus(path)) == [Document("a", "T", "x"), Document("b", "", "y")]
    assert load_documents(path, {"b", "elsewhere"}) == {"b": Document("b", "", "y")}


def test_reading_stops_when_all_is_found(tmp_path: Path) -> None:
    path = written(tmp_path / "corpus", '{"id": "a", "text": "x"}\nthis line is never read\n')
    assert list(load_documents(path, {"a"})) == ["a"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the corpus is empty"),
        (b"\x7fELF\x00\x00", ":1: expected text, found binary data"),
        (b'{"id": "a", "text": "\xff"}\n', ":1: expected UTF-8"),
        (b'{"id": "a", "text": "x"}\n{"text": "y"}\n', ":2: expected an id under"),
        (b'{"id": "a", "text": ["x"]}\n', ":1: expected text to be a string, found list"),
        (b'{"id": "a", "text": "x"}\n[1]\n', ":2: expected a JSON object, found list"),
        (b"just words\n", ":1: expected a JSON object, or id<TAB>text"),
        (gzip.compress(json.dumps({"id": "a", "text": "x" * 999}).encode() * 50)[:-20], "cut short or broken"),
    ],
)
def test_faulty_corpora(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "corpus"
    path.write_bytes(data)
    with pytest.raises(InputError, match=message):
        list(read_corpus(path))


def test_faulty_lines_can_be_noted_and_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "corpus"
    path.write_bytes(
        b'?\n{"id": "a", "text": "x"}\n{"id":\n{"id": "b", "text": 3}\n\xff\n{"id": "c", "text": "\\ud83d!"}\n'
    )
    faults = Faults(path)
    assert list(read_corpus(path, faults=faults)) == [Document("a", "", "x"), Document("c", "", "\ufffd!")]
    assert len(faults) == 4
    assert (faults.first or "").startswith(f"{path}:1: expected a JSON object, or id<TAB>text")
    assert Faults(path).first is None


def test_half_of_a_surrogate_pair_is_no_traceback(tmp_path: Path) -> None:
    topics = written(tmp_path / "topics", '{"_id": "1\\ud83d", "text": "a \\ud83d smile"}\n')
    assert read_topics(topics) == {"1\ufffd": "a \ufffd smile"}
    line = (
        '{"qid": "1", "docid": "\\ud83d", "group": "\\udc00", "query": "\\ud83d", "document": "\\ud83d", "grade": 1}\n'
    )
    (pair,) = read_graded_pairs(written(tmp_path / "pairs", line))
    assert (pair.query, pair.document, pair.docid, pair.group) == ("\ufffd",) * 4


def test_qrels(tmp_path: Path) -> None:
    path = written(tmp_path / "qrels", "q1 0 a 3\nq1 0 b 0\nq2 0 a -1\n")
    assert read_qrels(path) == {"q1": {"a": 3, "b": 0}, "q2": {"a": -1}}


def test_of_two_grades_for_a_pair_the_higher_counts(tmp_path: Path) -> None:
    path = written(tmp_path / "qrels", "q1 0 a 1\nq1 0 a 2\nq1 0 a 0\n")
    with pytest.warns(UserWarning, match="2 pairs are judged twice"):
        assert read_qrels(path) == {"q1": {"a": 2}}


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "empty"), ("q1 0 a high\n", ":1: expected an integer grade, found 'high'"), ("q1 0 a 1.5\n", "'1.5'"),
     ("q1 0 a\n", ":1: expected 4 columns")],
)  # fmt: skip
def test_faulty_qrels(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_qrels(written(tmp_path / "qrels", text))


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_qrels(tmp_path / "nowhere")
    with pytest.raises(InputError, match="is a folder"):
        read_qrels(tmp_path)


@pytest.mark.parametrize("docid", ID_FIELDS)
@pytest.mark.parametrize("text", TEXT_FIELDS)
def test_a_corpus_has_the_names_that_rerank_takes(tmp_path: Path, docid: str, text: str) -> None:
    values = {docid: 7, "title": "T", text: "half of an emoji \ud83d"}
    path = tmp_path / "corpus.jsonl"
    path.write_text(json.dumps(values) + "\n", "ascii")
    (document,) = read_corpus(path)
    read = read_document(values)
    assert (document.docid, document.full_text) == (read.docid, read.text) == ("7", "T\nhalf of an emoji \ufffd")


@pytest.mark.parametrize(("value", "why"), [("[" * 100_000, "nested too deeply"), ("9" * 5000, "limit .4300 digits")])
def test_json_that_python_can_not_hold_is_a_fault_of_its_line(tmp_path: Path, value: str, why: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"id": "1", "text": "a"}\n{"id": ' + value, "utf-8")
    readers: tuple[Callable[[Path], object], ...] = (
        read_topics,
        lambda path: list(read_corpus(path)),
        lambda path: list(read_graded_pairs(path)),
    )
    for read in readers:
        with pytest.raises(InputError, match=why):
            read(path)


@pytest.mark.parametrize(
    ("start", "name"), [(b"\x28\xb5\x2f\xfd", "zstd"), (b"BZh9", "bzip2"), (b"\xfd7zXZ\0", "xz"), (b"PK\3\4", "zip")]
)
def test_other_compression_is_named(tmp_path: Path, start: bytes, name: str) -> None:
    path = tmp_path / "run.trec"
    path.write_bytes(start + b"\0\1\2\3")
    with pytest.raises(InputError, match=f"is compressed by {name}; expected a plain or a gzip file"):
        read_run(path)
