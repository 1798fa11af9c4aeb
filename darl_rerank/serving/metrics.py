"""What the server counts, for Prometheus.

Names and meanings are those of text-embeddings-inference and vLLM where these have one, with the prefix `darl_`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..model.scale import RelevanceScale
    from ..queue.jobs import Answer
    from ..results import PairScores

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_TOKENS = tuple(2**power for power in range(5, 19))
# Percentiles of held-out pairs: on traffic like them a tenth of the pairs lies in each tenth.
_NOVELTY = (10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 99, 100)


class Metrics:
    """All metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "darl_request_count",
            "Requests by path and status (499: the client hung up)",
            ["path", "status"],
            registry=registry,
        )
        self.queue_size = Gauge("darl_queue_size", "Requests that wait or run", registry=registry)
        self.queue_tokens = Gauge("darl_queue_tokens", "Tokens of the requests that wait or run", registry=registry)
        self.max_queue_tokens = Gauge("darl_max_queue_tokens", "Tokens that the queue takes", registry=registry)
        self.ready = Gauge("darl_ready", "1 if the server takes requests", registry=registry)
        self.latency = Histogram(
            "darl_e2e_request_latency_seconds", "Request in to answer out", buckets=_SECONDS, registry=registry
        )
        self.in_queue = Histogram(
            "darl_request_queue_duration", "Seconds to a request's first step", buckets=_SECONDS, registry=registry
        )
        self.in_model = Histogram(
            "darl_request_inference_duration", "Seconds from the first step to the answer", buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self.batch_tokens = Histogram("darl_batch_next_tokens", "Tokens of a step", buckets=_TOKENS, registry=registry)
        self.batch_pairs = Histogram("darl_batch_next_size", "Pairs of a step", buckets=_COUNTS, registry=registry)
        self.step_seconds = Histogram(
            "darl_batch_inference_duration", "Seconds of a step", buckets=_SECONDS, registry=registry
        )
        self.documents = Counter("darl_documents", "Documents of answered requests", registry=registry)
        self.truncated = Counter("darl_documents_truncated", "Documents cut to fit", registry=registry)
        self.unjudged = Counter("darl_documents_unjudged", "Documents not judged", registry=registry)
        self.grades = Counter("darl_documents_graded", "Documents by grade", ["grade"], registry=registry)
        self.novelty = Histogram("darl_novelty", "Novelty of judged pairs", buckets=_NOVELTY, registry=registry)

    def waiting(self, *, jobs: int, tokens: int) -> None:
        """Note how many requests wait or run."""
        self.queue_size.set(jobs)
        self.queue_tokens.set(tokens)

    def step(self, tokens: int, seconds: float, scores: Sequence[PairScores], scale: RelevanceScale) -> None:
        """Count one step of the model and what it said of each pair."""
        self.batch_tokens.observe(tokens)
        self.batch_pairs.observe(sum(map(len, scores)))
        self.step_seconds.observe(seconds)
        for part in scores:
            self.truncated.inc(int(part.truncated.sum()))
            for grade in part.grade[part.judged].tolist():
                self.grades.labels(scale.grades[grade].name).inc()
            if part.novelty is not None:
                for novelty in part.novelty[~np.isnan(part.novelty)].tolist():
                    self.novelty.observe(novelty)

    def answered(self, answer: Answer, *, documents: int) -> None:
        """Count an answer to a request with so many documents."""
        self.in_queue.observe(answer.queue_s)
        self.in_model.observe(answer.inference_s)
        self.documents.inc(documents)
        self.unjudged.inc(sum(not ranked.judged for ranked in answer.ranking))

    def text(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self.registry)
