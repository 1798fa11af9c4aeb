"""Why the queue did not answer."""

from __future__ import annotations

from typing import Literal

from ..errors import DarlRerankError

Code = Literal["queue_full", "closed", "timeout", "engine_failed"]


class QueueError(DarlRerankError):
    """A job that the queue does not take, or does not answer.

    Args:
        code: "queue_full", "closed" (it takes no more jobs), "timeout" (too late) or "engine_failed" (the engine failed
            on every document).
        message: a sentence for people.
        retry_after: seconds after which trying again may help; None if it doesn't.
    """

    def __init__(self, code: Code, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.code: Code = code
        self.message = message
        self.retry_after = retry_after
