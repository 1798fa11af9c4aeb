"""What clients send, what they read, and what they are told when it is wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest

from darl_rerank import RelevanceScale
from darl_rerank.model.scale import Grade
from darl_rerank.results import RankedDocument, Ranking
from darl_rerank.serving.errors import ApiError, error_body
from darl_rerank.serving.json_body import read_object
from darl_rerank.serving.shapes import RerankRequest, answer_body, read_request, shape_of

SCALE = RelevanceScale.named("trec4")
JUDGED = RankedDocument(1, 1, None, "b", 1.5, 2, "relevant", (0.1, 0.4, 0.4, 0.1), 12.0, True, text="b")
UNJUDGED = RankedDocument(2, 0, None, "", None, None, None, (), judged=False, reason="is empty")


def read(body: dict[str, Any], path: str = "/v2/rerank") -> RerankRequest:
    return read_request(shape_of(path, body), body, max_documents=10)


def answered(body: dict[str, Any], path: str = "/v2/rerank") -> Any:
    asked = read(body, path)
    ranking = Ranking([JUDGED, UNJUDGED], warnings=["novel"])
    return answer_body(asked, [ranking], scale=SCALE, model="m", request_id="r", created=1, tokens=7)


@pytest.mark.parametrize("top", [{"top_n": 1}, {"top_k": 1}])
def test_one_body_for_cohere_jina_voyage_infinity_and_vllm(top: dict[str, int]) -> None:
    values = answered({"query": "q", "documents": ["a", {"text": "b"}], **top, "return_documents": True})
    (result,) = values["results"]
    assert result == {
        "index": 1, "relevance_score": 0.5, "document": {"text": "b"}, "docid": None, "grade": 2,
        "grade_name": "relevant", "probabilities": [0.1, 0.4, 0.4, 0.1], "novelty": 12.0, "truncated": True,
        "query_truncated": False, "judged": True, "reason": None, "span": None, "expected_gain": 1.5,
    }  # fmt: skip
    assert values["data"] == values["results"]
    assert values["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    assert values["meta"]["tokens"] == {"input_tokens": 7}
    assert values["meta"]["warnings"] == ["novel"]
    assert (values["id"], values["object"], values["model"], values["created"]) == ("r", "rerank", "m", 1)


def test_what_is_not_judged_comes_with_a_score_of_zero_and_a_reason() -> None:
    last = answered({"query": "q", "documents": ["", "b"]})["results"][1]
    assert (last["index"], last["relevance_score"], last["judged"], last["reason"]) == (0, 0.0, False, "is empty")
    assert "document" not in last


def test_tei_gets_a_bare_list_of_all_documents() -> None:
    values = answered({"query": "q", "texts": ["", "b"], "return_text": True, "truncate": True}, "/rerank")
    assert [(v["index"], v["score"], v["text"]) for v in values] == [(1, 0.5, "b"), (0, 0.0, "")]


def test_raw_scores_are_the_expected_gain() -> None:
    assert answered({"query": "q", "texts": ["", "b"], "raw_scores": True}, "/rerank")[0]["score"] == 1.5


@pytest.mark.parametrize("names", [("queries", "documents"), ("text_1", "text_2"), ("data_1", "data_2")])
def test_scores_of_vllm_keep_the_order_of_the_documents(names: tuple[str, str]) -> None:
    values = answered({names[0]: "q", names[1]: ["", "b"]}, "/v1/score")
    assert [(v["index"], v["object"], v["score"]) for v in values["data"]] == [(0, "score", 0.0), (1, "score", 0.5)]
    assert values["object"] == "list"


def test_scores_are_of_their_own_documents_when_some_are_cut() -> None:
    asked = read({"queries": "q", "documents": ["a", "b"], "min_grade": 2}, "/score")
    values = answer_body(asked, [Ranking([JUDGED], cut=1)], scale=SCALE, model="m", request_id="r", created=1, tokens=7)
    assert [value["index"] for value in values["data"]] == [1]


def test_scores_pair_a_query_with_each_document() -> None:
    asked = read({"text_1": ["p", "q"], "text_2": ["a", "b"]}, "/score")
    assert (asked.queries, asked.documents) == (("p", "q"), (("a",), ("b",)))


def test_relevance_goes_from_the_lowest_gain_to_the_highest() -> None:
    scale = RelevanceScale("s", (Grade("bad", ("No",), -1.0), Grade("good", ("Yes",), 1.0)))
    asked = read({"query": "q", "documents": ["b"]})
    for gain, relevance in ((-1.0, 0.0), (-0.5, 0.25), (1.0, 1.0), (1.0000000001, 1.0)):
        ranking = Ranking([RankedDocument(1, 0, None, "b", gain, 0, "bad", (0.5, 0.5))])
        values = answer_body(asked, [ranking], scale=scale, model="m", request_id="r", created=1, tokens=7)
        assert values["results"][0]["relevance_score"] == relevance


def test_all_that_clients_send_is_taken() -> None:
    body = {
        "model": "rerank-v3.5", "query": "q", "documents": ["a"], "top_n": 0, "return_documents": None,
        "max_tokens_per_doc": None, "max_chunks_per_doc": 10, "truncation": True, "truncate": "END",
        "raw_scores": False, "instruction": "i", "priority": 1, "relevant_spans": True, "unknown": {"a": []},
    }  # fmt: skip
    assert read(body) == RerankRequest("rerank", ("q",), (("a",),))
    assert read({**body, "budget_ms": 250}).effort == {"budget_ms": 250, "depth": None}
    rules = {"cut": "recall 0.9 of relevant", "min_grade": 2, "min_probability": 0.5, "fuse": "auto"}
    assert read({**body, **rules, "prevalence": "estimate"}).rules == {**rules, "prevalence": "estimate"}


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({}, 422, "query is missing: expected a string; documents is missing"),
        ({"query": 5, "documents": "d"}, 422, "query must be a string, got 5; documents must be an array"),
        ({"query": "q", "documents": []}, 422, "documents is empty"),
        ({"query": "q", "texts": []}, 400, "texts is empty"),
        ({"query": "q", "documents": ["a", None]}, 422, "documents[1] must be a string or an object with text"),
        ({"query": "q", "documents": [{"text": 5}]}, 422, "documents[0].text must be a string, got a number"),
        ({"query": "q", "documents": ["a"], "top_n": -1}, 422, "top_n must be an integer of at least 0"),
        ({"query": "q", "documents": ["a"], "top_n": True}, 422, "got a boolean"),
        ({"query": "q", "documents": ["a"], "budget_ms": 0}, 422, "budget_ms must be a number above 0, got 0"),
        ({"query": "q", "documents": ["a"], "budget_ms": 10**400}, 422, "budget_ms must be a number above 0"),
        ({"query": "q", "documents": ["a"], "prevalence": [0.5, "a"]}, 422, "prevalence must be an array of numbers"),
        ({"query": "q", "documents": ["a"], "min_grade": 1.5}, 422, "min_grade must be a string or an integer"),
        ({"query": "q", "documents": ["a"], "model": 5}, 422, "model must be a string"),
        ({"query": "q", "documents": [1] * 9}, 422, "and 4 more"),
        ({"query": "q", "documents": ["a"] * 11}, 413, "11 documents, at most 10 fit into one request"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(body: dict[str, Any], status: int, says: str) -> None:
    with pytest.raises(ApiError) as raised:
        read(body)
    assert (raised.value.status, says in raised.value.message) == (status, True), raised.value.message


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"text_1": "q"}, "nothing to score: expected queries with documents"),
        ({"text_1": ["a", "b"], "text_2": ["c"]}, "text_1 must be one, or as many as text_2 (1), got 2"),
        ({"text_1": "a", "text_2": []}, "text_2 is empty"),
        ({"text_1": "a", "text_2": 5}, "text_2 must be an array of strings or of objects with text, got 5"),
    ],
)
def test_what_is_wrong_with_scores_is_named(body: dict[str, Any], says: str) -> None:
    with pytest.raises(ApiError) as raised:
        read(body, "/score")
    assert raised.value.status == 422
    assert says in raised.value.message


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"", 400, "Expecting value"),
        (b"{", 400, "line 1, column 2"),
        (b"\xff\xfe{}", 400, "expected UTF-8, byte 0 is not"),
        ('{"query": "q"}'.encode("utf-16"), 400, "expected UTF-8"),
        (b'{"a": NaN}', 400, "NaN is not a number in JSON"),
        (b'{"a": -Infinity}', 400, "-Infinity is not"),
        (b'{"a": 1, "b": 2, "a": 3}', 400, "the name 'a' comes twice"),
        (b'{"a":' * 100_000, 400, "nested too deeply"),
        (b'{"a": ' + b"1" * 5000 + b"}", 400, "not valid JSON"),
        (b"[]", 422, "must be a JSON object, got an array"),
        (b"null", 422, "got null"),
    ],
)
def test_a_body_that_is_no_json_object_is_refused(body: bytes, status: int, says: str) -> None:
    with pytest.raises(ApiError) as raised:
        read_object(body)
    assert (raised.value.status, says in raised.value.message) == (status, True), raised.value.message


def test_a_byte_order_mark_is_no_fault() -> None:
    assert read_object(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}


def test_every_client_finds_the_message_of_an_error() -> None:
    error = ApiError(429, "queue_full", "later", retry_after=3)
    body = error_body(error)
    assert body["message"] == body["detail"] == body["error"]["message"] == "later"
    assert (body["error"]["type"], body["error"]["code"]) == ("overloaded_error", "queue_full")
    assert error.headers == {"Retry-After": "3"}
    error.tei = True
    assert (error_body(error)["error"], error_body(error)["error_type"]) == ("later", "Overloaded")
    json.dumps(error_body(error))
