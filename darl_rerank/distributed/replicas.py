"""What stands behind the HTTP app on a cluster: replicas of the model, any of which may die while it works."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from ray import serve
from ray.exceptions import RayError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from ..model.scale import RelevanceScale
from ..queue.jobs import Answer
from ..serving.errors import ApiError
from ..serving.metrics import Metrics
from ..serving.service import Limits, State
from ..serving.shapes import RerankRequest

_log = logging.getLogger("darl_rerank.serving")

JUDGING, HTTP = "Judging", "Http"
_FOLLOW_S = 1.0
# After a replica has died, for the others to be known and a new one to come; twice as long after each further one.
_AGAIN_S = 0.2
# A request that brings down one replica after the other is not given to all.
_TRIES = 5
_SCRAPE_S = 5.0
# What the process that answers HTTP counts; a replica has these, too, and never touches them.
_OF_HTTP = frozenset({"darl_request_count", "darl_e2e_request_latency_seconds", "darl_ready", "darl_replicas"})


@dataclass(frozen=True, slots=True)
class Refusal:
    """An `ApiError` on its way between processes."""

    status: int
    code: str
    message: str
    retry_after: int | None

    @classmethod
    def of(cls, error: ApiError) -> Refusal:
        return cls(error.status, error.code, error.message, error.retry_after)

    @property
    def error(self) -> ApiError:
        return ApiError(self.status, self.code, self.message, retry_after=self.retry_after)


class Replicas:
    """A `darl_rerank.serving.service.Backend` that asks replicas.

    Args:
        judging: the replicas.
        app_name: of the Serve application, whose status says how many there are.
        limits: what one request may be.
    """

    def __init__(self, judging: DeploymentHandle, app_name: str, limits: Limits) -> None:
        self.limits = limits
        self.metrics = Metrics()
        self.state: State = "loading"
        self._replicas = Gauge("darl_replicas", "Replicas of the model that run", registry=self.metrics.registry)
        self._judging = judging
        self._app_name = app_name
        self._info: dict[str, Any] | None = None
        self._scale: RelevanceScale | None = None

    @property
    def scale(self) -> RelevanceScale:
        """See `Backend`."""
        if self._scale is None:
            raise _not_ready()
        return self._scale

    def info(self) -> dict[str, Any]:
        """See `Backend`."""
        if self._info is None:
            raise _not_ready()
        return self._info

    async def follow(self) -> None:
        """Keep `state` and the number of replicas up to date, for ever."""
        while True:
            with contextlib.suppress(RayError, RayServeException, KeyError):
                await self._look()
            await asyncio.sleep(_FOLLOW_S)

    async def _look(self) -> None:
        status = await asyncio.to_thread(serve.status)
        running = status.applications[self._app_name].deployments[JUDGING].replica_states.get("RUNNING", 0)
        if running and self._info is None:
            info = await self._judging.info.remote()
            self._scale, self._info = RelevanceScale.from_dict(info["scale"]), info
        self.state = "ready" if running and self._info is not None else "loading"
        self.metrics.ready.set(self.state == "ready")
        self._replicas.set(running)

    async def answer(self, request: RerankRequest, arrived: float) -> list[Answer]:
        """See `Backend`. What a replica leaves open when it dies, another is asked, a new one if there is no other."""
        if self._info is None:
            raise _not_ready()
        for number in range(_TRIES):
            age_s = time.monotonic() - arrived
            if age_s > self.limits.timeout_s:
                break
            response = self._judging.answer.remote(request, age_s)
            try:
                found: list[Answer] | Refusal = await response
            except BackPressureError as error:
                raise ApiError(429, "queue_full", "all replicas have as much as they take", retry_after=1) from error
            except TaskCancelledError as error:
                raise asyncio.CancelledError from error
            except RayTaskError:
                # A mistake of ours, which another replica would make as well.
                raise
            except (RayError, RayServeException) as error:
                _log.warning("a replica died, another is asked: %s", type(error).__name__)
                await asyncio.sleep(_AGAIN_S * 2**number)
                continue
            except asyncio.CancelledError:
                response.cancel()
                raise
            if isinstance(found, Refusal):
                raise found.error
            return found
        raise ApiError(503, "no_replica", "every replica that was asked has died", retry_after=5)

    async def metrics_text(self) -> bytes:
        """The metrics of all processes, each with its own label `replica`."""
        http = serve.get_deployment_handle(HTTP, self._app_name)
        families: dict[str, Metric] = {}
        for handle, of_http in ((http, True), (self._judging, False)):
            with contextlib.suppress(RayError, RayServeException, TimeoutError):
                found = await handle.broadcast("metrics").results_async(timeout_s=_SCRAPE_S, return_exceptions=True)
                for replica, text in (result for result in found if not isinstance(result, BaseException)):
                    _collect(families, replica, text.decode(), of_http=of_http)
        registry = CollectorRegistry()
        registry.register(_Families(list(families.values())))
        return generate_latest(registry)


class _Families:
    """Metric families as a collector."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def _collect(families: dict[str, Metric], replica: str, text: str, *, of_http: bool) -> None:
    """Add a process's metrics to the others'."""
    for family in text_string_to_metric_families(text):
        if (family.name in _OF_HTTP) != of_http:
            continue
        whole = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
        whole.samples += [s._replace(labels={**s.labels, "replica": replica}) for s in family.samples]


def _not_ready() -> ApiError:
    return ApiError(503, "loading", "no replica of the model runs yet", retry_after=5)
