"""Requests that hypothesis makes up: nearly right, wrong in every way we know, and not HTTP at all."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

PATHS = ("/rerank", "/v1/rerank", "/v2/rerank", "/reranking", "/score", "/v1/score")
_FIELDS = (
    "query", "documents", "texts", "top_n", "top_k", "return_documents", "return_text", "raw_scores", "model",
    "max_tokens_per_doc", "truncation", "truncate", "instruction", "budget_ms", "cut", "min_grade", "min_probability",
    "fuse", "prevalence", "queries", "text_1", "text_2", "data_1", "data_2", "priority",
)  # fmt: skip
_STRANGE = (
    "",
    " ",
    "\x00",
    "\ud83d",
    "a\udc00b",
    "\u202eabc",
    "\ufeff",
    "a" * 5000,
    "<|endoftext|>",
    "0",
    "-1",
    "{}",
    "é" * 300,
)
_words = st.one_of(st.sampled_from(_STRANGE), st.text(max_size=30), st.just("a laptop"))
_numbers = st.one_of(
    st.integers(-3, 5),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.just(10**400),
    st.just(1e308),
)
_values = st.recursive(
    st.one_of(st.none(), st.booleans(), _numbers, _words),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.one_of(_words, st.just("text")), inner, max_size=3)
    ),
    max_leaves=8,
)
_documents = st.lists(st.one_of(_words, _words.map(lambda text: {"text": text}), _values), max_size=6)
_good = {"query": "laptop", "documents": ["a notebook", "a hose"]}


@st.composite
def _objects(draw: st.DrawFn) -> dict[str, Any]:
    """A right request with some fields replaced, added or left out."""
    body: dict[str, Any] = (
        dict(_good) if draw(st.booleans()) else {"query": draw(_words), "documents": draw(_documents)}
    )
    for name in draw(st.lists(st.sampled_from(_FIELDS), max_size=4)):
        body[name] = draw(st.one_of(_values, _documents, st.sampled_from([1, 2, True, "auto", "relevant", 0.5])))
    for name in draw(st.lists(st.sampled_from(tuple(body)), max_size=1)):
        del body[name]
    return body


@st.composite
def _texts(draw: st.DrawFn) -> bytes:
    """A body: JSON, JSON broken in one place, or anything."""
    text = json.dumps(draw(_objects()), ensure_ascii=draw(st.booleans()))
    kind = draw(
        st.sampled_from(
            ("right",) * 6 + ("cut", "swap", "nan", "twice", "deep", "encoding", "bytes", "large", "not an object")
        )
    )
    if kind == "cut":
        text = text[: draw(st.integers(0, len(text)))]
    elif kind == "swap":
        place = draw(st.integers(0, len(text) - 1))
        text = text[:place] + draw(st.characters()) + text[place + 1 :]
    elif kind == "nan":
        text = (
            '{"query": "q", "documents": ["a"], "budget_ms": '
            + draw(st.sampled_from(("NaN", "-Infinity", "1e999", "1" * 5000)))
            + "}"
        )
    elif kind == "twice":
        text = '{"query": "q", "documents": ["a"], "documents": ["b", "c"]}'
    elif kind == "deep":
        depth = draw(st.sampled_from((50, 900, 5000, 100_000)))
        opening, closing = draw(st.sampled_from((("[", "]"), ('{"a":', "}"))))
        text = '{"query": "q", "documents": ' + opening * depth + ("1" + closing * depth if draw(st.booleans()) else "")
    elif kind == "encoding":
        return text.encode(draw(st.sampled_from(("utf-16", "utf-32", "utf-8-sig", "utf-7", "cp1252"))), "replace")
    elif kind == "bytes":
        return draw(st.binary(max_size=200))
    elif kind == "large":
        # A tenth of them at most: 10 MB for the server to refuse, or a million tokens for it to cut.
        size = draw(st.sampled_from((10_000,) * 8 + (2_000_000, 10_000_000)))
        text = json.dumps({"query": "q", "documents": ["word " * (size // 5)]})
    elif kind == "not an object":
        text = json.dumps(draw(_values))
    return text.encode("utf-8", "surrogatepass")


_header_values = st.one_of(
    st.sampled_from(
        ("application/json", "text/plain; charset=utf-16", "gzip", "identity", "", "*/*", "multipart/form-data")
    ),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=40),
)
_headers = st.dictionaries(
    st.sampled_from(
        ("Content-Type", "Content-Encoding", "Accept", "X-Request-ID", "Authorization", "X-Forwarded-For", "Cookie")
    ),
    _header_values,
    max_size=2,
)


def requests() -> st.SearchStrategy[tuple[str, str, bytes, dict[str, str]]]:
    """Method, path, body and headers, in proper HTTP."""
    methods = st.sampled_from(("POST",) * 30 + ("GET", "PUT", "DELETE", "OPTIONS"))
    paths = st.sampled_from(PATHS * 6 + ("/search", "/rerank/", "//rerank", "/rerank?x=%00", "/%2e%2e/"))
    return st.tuples(methods, paths, _texts(), _headers)


_LINES = (
    b"POST /rerank HTTP/1.1", b"POST /rerank HTTP/1.0", b"POST /rerank HTTP/2.0", b"POST /rerank",
    b"GET http://b/rerank HTTP/1.1", b"POST\t/rerank\tHTTP/1.1", b"CONNECT a:80 HTTP/1.1", b"POST /\xff HTTP/1.1",
    b"PRI * HTTP/2.0",
)  # fmt: skip
_RAW_HEADERS = (
    b"Host: a", b"Host: a", b"Host: b", b"Content-Length: 2", b"Content-Length: +2", b"Content-Length: 0x2",
    b"Content-Length: 2, 3", b"Content-Length: 99999999999999999999", b"Content-Length: -1",
    b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity", b"Transfer-Encoding: chunked, identity",
    b"Transfer-Encoding : chunked", b" Transfer-Encoding: chunked", b"Transfer-Encoding: \x0bchunked",
    b"Connection: close", b"Connection: upgrade", b"Upgrade: websocket", b"Upgrade: h2c", b"Expect: 100-continue",
    b"X: \x00", b"X: a\nY: b", b": empty", b"no colon", b"X: " + b"a" * 70_000,
)  # fmt: skip
_RAW_BODIES = (b"{}", b'{"query":"q","documents":["a"]}', b"0\r\n\r\n", b"5\r\nhello\r\n0\r\n\r\n", b"")


@st.composite
def raw_requests(draw: st.DrawFn) -> bytes:
    """Bytes for a socket: headers on which servers disagree, and worse."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=300))
    lines = [draw(st.sampled_from(_LINES)), *draw(st.lists(st.sampled_from(_RAW_HEADERS), max_size=5))]
    end = draw(st.sampled_from((b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r")))
    text = end.join(lines) + end * 2 + draw(st.sampled_from(_RAW_BODIES))
    if draw(st.booleans()):
        text += b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    return text
