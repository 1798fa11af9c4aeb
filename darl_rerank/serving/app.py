"""The server's paths: who may call them, what they read, what they answer."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import logging
import time
import uuid
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .. import __version__
from ..queue.jobs import Answer
from .errors import ApiError, error_body
from .json_body import read_object
from .page import page
from .service import Backend
from .shapes import RerankRequest, answer_body, read_request, shape_of

RERANK_PATHS = ("/rerank", "/v1/rerank", "/v2/rerank", "/reranking", "/v1/reranking", "/score", "/v1/score")
_PATHS = frozenset(
    {*RERANK_PATHS, "/search", "/demo", "/v1/models", "/health", "/ping", "/ready", "/info", "/metrics", "/"}
)
# Probes have no key, and the page holds nothing: it asks for the key itself.
_OPEN_PATHS = frozenset({"/", "/health", "/ping", "/ready"})
# Asked every few seconds by machines: not in the access log.
_PROBED = frozenset({"/health", "/ping", "/ready", "/metrics"})
_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
# Bodies that are read at the same time may take this many times `max_body_bytes` together.
_BODIES = 8
_BODY_SECONDS = 30.0
_LONGEST_ID = 128

_log = logging.getLogger("darl_rerank.serving")
_access = logging.getLogger("darl_rerank.serving.access")

# A first stage for the page: query and depth in, documents with `docid` and `full_text` out.
FirstStage = Callable[[str, int], Sequence[Any]]


@dataclass(frozen=True, slots=True)
class AppSettings:
    """What an app needs beside the service.

    Attributes:
        model_name: what answers call the model.
        api_keys: any of these is asked for; nothing is if there are none.
        log_queries: whether the access log may hold the text of queries.
        first_stage: what the page searches; None if it takes pasted documents only.
        demo: lists for the page to show, JSON types: each with "about" and "queries", whose elements have "query",
            "documents" (as /rerank takes them) and "people", what people said of each document, by its id: a number
            as "grade" and a word as "name".
    """

    model_name: str = "darl-rerank"
    api_keys: tuple[str, ...] = ()
    log_queries: bool = False
    first_stage: FirstStage | None = None
    demo: Sequence[Mapping[str, Any]] = ()


def create_app(service: Backend, settings: AppSettings) -> ASGIApp:
    """The server as an ASGI application; starting and ending `service` is the caller's."""
    handlers = _Handlers(service, settings)
    routes = [
        *(Route(path, handlers.rerank, methods=["POST"]) for path in RERANK_PATHS),
        Route("/search", handlers.search, methods=["POST"]),
        Route("/demo", handlers.demo),
        Route("/v1/models", handlers.models),
        Route("/health", handlers.health),
        Route("/ping", handlers.health),
        Route("/ready", handlers.ready),
        Route("/info", handlers.info),
        Route("/metrics", handlers.metrics),
        Route("/", handlers.page),
    ]
    app = Starlette(
        routes=routes,
        exception_handlers={
            ApiError: _api_error,
            HTTPException: _http_error,
            ClientDisconnect: _gone,
            Exception: _fault,
        },
    )
    app.router.redirect_slashes = False
    return _Edge(app, service, settings)


