"""Arguments that are not what they should be: one clear error each."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest

from darl_rerank import Reranker
from darl_rerank.errors import InputError
from darl_rerank.options import RerankOptions


@pytest.mark.parametrize(
    ("query", "documents", "settings", "message"),
    [
        ("", ["x"], {}, "query is empty"),
        (["q"], ["x"], {}, "query must be a string, got a list"),
        ("q", "abc", {}, "documents must be a list of documents, got a str"),
        ("q", {"text": "abc"}, {}, "documents must be a list of documents, got a dict"),
        ("q", None, {}, "documents must be a list of documents, got None"),
        ("q", ["x", " "], {"strict": True}, r"document 1: is empty"),
        ("q", [{"id": "d7", "title": ""}], {"strict": True}, r"document 0 \(d7\): is empty"),
        ("q", [3], {"strict": True}, "expected a string, a mapping"),
        ("q", [None], {"strict": True}, "got None"),
        ("q", [{"text": 3}], {"strict": True}, "must be strings"),
        ("fox " * 1000, ["x"], {"strict": True}, "the query has .* tokens, at most"),
        ("q", ["x"], {"top_k": 0}, "top_k must be at least 1"),
        ("q", ["x"], {"top_k": "3"}, "top_k must be a whole number, got '3'"),
        ("q", ["x"], {"top_k": 2.5}, "top_k must be a whole number, got 2.5"),
        ("q", ["x"], {"top_k": True}, "top_k must be a whole number, got True"),
    ],
)
def test_bad_arguments(
    tiny_reranker: Reranker, query: str, documents: list[object], settings: dict[str, int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        tiny_reranker.rerank(query, documents, **settings)  # type: ignore[arg-type]


def test_rerank_many_and_score_pairs_name_what_is_wrong(tiny_reranker: Reranker) -> None:
    with pytest.raises(InputError, match="queries must be a list of strings"):
        tiny_reranker.rerank_many("ab", [["x"], ["y"]])
    with pytest.raises(InputError, match="query 1: the query is empty"):
        tiny_reranker.rerank_many(["a", " "], [["x"], ["y"]])
    with pytest.raises(InputError, match=r"pair 0: expected \(query, document\), got 'ab'"):
        tiny_reranker.score_pairs(["ab"])  # type: ignore[list-item]
    with pytest.raises(InputError, match="pair 1: is empty"):
        tiny_reranker.score_pairs([("a", "x"), ("a", "")])
    with pytest.raises(InputError, match="pairs must be a list"):
        tiny_reranker.score_pairs(None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="documents_per_query must be a list, got None"):
        tiny_reranker.rerank_many(["a"], None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="unexpected option 'topk'; known: top_k, strict"):
        tiny_reranker.rerank_many(["a"], [["x"]], topk=3)  # type: ignore[call-arg]


def test_the_options_are_those_of_rerank() -> None:
    parameters = inspect.signature(Reranker.rerank).parameters.values()
    options = {each.name: each.annotation for each in parameters if each.kind is each.KEYWORD_ONLY}
    listed = {name: each.__forward_arg__ for name, each in RerankOptions.__annotations__.items()}
    assert listed == options


def test_numbers_of_numpy_are_numbers(tiny_reranker: Reranker) -> None:
    documents = ["a notebook", "a hose", "a mouse"]
    first, second = tiny_reranker.rerank(
        "laptop",
        documents,
        top_k=np.int64(2),
        depth=np.int64(2),
        budget_ms=np.float32(1e6),  # type: ignore[arg-type]
    )
    assert {first.index, second.index} == {0, 1}
    assert first.judged
    assert second.judged


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": "steam"}, "unknown engine 'steam'"),
        ({"device": "abacus"}, "unknown device 'abacus'"),
        ({"device": "cuda:99"}, "is not there"),
        ({"precision": "int3"}, "no precision 'int3'"),
        ({"batch_tokens": 0}, "batch_tokens must be at least 1"),
        ({"long_documents": "fold"}, "long_documents must be one of"),
    ],
)
def test_bad_set_ups(tiny_model: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Reranker.from_pretrained(tiny_model, **settings)  # type: ignore[arg-type]
