"""Each client's JSON into one `RerankRequest`, and rankings back into the JSON that this client reads.

Three shapes are told apart: text-embeddings-inference (TEI), whose body has `texts`; scores, the paths /score of vLLM;
and all others (Cohere, Jina, Voyage, infinity, vLLM's /rerank), which one body satisfies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ..documents import clean_text
from ..model.scale import RelevanceScale
from ..results import RankedDocument, Ranking
from .errors import ApiError
from .json_body import json_type

Shape = Literal["rerank", "tei", "score"]

# More faults than these in one body are not listed.
_FAULTS_SHOWN = 5
# The names of queries and documents in vLLM's /score, in the order in which they are tried.
_SCORE_FIELDS = (("queries", "documents"), ("queries", "items"), ("text_1", "text_2"), ("data_1", "data_2"))


@dataclass(frozen=True, slots=True)
class RerankRequest:
    """What a client asks for.

    Attributes:
        shape: how it asked, and how it reads the answer.
        queries: one; in the shape "score" one or as many as there are documents.
        documents: for each query its documents, strings or mappings with a text.
        top_n: how many to return; all if None.
        return_documents: whether the answer repeats the documents' texts.
        raw_scores: the expected gain itself as score, rather than as a share of the largest gain.
        rules: of `Reranker.rerank` `cut`, `min_grade`, `min_probability`, `fuse` and `prevalence`, where given.
        effort: its `budget_ms` and `depth`; a budget begins when the request arrives.
    """

    shape: Shape
    queries: tuple[str, ...]
    documents: tuple[tuple[Any, ...], ...]
    top_n: int | None = None
    return_documents: bool = False
    raw_scores: bool = False
    rules: dict[str, Any] = field(default_factory=dict)
    effort: dict[str, Any] = field(default_factory=lambda: {"budget_ms": None, "depth": None})

    @property
    def pairs(self) -> int:
        return sum(map(len, self.documents))


@dataclass(slots=True)
class _Fields:
    """A body's fields, and what is wrong with them."""

    body: dict[str, Any]
    faults: list[str] = field(default_factory=list)

    def read(self, name: str, expected: str, fits: Callable[[Any], bool]) -> Any:
        """The field's value; None if it is null, missing or (a fault) not what is expected."""
        value = self.body.get(name)
        if value is None or fits(value):
            return value
        self.faults.append(f"{name} must be {expected}, got {_shown(value)}")
        return None

    def texts(self, name: str) -> list[Any]:
        """A field that is a list of strings, or of objects with a text."""
        values = self.read(name, "an array of strings or of objects with text", lambda v: isinstance(v, list)) or []
        for i, value in enumerate(values):
            if not isinstance(value, (str, dict)):
                self.faults.append(f"{name}[{i}] must be a string or an object with text, got {json_type(value)}")
            elif isinstance(value, dict) and not isinstance(value.get("text", ""), str):
                self.faults.append(f"{name}[{i}].text must be a string, got {json_type(value['text'])}")
        return list(values)

    def check(self) -> None:
        """Raise ApiError if there are faults."""
        if self.faults:
            shown = "; ".join(self.faults[:_FAULTS_SHOWN])
            more = len(self.faults) - _FAULTS_SHOWN
            raise ApiError(422, "invalid_request", shown + (f"; and {more} more" if more > 0 else ""))


def shape_of(path: str, body: dict[str, Any]) -> Shape:
    """Which shape a request has."""
    return "score" if path.endswith("/score") else "tei" if "texts" in body else "rerank"


def read_request(shape: Shape, body: dict[str, Any], *, max_documents: int) -> RerankRequest:
    """What a body asks for. Fields that are not known are ignored.

    Raises:
        ApiError: 422 (in TEI's shape 400 for an empty list), fields that are missing or of the wrong type, all of
            them named; 413, more documents than `max_documents`.
    """
    fields = _Fields(body)
    if shape == "score":
        queries, documents = _score_pairs(fields)
    else:
        query = fields.read("query", "a string", _is_text)
        if body.get("query") is None:
            fields.faults.append("query is missing: expected a string")
        documents_field = "texts" if shape == "tei" else "documents"
        found = fields.texts(documents_field)
        if body.get(documents_field) is None:
            fields.faults.append(f"{documents_field} is missing: expected an array of strings or of objects with text")
        elif not fields.faults and not found:
            fields.check()
            raise ApiError(400 if shape == "tei" else 422, "empty", f"{documents_field} is empty: nothing to rerank")
        queries, documents = (query or "",), (tuple(found),)
    top_n = _first(fields, ("top_n", "top_k"), "an integer of at least 0 (0 for all)", _is_count)
    return_documents = _first(fields, ("return_documents", "return_text"), "a boolean", _is_flag)
    raw_scores = fields.read("raw_scores", "a boolean", _is_flag)
    effort = {
        "budget_ms": fields.read("budget_ms", "a number above 0", lambda v: _is_number(v) and v > 0),
        "depth": fields.read(
            "depth", 'an integer above 0 or "auto"', lambda v: v == "auto" or (_is_count(v) and v > 0)
        ),
    }
    rules = {name: fields.read(name, expected, fits) for name, expected, fits in _RULES}
    # Taken for the sake of clients that send them; documents are cut to the model's own length.
    for name in ("max_tokens_per_doc", "max_chunks_per_doc", "priority"):
        fields.read(name, "an integer", _is_integer)
    for name in ("model", "instruction"):
        fields.read(name, "a string", _is_text)
    fields.read("truncation", "a boolean", _is_flag)
    fields.read("truncate", "a boolean or a string", lambda v: isinstance(v, (bool, str)))
    fields.check()
    request = RerankRequest(
        shape, queries, documents, top_n or None, bool(return_documents), bool(raw_scores),
        {name: value for name, value in rules.items() if value is not None}, effort,
    )  # fmt: skip
    if request.pairs > max_documents:
        raise ApiError(
            413, "too_many_documents", f"{request.pairs} documents, at most {max_documents} fit into one request"
        )
    return request


