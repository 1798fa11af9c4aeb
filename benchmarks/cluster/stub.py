"""A model that only waits: what is measured with it is the machinery around it."""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from darl_rerank.distributed.model import Model
from darl_rerank.results import RankedDocument, Ranking


class StubReranker:
    """Scores out of a checksum, after so many seconds for each document."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    fingerprint = "stub"
    batch_tokens = 1024

    def rerank_many(self, queries: Sequence[str], documents: Sequence[Sequence[Any]], **_: Any) -> list[Ranking]:
        found = []
        time.sleep(self._seconds * sum(map(len, documents)))
        for query, candidates in zip(queries, documents, strict=True):
            scored = [(zlib.crc32((query + d["text"]).encode()) / 2**32, i, d) for i, d in enumerate(candidates)]
            scored.sort(key=lambda entry: -entry[0])
            found.append(
                Ranking(
                    RankedDocument(rank, i, d["id"], d, score, 0, "x", (1.0,))
                    for rank, (score, i, d) in enumerate(scored, 1)
                )
            )
        return found


@dataclass(frozen=True, slots=True)
class StubModel(Model):
    """What a worker loads instead of a checkpoint."""

    def check(self) -> None:
        """Nothing to check."""

    def load(self) -> Any:
        return StubReranker(self.options["seconds"])
