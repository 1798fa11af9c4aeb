"""The process: a socket, uvicorn, signals, and what is logged."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..errors import DarlRerankError
from .errors import ApiError, error_body
from .service import Service

_log = logging.getLogger("darl_rerank.serving")

_BACKLOG = 2048
_IDLE_S = 75
# After the last answer of a draining server, for its bytes to leave.
_LINGER_S = 5


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes any that is free.

    Raises:
        DarlRerankError: the address is taken, not ours, or no address.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address, family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise DarlRerankError(f"can't listen on {host} port {port}: {why}") from error


def address_of(listener: socket.socket) -> str:
    """The URL under which a socket is reached from its own machine."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(app: ASGIApp, service: Service, listener: socket.socket, *, on_listening: Callable[[], None]) -> None:
    """Load the model and answer until SIGTERM or SIGINT; then take no more, answer what came before, and return.

    Args:
        app: from `create_app`.
        service: the app's.
        listener: from `listen`.
        on_listening: called once requests are answered and signals are heard.

    Raises:
        DarlRerankError: the model can't be loaded, as `Reranker.from_pretrained`.
    """
    config = uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_keep_alive=_IDLE_S,
        timeout_graceful_shutdown=_LINGER_S,
    )
    server = _Server(config, service, on_listening)
    service.on_failure = server.stop
    service.start()
    server.run(sockets=[listener])
    service.raise_failure()


class _Server(uvicorn.Server):
    """uvicorn, but for signals: the first one drains, and the process ends with 0 once all is answered."""

    def __init__(self, config: uvicorn.Config, service: Service, on_listening: Callable[[], None]) -> None:
        super().__init__(config)
        self._service = service
        self._on_listening = on_listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_listening()

    def stop(self) -> None:
        """End without draining; may be called from any thread."""
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn's own raises the signal again when it has shut down, and the process would end by it.
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._service.state == "draining":
            self.force_exit = self.should_exit = True
            return
        asyncio.get_running_loop().call_soon_threadsafe(self._begin_drain)

    def _begin_drain(self) -> None:
        self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        seconds = self._service.limits.drain_s
        _log.info("draining: %d requests in the queue, at most %.0f s", self._service.waiting, seconds)
        self._service.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                # Also those that were accepted but are not in the queue yet; they will be told.
                while self._service.waiting:
                    await asyncio.sleep(0.02)
        if self._service.waiting:
            _log.warning("%d requests were not answered within %.0f s", self._service.waiting, seconds)
            self._service.abandon()
        self.should_exit = True


class _Protocol(H11Protocol):
    """uvicorn's HTTP by h11, whose own error for what is no HTTP is JSON, too."""

    def send_400_response(self, msg: str) -> None:
        body = json.dumps(error_body(ApiError(400, "malformed_http", msg))).encode()
        head = f"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self.transport.write(head.encode("ascii") + b"connection: close\r\n\r\n" + body)
        self.transport.close()


def log_to_stderr(*, access: bool) -> None:
    """Log as JSON lines on stderr: the server's own messages, uvicorn's warnings, and (access) every request."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines())
    for name, level in (("darl_rerank.serving", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False
    logging.getLogger("darl_rerank.serving.access").setLevel(logging.INFO if access else logging.WARNING)


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {"time": self.formatTime(record), "level": record.levelname.lower()}
        message = record.getMessage()
        if record.name.endswith(".access"):
            line |= json.loads(message)
        else:
            line["message"] = message
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)
