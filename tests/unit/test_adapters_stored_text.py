"""The text of a document, as search stacks store it."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from darl_rerank.adapters.stored_text import stored_text

from darl_rerank.errors import InputError


@pytest.mark.parametrize(
    ("stored", "text"),
    [
        (" plain ", "plain"),
        ({"title": "T", "text": "body"}, "T\nbody"),
        ({"title": "T", "contents": "T\nbody", "text": "body"}, "T\nbody"),
        ({"contents": "T\nbody", "title": "T"}, "T\nbody"),
        ({"title": "T", "contents": "T"}, "T"),
        ({"title": "", "contents": "body"}, "body"),
        ({"raw": json.dumps({"id": "1", "contents": "from raw"})}, "from raw"),
        ({"raw": json.dumps({"id": "1", "contents": "from raw"}), "title": "stored"}, "stored\nfrom raw"),
        ({"raw": "not JSON"}, "not JSON"),
        ({"raw": "{broken"}, "{broken"),
        ({"raw": "[1, 2]"}, "[1, 2]"),
        (SimpleNamespace(title="T", text="body"), "T\nbody"),
        (SimpleNamespace(contents="body"), "body"),
    ],
)
def test_text_is_found_wherever_it_is(stored: Any, text: str) -> None:
    assert stored_text("d", stored) == text


def test_fields_can_be_chosen() -> None:
    stored = {"title": "T", "abstract": "A", "raw": json.dumps({"body": "B"})}
    assert stored_text("d", stored, ["abstract", "body"]) == "A\nB"


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (None, "document d7: its text was not found"),
        ("  ", "document d7: no text under title, contents, text, .* or raw"),
        ({"id": "d7"}, "no text under"),
        ({"title": "", "raw": ""}, "-storeRaw"),
        ({"raw": json.dumps({"contents": ["a"]})}, "expected field contents to be a string, got list"),
    ],
)
def test_a_document_without_text_is_an_error(stored: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        stored_text("d7", stored)
