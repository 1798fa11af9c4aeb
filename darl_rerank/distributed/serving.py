"""Live traffic on Ray Serve: `serve run darl_rerank.distributed.serving:app model=FOLDER`.

Two deployments. `Http` is the very app of `darl-rerank serve`; it holds no model and asks `Judging` for answers. Each
replica of `Judging` has the model behind a token queue of its own, as one server has. A question that a dying replica
leaves open goes to another: judging changes nothing, so asking again is safe.
"""

# Ray Serve reads the annotation of `app` itself, so annotations are no strings in this file.
import asyncio
import os
import time
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from ..errors import InputError
from ..model.checkpoint import Checkpoint
from ..model.shipped import DEFAULT
from ..queue.jobs import Answer
from ..serving.app import AppSettings, create_app
from ..serving.errors import ApiError
from ..serving.server import log_to_stderr
from ..serving.service import Limits, Service
from ..serving.shapes import RerankRequest
from .model import Model
from .replicas import Refusal, Replicas

# A replica that was told to go first answers what it has.
_DRAIN_S = 30.0
# Requests that one process of `Http` holds at the same time, whether or not a replica has them.
_MOST_OPEN = 10_000


class Settings(BaseModel):
    """What `app` takes, from the command line or from a file of Serve; another name is an error.

    Attributes:
        model: as `Reranker.from_pretrained`; every node finds it there.
        model_name: what answers call it.
        engine, device, precision, batch_tokens, long_documents, exit: as `Reranker.from_pretrained`.
        min_replicas, max_replicas: how many replicas of the model there are.
        target_requests: requests per replica, waiting ones among them, that the number of replicas aims at.
        upscale_delay_s, downscale_delay_s: how long more or fewer have to be needed.
        max_requests: requests that a replica holds at the same time; its queue fills batches from them.
        max_waiting: requests that wait for a replica to take them; further ones get a 429.
        cpus, gpus: what a replica takes of its node.
        http_replicas: how many processes answer HTTP.
        api_key_env: environment variable with the API keys, as `darl-rerank serve --api-key-env`.
        access_log: whether requests are logged, to the standard error of `Http`, which Ray keeps.
        log_queries: whether that log may hold the text of queries.
        max_documents, max_body_mib, max_queue_tokens, timeout_ms: as the options of `darl-rerank serve`.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: str | None = None
    model_name: str | None = None
    engine: Literal["auto", "torch", "onnx"] = "auto"
    device: str | None = None
    precision: str | None = None
    batch_tokens: int | None = Field(None, ge=1)
    long_documents: Literal["truncate", "window"] = "truncate"
    exit: Literal["auto", "off"] = "auto"
    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(1, ge=1)
    target_requests: float = Field(8.0, gt=0)
    upscale_delay_s: float = Field(10.0, ge=0)
    downscale_delay_s: float = Field(300.0, ge=0)
    max_requests: int = Field(32, ge=1)
    max_waiting: int = Field(256, ge=0)
    cpus: float = Field(1.0, ge=0)
    gpus: float = Field(0.0, ge=0)
    http_replicas: int = Field(1, ge=1)
    api_key_env: str | None = None
    access_log: bool = True
    log_queries: bool = False
    max_documents: int = Field(1000, ge=1)
    max_body_mib: int = Field(16, ge=1)
    max_queue_tokens: int | None = Field(None, ge=1)
    timeout_ms: int = Field(60_000, ge=1)


class Judging:
    """A replica: the model behind a queue."""

    def __init__(self, model: Model, limits: Limits) -> None:
        log_to_stderr(access=False)
        self._service = Service(model.load, limits)
        self._service.start()
        self._service.wait()

    async def answer(self, request: RerankRequest, age_s: float) -> list[Answer] | Refusal:
        """Answers to a request that came so many seconds ago (clocks of machines differ), or why there are none."""
        try:
            return await self._service.answer(request, time.monotonic() - age_s)
        except ApiError as error:
            return Refusal.of(error)

    def info(self) -> dict[str, Any]:
        """What /info says."""
        return self._service.info()

    async def metrics(self) -> tuple[str, bytes]:
        """The replica's id and metrics."""
        return serve.get_replica_context().replica_id.unique_id, await self._service.metrics_text()


class Http:
    """A process that answers HTTP."""

    def __init__(self, judging: DeploymentHandle, settings: Settings, limits: Limits) -> None:
        log_to_stderr(access=settings.access_log)
        context = serve.get_replica_context()
        self._settings = settings
        self._replicas = Replicas(judging, context.app_name, limits)
        self._follow = asyncio.ensure_future(self._replicas.follow())

    def __serve_build_asgi_app__(self) -> ASGIApp:
        settings = self._settings
        return create_app(
            self._replicas,
            AppSettings(
                model_name=settings.model_name or os.path.basename(settings.model or DEFAULT),
                api_keys=_api_keys(settings.api_key_env),
                log_queries=settings.log_queries,
            ),
        )

    def metrics(self) -> tuple[str, bytes]:
        """This process's id and what it has counted itself."""
        return serve.get_replica_context().replica_id.unique_id, self._replicas.metrics.text()


def app(settings: Settings) -> serve.Application:
    """The application, for `serve run` and Serve's files.

    Raises:
        InputError: no checkpoint there, or the variable with the API keys is empty.
    """
    _api_keys(settings.api_key_env)
    names = ("engine", "device", "precision", "batch_tokens", "long_documents", "exit")
    checkpoint = Checkpoint.load(settings.model or DEFAULT)
    model = Model(settings.model, {name: getattr(settings, name) for name in names}, checkpoint.fingerprint)
    limits = Limits(
        max_documents=settings.max_documents,
        max_body_bytes=settings.max_body_mib << 20,
        max_queue_tokens=settings.max_queue_tokens,
        timeout_s=settings.timeout_ms / 1000,
    )
    judging = serve.deployment(
        Judging,
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
        max_ongoing_requests=settings.max_requests,
        max_queued_requests=settings.max_waiting,
        graceful_shutdown_timeout_s=_DRAIN_S,
        autoscaling_config={
            "min_replicas": settings.min_replicas,
            "max_replicas": settings.max_replicas,
            "target_ongoing_requests": settings.target_requests,
            "upscale_delay_s": settings.upscale_delay_s,
            "downscale_delay_s": settings.downscale_delay_s,
            "metrics_interval_s": 1.0,
            "look_back_period_s": 5.0,
        },
    )
    http = serve.deployment(
        serve.ingress()(Http),
        name="Http",
        num_replicas=settings.http_replicas,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=_MOST_OPEN,
        graceful_shutdown_timeout_s=_DRAIN_S,
    )
    return http.bind(judging.bind(model, limits), settings, limits)


def _api_keys(name: str | None) -> tuple[str, ...]:
    if name is None:
        return ()
    keys = tuple(key.strip() for key in os.environ.get(name, "").split(",") if key.strip())
    if not keys:
        # Without a key the server would be open to all, which is the opposite of what was asked for.
        raise InputError(f"api_key_env: the environment variable {name} is not set or empty")
    return keys
