"""What a selection strategy sees of the pool: projected features, novelty and uncertainty of every pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from darl_rerank.errors import InputError
from darl_rerank.model.novelty import MAHALANOBIS, NEIGHBOUR, NoveltyModel
from darl_rerank.progress import Progress, progress_bar

_BLOCK_ROWS = 512
# Below this the distance of two pairs is float16 rounding.
_SMALLEST_DISTANCE = 1e-5


@dataclass(frozen=True, slots=True)
class Candidates:
    """The pool of n unlabelled pairs beside the training set of m pairs, in r projected dimensions.

    Attributes:
        positions: where the pairs lie along the novelty model's components, shape (n, r), float16; may be a memory map.
        training: the same of the training pairs, shape (m, r), float32.
        novelty: percentile 0..100 among held-out in-distribution pairs, shape (n,), float32.
        mahalanobis: squared Mahalanobis distance to the training pairs' mean, shape (n,), float32.
        neighbour: half the squared distance to the k-th nearest training pair, shape (n,), float32.
        uncertainty: entropy of the current model's grade distribution over log K, 0..1, shape (n,), float32.
        queries: number of each pair's query, shape (n,), int32.
        typical_distance: the median of `neighbour` among held-out in-distribution pairs: how far a pair may lie from
            the training set and still be at home.
    """

    positions: NDArray[np.float16]
    training: NDArray[np.float32]
    novelty: NDArray[np.float32]
    mahalanobis: NDArray[np.float32]
    neighbour: NDArray[np.float32]
    uncertainty: NDArray[np.float32]
    queries: NDArray[np.int32]
    typical_distance: float

    def __len__(self) -> int:
        return len(self.novelty)


def describe_pool(
    features: NDArray[np.floating[Any]],
    probabilities: NDArray[np.floating[Any]],
    queries: Sequence[Any] | NDArray[Any],
    training: NDArray[np.floating[Any]],
    novelty: NoveltyModel,
    *,
    rows: NDArray[np.intp] | None = None,
    workspace: str | Path | None = None,
    progress: Progress = True,
) -> Candidates:
    """The candidates of a pool, computed block by block.

    Beside the arguments it takes 20 bytes a pair, and 2·r bytes a pair for the positions, in memory or in
    `workspace`: 256 MB a million pairs at r = 128.

    Args:
        features: of the pool's pairs, shape (n, F), or of more pairs than those; may be memory-mapped. Of the base
            model, as `novelty`'s.
        probabilities: the current model's calibrated grade distribution, shape (n, K).
        queries: shape (n,): which query each pair belongs to, anything that can be hashed.
        training: features of all labelled training pairs, shape (m, F); may be memory-mapped.
        novelty: fitted on `training` and a held-out part of the labelled set.
        rows: which rows of `features` the pool's pairs are, increasing, shape (n,); all if None.
        workspace: a folder for the positions, in a file "positions.npy"; in memory if None.
        progress: see `darl_rerank.progress`.

    Raises:
        InputError: shapes don't fit, there are no pairs, or a value is not finite.
    """
    rows = np.arange(len(features)) if rows is None else rows
    n = len(rows)
    if n == 0:
        raise InputError("the pool is empty")
    if len(probabilities) != n or len(queries) != n:
        raise InputError(f"the pool has {n} pairs, but {len(probabilities)} distributions and {len(queries)} queries")
    positions = _positions(n, novelty.dimensions, workspace)
    raw = {name: np.empty(n, dtype=np.float32) for name in (MAHALANOBIS, NEIGHBOUR)}
    percentile = np.empty(n, dtype=np.float32)
    with progress_bar("novelty", n, unit="pair", progress=progress) as bar:
        for start in range(0, n, _BLOCK_ROWS):
            block = slice(start, min(start + _BLOCK_ROWS, n))
            found, rest = novelty.project(np.asarray(features[rows[block]]))
            positions[block] = found
            scores = novelty.raw_of_projected(found, rest)
            percentile[block] = novelty.combine(scores)
            for name, values in raw.items():
                values[block] = scores[name]
            bar.update(block.stop - block.start)
    home = novelty.tables[NEIGHBOUR]
    return Candidates(
        positions=positions,
        training=positions_of(training, novelty),
        novelty=percentile,
        mahalanobis=raw[MAHALANOBIS],
        neighbour=raw[NEIGHBOUR],
        uncertainty=normalised_entropy(probabilities),
        queries=_numbers(queries),
        typical_distance=max(float(np.interp(50.0, home.percents, home.values)), _SMALLEST_DISTANCE),
    )


def positions_of(features: NDArray[np.floating[Any]], novelty: NoveltyModel) -> NDArray[np.float32]:
    """Where features, shape (n, F), lie along the components, shape (n, r), block by block."""
    result = np.empty((len(features), novelty.dimensions), dtype=np.float32)
    for start in range(0, len(features), _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        result[rows] = novelty.project(np.asarray(features[rows]))[0]
    return result


def normalised_entropy(probabilities: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Entropy of each row, shape (n, K), divided by log K: 0 is sure of one grade, 1 knows nothing; shape (n,)."""
    result = np.empty(len(probabilities), dtype=np.float32)
    for start in range(0, len(probabilities), 1 << 16):
        rows = slice(start, start + (1 << 16))
        p = np.asarray(probabilities[rows], dtype=np.float64)
        logs = np.log(p, out=np.zeros_like(p), where=p > 0)
        result[rows] = -(p * logs).sum(axis=1) / np.log(p.shape[1])
    return np.clip(result, 0.0, 1.0)


def _positions(rows: int, dimensions: int, workspace: str | Path | None) -> NDArray[np.float16]:
    if workspace is None:
        return np.empty((rows, dimensions), dtype=np.float16)
    Path(workspace).mkdir(parents=True, exist_ok=True)
    array: NDArray[np.float16] = np.lib.format.open_memmap(
        Path(workspace) / "positions.npy", mode="w+", dtype=np.float16, shape=(rows, dimensions)
    )
    return array


def _numbers(queries: Sequence[Any] | NDArray[Any]) -> NDArray[np.int32]:
    seen: dict[Any, int] = {}
    return np.fromiter((seen.setdefault(query, len(seen)) for query in queries), dtype=np.int32, count=len(queries))
