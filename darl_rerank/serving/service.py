"""The life of a server: it loads and warms up the model, is ready, drains, and ends."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from ..documents import read_group
from ..effort import Effort
from ..errors import DarlRerankError, InputError
from ..model.scale import RelevanceScale
from ..queue.errors import QueueError
from ..queue.jobs import Answer, Job, make_job
from ..queue.token_queue import TokenQueue
from ..reranker import Reranker
from ..rules import Rules
from .errors import ApiError, draining, of_queue
from .metrics import Metrics
from .shapes import RerankRequest

State = Literal["loading", "ready", "draining", "failed"]

_log = logging.getLogger("darl_rerank.serving")

_FIRST_RETRY = 5


@dataclass(frozen=True, slots=True)
class Limits:
    """What one server takes.

    Attributes:
        max_documents: of one request.
        max_body_bytes: of one request.
        max_queue_tokens: tokens of all requests that wait or run; one that suits the engine if None.
        timeout_s: seconds after which a request that is not answered gets an error.
        drain_s: seconds that requests have to end when the server shuts down.
    """

    max_documents: int = 1000
    max_body_bytes: int = 16 << 20
    max_queue_tokens: int | None = None
    timeout_s: float = 60.0
    drain_s: float = 30.0


class Backend(Protocol):
    """What stands behind the server's paths: a `Service` in this process, or replicas elsewhere."""

    limits: Limits
    metrics: Metrics

    @property
    def state(self) -> State: ...

    @property
    def scale(self) -> RelevanceScale:
        """The model's scale.

        Raises:
            ApiError: 503, it is not known yet.
        """
        ...

    async def answer(self, request: RerankRequest, arrived: float) -> list[Answer]:
        """An answer for each query of a request that came at `arrived` (`time.monotonic`); may be cancelled.

        Raises:
            ApiError: 422, it can't be followed; 429, there is no room or no time for it; 503, nothing can answer now.
        """
        ...

    def info(self) -> dict[str, Any]:
        """What /info says of the model and the limits."""
        ...

    async def metrics_text(self) -> bytes:
        """What /metrics says."""
        ...


