"""What the server answers when it can't answer: a status, and one body that every client reads a message from."""

from __future__ import annotations

from typing import Any

from ..queue.errors import QueueError


class ApiError(Exception):
    """A request that gets an error.

    Args:
        status: of HTTP.
        code: a word for programs, such as "queue_full".
        message: a sentence for people: what was expected and what came instead.
        retry_after: seconds after which trying again may help; None if it doesn't.

    Attributes:
        tei: whether the request had the shape of text-embeddings-inference (TEI), which has errors of its own.
    """

    def __init__(self, status: int, code: str, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.retry_after = retry_after
        self.tei = False

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


_STATUSES = {"queue_full": 429, "timeout": 429, "engine_failed": 503}


def draining() -> ApiError:
    """The error of a server that is about to end."""
    return ApiError(503, "draining", "the server is shutting down", retry_after=5)


def of_queue(error: QueueError) -> ApiError:
    """The queue's error as HTTP has it."""
    if error.code == "closed":
        return draining()
    return ApiError(_STATUSES[error.code], error.code, error.message, retry_after=error.retry_after)


# The words of text-embeddings-inference for its statuses.
_TEI_TYPES = {400: "Empty", 413: "Validation", 422: "Validation", 429: "Overloaded", 503: "Unhealthy"}


def error_body(error: ApiError) -> dict[str, Any]:
    """The body of an error.

    Cohere's client reads `message`, those of Jina and Voyage `detail`, those of vLLM and infinity `error.message`. In
    TEI's shape `error` is the message itself.
    """
    if error.tei:
        return {
            "error": error.message,
            "error_type": _TEI_TYPES.get(error.status, "Backend"),
            "message": error.message,
            "detail": error.message,
        }
    kind = "invalid_request_error" if error.status < 429 else "overloaded_error" if error.status == 429 else "api_error"
    return {
        "message": error.message,
        "detail": error.message,
        "error": {"message": error.message, "type": kind, "code": error.code},
    }
