"""FusionSearcher: several first stages that search as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from darl_rerank.trec.fusion import RRF_K, FusedHit, check_weights, fuse, fuse_runs


class FusionSearcher:
    """Several searchers as one, fused by reciprocal rank; searches like a searcher of Pyserini.

    Args:
        searchers: each with `search(q, k)` and, for `batch_search`, `batch_search(queries, qids, k, threads)`.
        k: the constant of the fusion.
        weights: one for each searcher; all 1 if None.
        depth: how many hits of each searcher are fused, at least as many as are asked for.
    """

    def __init__(
        self, searchers: Sequence[Any], *, k: float = RRF_K, weights: Sequence[float] | None = None, depth: int = 1000
    ) -> None:
        self._weights = check_weights(len(searchers), k, weights)
        self._searchers = list(searchers)
        self._k = k
        self._depth = depth

    def search(self, q: str, k: int = 10) -> list[FusedHit]:
        """The best `k` documents for one query."""
        rankings = [searcher.search(q, k=max(k, self._depth)) for searcher in self._searchers]
        return fuse(rankings, k=self._k, weights=self._weights, top_k=k)

    def batch_search(
        self, queries: list[str], qids: list[str], k: int = 10, threads: int = 1
    ) -> dict[str, list[FusedHit]]:
        """The best `k` documents for each query, by query id."""
        depth = max(k, self._depth)
        runs = [searcher.batch_search(queries, qids, k=depth, threads=threads) for searcher in self._searchers]
        return fuse_runs(runs, k=self._k, weights=self._weights, top_k=k)