class Service:
    """A model behind a queue, from loading to the end.

    Args:
        load: makes the reranker; called in a thread of its own, so that the process answers probes meanwhile.
        limits: what is taken.

    Attributes:
        state: "loading", "ready", "draining" or "failed".
        failure: what kept the model from loading; None if nothing did.
        on_failure: called if the model can't be loaded.
    """

    def __init__(self, load: Callable[[], Reranker], limits: Limits) -> None:
        self.limits = limits
        self.metrics = Metrics()
        self.state: State = "loading"
        self.failure: BaseException | None = None
        self._load = load
        self.on_failure: Callable[[], None] | None = None
        self._reranker: Reranker | None = None
        self._queue: TokenQueue | None = None
        self._lock = threading.Lock()
        # Tokenising a request takes up to a second; the event loop answers probes meanwhile.
        self._readers = ThreadPoolExecutor(2, thread_name_prefix="darl-rerank tokeniser")
        self._loader = threading.Thread(target=self._start, name="darl-rerank loader", daemon=True)

    @property
    def reranker(self) -> Reranker:
        """The model.

        Raises:
            ApiError: 503, it is not loaded yet.
        """
        if self._reranker is None:
            raise _not_ready(self.state)
        return self._reranker

    @property
    def scale(self) -> RelevanceScale:
        """See `Backend`."""
        return self.reranker.scale

    def start(self) -> None:
        """Begin to load the model."""
        self._loader.start()

    @property
    def loads(self) -> bool:
        """Whether the model is being loaded at the moment, also where the server has been told to end."""
        return self._loader.is_alive()

    def wait(self) -> None:
        """Wait until the model is loaded.

        Raises:
            DarlRerankError: it can't be, as `Reranker.from_pretrained`.
        """
        self._loader.join()
        self.raise_failure()

    def _start(self) -> None:
        try:
            reranker = self._load()
            queue = TokenQueue(reranker.judge, max_tokens=self.limits.max_queue_tokens, observer=self.metrics)
            self.metrics.max_queue_tokens.set(queue.max_tokens)
            self._reranker, self._queue = reranker, queue
            reranker.warm_up()
            queue.start()
        except BaseException as error:
            self.failure = error
            self.state = "failed"
            if self.on_failure is not None:
                self.on_failure()
            return
        with self._lock:
            if self.state == "loading":
                self.state = "ready"
                self.metrics.ready.set(1)
        _log.info("ready")

    async def answer(self, request: RerankRequest, arrived: float) -> list[Answer]:
        """See `Backend`; cancelled, it takes its jobs out of the queue."""
        jobs = await asyncio.get_running_loop().run_in_executor(self._readers, self.jobs, request, arrived)
        self.submit(jobs)
        try:
            return await asyncio.gather(*(asyncio.wrap_future(job.result) for job in jobs))
        except QueueError as error:
            raise of_queue(error) from error
        finally:
            for job in jobs:
                job.result.cancel()

    async def metrics_text(self) -> bytes:
        """See `Backend`."""
        return self.metrics.text()

    def jobs(self, request: RerankRequest, arrived: float) -> list[Job]:
        """Jobs for a request that came at `arrived`, one for each query, tokenised but not in the queue yet.

        Raises:
            ApiError: 422, an empty query, or rules that the checkpoint can't follow; 503, the server is not ready.
        """
        if self.state != "ready":
            raise _not_ready(self.state)
        judge = self.reranker.judge
        try:
            rules = Rules.read(judge.checkpoint, **request.rules)
            effort = Effort.read(judge.checkpoint.reach, **request.effort, top_k=request.top_n)
            places = [f"query {i}: " if len(request.queries) > 1 else "" for i in range(len(request.queries))]
            groups = [
                read_group(query, documents, place=place)
                for query, documents, place in zip(request.queries, request.documents, places, strict=True)
            ]
        except InputError as error:
            raise ApiError(422, "invalid_request", str(error)) from error
        return [
            make_job(judge, group, rules, effort, arrived=arrived, timeout_s=self.limits.timeout_s) for group in groups
        ]

    def submit(self, jobs: Sequence[Job]) -> None:
        """Put jobs into the queue, all or none.

        Raises:
            ApiError: 429, it is full; 503, the server is not ready.
        """
        if self.state != "ready" or self._queue is None:
            raise _not_ready(self.state)
        try:
            self._queue.submit(jobs)
        except QueueError as error:
            raise of_queue(error) from error

    def drain(self) -> None:
        """Take no more requests; those in the queue are still answered."""
        with self._lock:
            self.state = "draining"
            self.metrics.ready.set(0)
        if self._queue is not None:
            self._queue.close()

    @property
    def waiting(self) -> int:
        """How many jobs are not answered yet."""
        return 0 if self._queue is None else self._queue.waiting

    def abandon(self) -> None:
        """Answer what is still in the queue with an error."""
        if self._queue is not None:
            self._queue.abandon()

    def info(self) -> dict[str, Any]:
        """What /info says of model and limits, beside the names that text-embeddings-inference has for them."""
        reranker = self.reranker
        checkpoint, engine = reranker.checkpoint, reranker.engine
        return {
            "model_sha": checkpoint.fingerprint,
            "model_dtype": engine.precision,
            "model_device_type": engine.device,
            "model_type": {"reranker": {"id2label": {str(i): g.name for i, g in enumerate(reranker.scale.grades)}}},
            "max_input_length": checkpoint.prompt.max_length,
            "max_client_batch_size": self.limits.max_documents,
            "max_batch_tokens": None if self._queue is None else self._queue.max_tokens,
            "engine": engine.name,
            "scale": reranker.scale.to_dict(),
            "long_documents": reranker.long_documents,
            "novelty": checkpoint.novelty is not None,
            "trained": checkpoint.trained,
        }

    def raise_failure(self) -> None:
        """Raise what kept the model from loading, if something did."""
        if self.failure is not None:
            if isinstance(self.failure, (DarlRerankError, OSError)):
                raise self.failure
            raise DarlRerankError(f"the model could not be loaded: {self.failure}") from self.failure


def _not_ready(state: State) -> ApiError:
    if state == "draining":
        return draining()
    return ApiError(503, "loading", "the model is loading", retry_after=_FIRST_RETRY)
