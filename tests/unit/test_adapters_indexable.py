"""What goes into an index, and what is left out of it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import pytest
from darl_rerank.adapters.indexable import Indexable, Indexed

from darl_rerank.errors import InputError
from darl_rerank.trec.corpora import Document


@dataclass
class Page:
    page_content: str
    metadata: dict[str, Any]


def test_it_takes_what_rerank_takes() -> None:
    wanted = Indexable(
        [
            "a string",
            {"_id": 7, "title": "T", "body": "x"},
            Page("from LangChain", {"id": "p"}),
            Document("d", "", "y"),
        ],
        "error",
    )
    assert list(wanted) == [
        Document("0", "", "a string"),
        Document("7", "T", "x"),
        Document("p", "", "from LangChain"),
        Document("d", "", "y"),
    ]
    assert wanted.indexed() == Indexed(4)


BAD: list[tuple[Any, str]] = [
    (Document("471", " ", ""), "document 471: has no text"),
    ({"id": "e", "text": ""}, "document e: is empty"),
    (None, "document 2: expected a string, a mapping"),
    ({"id": "a", "text": "again"}, "document a: has the id of an earlier one"),
]


@pytest.mark.parametrize(("bad", "message"), BAD)
def test_the_strict_are_told_of_the_first_bad_document(bad: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        list(Indexable([{"id": "a", "text": "x"}, {"id": "b", "text": "y"}, bad], "error"))


def test_bad_documents_are_left_out_counted_and_the_first_is_named(caplog: pytest.LogCaptureFixture) -> None:
    wanted = Indexable([{"id": "a", "text": "x"}, *(bad for bad, _ in BAD), {"id": "z", "text": "y"}], "skip")
    assert [document.docid for document in wanted] == ["a", "z"]
    with caplog.at_level(logging.WARNING):
        assert wanted.indexed() == Indexed(2, 4, "document 471: has no text")
    assert caplog.messages == ["4 of 6 documents were left out; the first: document 471: has no text"]


def test_an_index_of_nothing_is_refused() -> None:
    for documents, message in ((), "no documents that can be indexed$"), ([""], "indexed: document 0: is empty"):
        wanted = Indexable(documents, "skip")
        assert list(wanted) == []
        with pytest.raises(InputError, match=message):
            wanted.indexed()