def _score_pairs(fields: _Fields) -> tuple[tuple[str, ...], tuple[tuple[Any, ...], ...]]:
    """Queries and documents of vLLM's /score: one query for all documents, or one for each."""
    left, right = next(
        (names for names in _SCORE_FIELDS if all(fields.body.get(name) is not None for name in names)), (None, None)
    )
    if left is None or right is None:
        known = ", ".join(f"{a} with {b}" for a, b in _SCORE_FIELDS)
        fields.faults.append(f"nothing to score: expected {known}")
        return (), ()
    sides: list[list[Any]] = []
    for name in (left, right):
        value = fields.body[name]
        sides.append([value] if isinstance(value, (str, dict)) else fields.texts(name))
    queries, documents = sides
    texts = [query.get("text", "") if isinstance(query, dict) else query for query in queries]
    if not fields.faults and not documents:
        fields.faults.append(f"{right} is empty: nothing to score")
    if not fields.faults and len(texts) not in (1, len(documents)):
        fields.faults.append(f"{left} must be one, or as many as {right} ({len(documents)}), got {len(texts)}")
    if len(texts) == 1:
        return tuple(texts), (tuple(documents),)
    return tuple(texts), tuple((document,) for document in documents)


def _first(fields: _Fields, names: Sequence[str], expected: str, fits: Callable[[Any], bool]) -> Any:
    found = [fields.read(name, expected, fits) for name in names]
    return next((value for value in found if value is not None), None)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return _is_integer(value) and value >= 0


def _is_number(value: Any) -> bool:
    return (_is_integer(value) and abs(value) < 2**53) or (isinstance(value, float) and math.isfinite(value))


# Names, types and checks of types; what the values may be, the library says.
_RULES: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
    ("cut", "a string", _is_text),
    ("min_grade", "a string or an integer", lambda v: isinstance(v, str) or _is_integer(v)),
    ("min_probability", "a number", _is_number),
    ("fuse", "a string", _is_text),
    (
        "prevalence",
        'an array of numbers or "estimate"',
        lambda v: isinstance(v, str) or (isinstance(v, list) and all(map(_is_number, v))),
    ),
)


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else json_type(value)


def answer_body(
    request: RerankRequest,
    rankings: Sequence[Ranking],
    *,
    scale: RelevanceScale,
    model: str,
    request_id: str,
    created: int,
    tokens: int,
) -> Any:
    """The JSON of an answer, in the shape of the request.

    Args:
        request: what was asked.
        rankings: one for each query.
        scale: of the model.
        model: its name.
        request_id: the answer's `id`.
        created: seconds since 1970.
        tokens: how many were run for it.
    """
    if request.shape == "score":
        # One query's documents, or one document for each query: either way in the order of the documents.
        single = len(rankings) == 1
        scores = [
            {
                "index": r.index if single else number,
                "object": "score",
                "score": _relevance(r, scale, request),
                **_details(r),
            }
            for number, ranking in enumerate(rankings)
            for r in sorted(ranking, key=lambda ranked: ranked.index)
        ]
        head = {"id": request_id, "object": "list", "created": created, "model": model}
        return {**head, "data": scores, "usage": _usage(tokens)}
    (ranking,) = rankings
    results = [_result(ranked, scale, request) for ranked in ranking[: request.top_n]]
    if request.shape == "tei":
        return results
    return {
        "id": request_id,
        "object": "rerank",
        "created": created,
        "model": model,
        "results": results,
        "data": results,
        "usage": _usage(tokens),
        "meta": {
            "api_version": {"version": "2"},
            "billed_units": {"search_units": 1},
            "tokens": {"input_tokens": tokens},
            "warnings": list(ranking.warnings),
            "documents_cut": ranking.cut,
        },
    }


def _result(ranked: RankedDocument, scale: RelevanceScale, request: RerankRequest) -> dict[str, Any]:
    tei = request.shape == "tei"
    result: dict[str, Any] = {"index": ranked.index}
    result["score" if tei else "relevance_score"] = _relevance(ranked, scale, request)
    if request.return_documents:
        # A string comes back as it was sent, but for what JSON could not carry.
        text = clean_text(ranked.document) if isinstance(ranked.document, str) else ranked.text
        result |= {"text": text} if tei else {"document": {"text": text}}
    return {**result, **_details(ranked)}


def _relevance(ranked: RankedDocument, scale: RelevanceScale, request: RerankRequest) -> float:
    """The score as a share of the largest gain, in [0, 1]; 0 for a document that was not judged."""
    if ranked.score is None:
        return 0.0
    low, high = float(scale.gains[0]), float(scale.gains[-1])
    return ranked.score if request.raw_scores else min(1.0, max(0.0, (ranked.score - low) / (high - low)))


def _details(ranked: RankedDocument) -> dict[str, Any]:
    """What no other server says of a document. Its place and score have other names in the clients' shapes."""
    values = ranked.to_dict()
    values["expected_gain"] = values.pop("score")
    del values["rank"], values["index"]
    return values


def _usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": tokens, "total_tokens": tokens}