class _Handlers:
    """What each path answers."""

    def __init__(self, service: Backend, settings: AppSettings) -> None:
        self._service = service
        self._settings = settings
        # Reading and tokenising a body takes up to a second; the event loop answers probes meanwhile.
        self._readers = ThreadPoolExecutor(2, thread_name_prefix="darl-rerank reader")
        self._held = 0

    async def rerank(self, request: Request) -> Response:
        body = await self._body(request)
        arrived = time.monotonic()
        asked = await self._in_thread(self._read, request.scope["path"], body)
        del body
        try:
            answers = await _unless_gone(request, self._service.answer(asked, arrived))
        except ApiError as error:
            error.tei = asked.shape == "tei"
            raise
        return self._answer(request, asked, answers)

    def _read(self, path: str, body: bytes) -> RerankRequest:
        """What a body asks for."""
        values = read_object(body)
        shape = shape_of(path, values)
        try:
            return read_request(shape, values, max_documents=self._service.limits.max_documents)
        except ApiError as error:
            error.tei = shape == "tei"
            raise

    def _answer(self, request: Request, asked: RerankRequest, answers: Sequence[Answer]) -> Response:
        tokens = sum(answer.tokens for answer in answers)
        queue_s, inference_s = (max(getattr(a, name) for a in answers) for name in ("queue_s", "inference_s"))
        request.state.log |= {
            "documents": asked.pairs,
            "tokens": tokens,
            "queue_ms": round(queue_s * 1000, 1),
            "inference_ms": round(inference_s * 1000, 1),
            "unjudged": sum(not ranked.judged for answer in answers for ranked in answer.ranking),
        }
        if self._settings.log_queries:
            request.state.log["queries"] = list(asked.queries)
        values = answer_body(
            asked,
            [answer.ranking for answer in answers],
            scale=self._service.scale,
            model=self._settings.model_name,
            request_id=request.state.log["request_id"],
            created=int(time.time()),
            tokens=tokens,
        )
        times = {"x-queue-time": f"{queue_s * 1000:.0f}", "x-inference-time": f"{inference_s * 1000:.0f}"}
        return _json(values, headers=times)

    async def search(self, request: Request) -> Response:
        """Documents of the first stage for the page."""
        if self._settings.first_stage is None:
            raise ApiError(404, "not_found", "no index to search: start the server with --index")
        values = read_object(await self._body(request))
        query, depth = values.get("query"), values.get("depth", 20)
        if not isinstance(query, str) or not query.strip():
            raise ApiError(422, "invalid_request", "query must be a string that is not empty")
        if (
            isinstance(depth, bool)
            or not isinstance(depth, int)
            or not 1 <= depth <= self._service.limits.max_documents
        ):
            most = self._service.limits.max_documents
            raise ApiError(422, "invalid_request", f"depth must be an integer from 1 to {most}")
        found = await self._in_thread(self._settings.first_stage, query, depth)
        return _json({"documents": [{"id": d.docid, "text": d.full_text} for d in found]})

    async def demo(self, request: Request) -> Response:
        """Lists for the page to show."""
        if not self._settings.demo:
            raise ApiError(404, "not_found", "no demo: start the server with --demo")
        return _json({"lists": list(self._settings.demo)})

    async def models(self, request: Request) -> Response:
        model = {"id": self._settings.model_name, "object": "model", "created": 0, "owned_by": "darl-rerank"}
        return _json({"object": "list", "data": [model]})

    async def health(self, request: Request) -> Response:
        return _json({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        state = self._service.state
        return _json({"status": state}, 200 if state == "ready" else 503)

    async def info(self, request: Request) -> Response:
        searches = self._settings.first_stage is not None
        about = {"model_id": self._settings.model_name, "version": __version__, "search": searches}
        about["demo"] = bool(self._settings.demo)
        return _json({**about, **self._service.info()})

    async def metrics(self, request: Request) -> Response:
        return Response(await self._service.metrics_text(), media_type=_PROMETHEUS)

    async def page(self, request: Request) -> Response:
        html, policy = page()
        headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff"}
        return Response(html, media_type="text/html; charset=utf-8", headers=headers)

    async def _in_thread(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._readers, work, *arguments)

    async def _body(self, request: Request) -> bytes:
        """The request's body.

        Raises:
            ApiError: 413, it is too large; 415, it is compressed; 408, it comes too slowly; 429, too many at once.
        """
        if request.headers.get("content-encoding", "identity") != "identity":
            raise ApiError(415, "unsupported_encoding", "the body must not be compressed")
        limit = self._service.limits.max_body_bytes
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                async for chunk in request.stream():
                    size += len(chunk)
                    # What is too large is read to its end all the same, or the client would not read the answer.
                    if size <= limit:
                        self._held += len(chunk)
                        chunks.append(chunk)
                    elif chunks:
                        self._held -= sum(map(len, chunks))
                        chunks.clear()
                    if size > _BODIES * limit:
                        break
                    if self._held > _BODIES * limit:
                        raise ApiError(429, "too_many_bodies", "too many large requests at once", retry_after=1)
        except TimeoutError as error:
            raise ApiError(408, "slow_body", f"the body did not come within {_BODY_SECONDS:.0f} s") from error
        finally:
            self._held -= sum(map(len, chunks))
        if size > limit:
            raise ApiError(413, "body_too_large", f"the body is larger than {limit} bytes")
        return b"".join(chunks)


class _Edge:
    """Around all paths: keys, request ids, the access log and the count of requests; no error leaves without JSON."""

    def __init__(self, app: ASGIApp, service: Backend, settings: AppSettings) -> None:
        self._app = app
        self._metrics = service.metrics
        self._settings = settings
        self._keys = [_digest(key) for key in settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.monotonic()
        headers = dict(scope["headers"])
        path: str = scope["path"]
        log: dict[str, Any] = {"request_id": _request_id(headers), "method": scope["method"], "path": path}
        scope.setdefault("state", {})["log"] = log
        status: int | None = None

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", log["request_id"].encode())]
            await send(message)

        try:
            refusal = self._refusal(path, headers)
            await (self._app if refusal is None else refusal)(scope, receive, send_on)
        finally:
            seconds = time.monotonic() - begun
            # Other paths could have any name, and there would be a counter for each.
            self._metrics.requests.labels(path if path in _PATHS else "other", str(status)).inc()
            if path in RERANK_PATHS:
                self._metrics.latency.observe(seconds)
            if path not in _PROBED or log["method"] != "GET":
                line = {**log, "status": status, "ms": round(seconds * 1000, 1)}
                _access.info(json.dumps(line, ensure_ascii=False))

    def _refusal(self, path: str, headers: dict[bytes, bytes]) -> Response | None:
        """The answer to a request that no path may see."""
        if b"transfer-encoding" in headers and b"content-length" in headers:
            # Servers disagree on which of the two counts: a proxy in front may have read another request.
            error = ApiError(400, "ambiguous_length", "a request has either Content-Length or Transfer-Encoding")
        elif self._keys and path not in _OPEN_PATHS and not self._knows(headers.get(b"authorization", b"")):
            error = ApiError(401, "unauthorized", "a valid API key is needed: Authorization: Bearer KEY")
        else:
            return None
        headers_of_401 = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
        return _json(error_body(error), error.status, {"Connection": "close", **headers_of_401})

    def _knows(self, authorization: bytes) -> bool:
        # Most clients send "Bearer KEY"; LlamaIndex's for text-embeddings-inference sends what it was given.
        token = authorization[7:] if authorization[:7].lower() == b"bearer " else authorization
        given = _digest(token.strip())
        # All are compared, each in constant time: how long it takes says nothing about any key.
        return any([hmac.compare_digest(given, key) for key in self._keys])  # noqa: C419


async def _unless_gone(request: Request, answering: Coroutine[Any, Any, list[Answer]]) -> list[Answer]:
    """What `answering` returns; it is cancelled when the client hangs up.

    Raises:
        ApiError: what it raises.
        ClientDisconnect: the client has hung up.
    """
    answers = asyncio.ensure_future(answering)
    gone: asyncio.Future[None] = asyncio.ensure_future(_hung_up(request))
    try:
        await asyncio.wait((answers, gone), return_when=asyncio.FIRST_COMPLETED)
        if not answers.done():
            raise ClientDisconnect
        return await answers
    finally:
        for waiting in (answers, gone):
            waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError, ApiError):
            await answers


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _json(values: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    text = json.dumps(values, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Response(text, status, headers, media_type="application/json")


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _json(error_body(error), error.status, error.headers)


async def _gone(request: Request, error: Exception) -> Response:
    # Nobody reads this; the status, nginx's for the case, is for log and metrics.
    return Response(status_code=499)


async def _fault(request: Request, error: Exception) -> Response:
    """A mistake of ours; Starlette raises the error again once this is sent, and uvicorn logs it."""
    return _json(error_body(ApiError(500, "internal", "the server made a mistake; its log says which")), 500)


async def _http_error(request: Request, error: Exception) -> Response:
    """Starlette's own errors: a path or a method that is not there."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        message = f"no such path; there are {', '.join(RERANK_PATHS)}, /v1/models, /health, /ready, /info, /metrics"
    else:
        message = f"{error.detail}: {request.method} {request.scope['path'][:100]}"
    code = "not_found" if error.status_code == 404 else "method_not_allowed"
    return _json(error_body(ApiError(error.status_code, code, message)), error.status_code, dict(error.headers or {}))


def _request_id(headers: dict[bytes, bytes]) -> str:
    """The caller's own id if it can stand in a header and a log, else a new one."""
    given = headers.get(b"x-request-id", b"")
    if 0 < len(given) <= _LONGEST_ID and all(33 <= byte <= 126 for byte in given):
        return given.decode("ascii")
    return uuid.uuid4().hex


def _digest(key: str | bytes) -> bytes:
    return hashlib.sha256(key.encode() if isinstance(key, str) else key).digest()
