"""Novelty: how far a pair's features lie from those of the training set.

Two scores, on the features' principal directions (at most 128) and on what lies outside of them:

- Mahalanobis: the squared Mahalanobis distance to the mean of all training pairs, under a covariance that is shrunk
  and then kept as its largest eigenvalues and the mean of the others. Sources: Lee et al. (NeurIPS 2018) for the
  distance as a novelty score, Ledoit and Wolf (2004) for the shrinkage, Tipping and Bishop (1999) for the covariance's
  form, Mueller and Hein (ICML 2025) for unit length first, which the engines give every part of the features.
- neighbour: half the squared distance to the k-th nearest training pair; for parts of unit length that is the sum of
  their cosine distances. Source: Sun et al. (ICML 2022).

Each is turned into its percentile among held-out in-distribution pairs. The two are joined as p-values are by Fisher's
method (1932), by which a pair that is strange beyond doubt to one score is strange, whatever the other says; and the
sum is turned into a percentile again: a novelty of 80 means "stranger than 80 % of held-out pairs".

Two things that look right were tried and are not (benchmarks/novelty.py). The relative Mahalanobis distance (Ren et al.
2021), which takes the distance to the grades' own means and subtracts the one to the common mean, says nothing of a new
topic: grades differ little in where they lie. And cosines of *centred* features forget how far out a pair lies.

Scoring needs numpy only. Fitting needs scikit-learn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, MissingDependencyError
from .percentiles import PercentileTable

MAHALANOBIS = "mahalanobis"
NEIGHBOUR = "neighbour"
COMBINED = "combined"

# Rows scored at once: against a bank of 10,000 they take 20 MB. Arrays of more than 32 MB the allocator gets from the
# system each time, and clearing their pages takes longer than the product.
_BLOCK_ROWS = 512
# Bank rows whose smallest distance is looked at first, in the search for the k-th neighbour.
_GROUP = 50
# Of the middle layer's mean, the middle layer's last token and the final layer's last token; see
# `middle_layer_weights`. The last token tells another kind of text best: the longer a text, the closer its mean lies to
# all others. Of one kind, other topics of one forum, the mean sees more (docs/novelty.md).
PART_WEIGHTS = (0.0, 1.0, 0.0)


@dataclass(frozen=True)
class NoveltyModel:
    """What the training set looks like, small enough to travel with a checkpoint.

    With F features, of which C count, r kept directions and m bank rows it takes 4·F + C·(2·r + 4) + 4·r + 2·m·r bytes
    and a little: 2.7 MB at F = 1728, C = 576, r = 128, m = 10,000.

    Attributes:
        weights: what each feature is multiplied by; those of weight 0 are not looked at; shape (F,), float32.
        mean: mean of the weighted training features, shape (C,), float32.
        components: principal directions, orthonormal, shape (r, C), float16.
        variances: of the training features along them, shrunk, shape (r,), float32.
        rest_variance: the mean variance along the other C − r directions, > 0; if there are none, the largest variance,
            as what is found there then is rounding.
        bank: training features along the components, a seeded sample, shape (m, r), float16.
        tables: percentile tables "mahalanobis", "neighbour" and "combined".
        k: which neighbour's distance counts, from 1.
        settings: how the model was fitted (seed, rows, variance kept), for the record.
    """

    weights: NDArray[np.float32]
    mean: NDArray[np.float32]
    components: NDArray[np.float16]
    variances: NDArray[np.float32]
    rest_variance: float
    bank: NDArray[np.float16]
    tables: Mapping[str, PercentileTable]
    k: int
    settings: Mapping[str, Any]

    @property
    def feature_size(self) -> int:
        """F, the length of the features the model takes."""
        return len(self.weights)

    @property
    def dimensions(self) -> int:
        """r, the number of dimensions after projection."""
        return int(self.components.shape[0])

    @cached_property
    def _directions(self) -> NDArray[np.float32]:
        return self.components.astype(np.float32).T

    @cached_property
    def _search_bank(self) -> NDArray[np.float32]:
        # A product with (position, 1) is half the squared distance, but for the half square of the position itself.
        bank = self.bank.astype(np.float32)
        return np.concatenate([-bank, half_squares(bank)[:, None]], axis=1).T

    def project(self, features: NDArray[np.floating[Any]]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Where pairs lie, as the scores see it.

        Args:
            features: shape (n, F).

        Returns:
            their positions along the components, shape (n, r), and half their squared distance from the subspace that
            these span, shape (n,), both less the mean.

        Raises:
            InputError: wrong shape, or a value that is not finite.
        """
        features = np.asarray(features)
        if features.ndim != 2 or features.shape[1] != self.feature_size:
            raise InputError(f"features must have shape (n, {self.feature_size}), got {features.shape}")
        # Less the mean before the product: float32 keeps its digits for the differences between pairs.
        centred = weighted(features, self.weights).astype(np.float32) - self.mean
        positions = np.asarray(centred @ self._directions, dtype=np.float32)
        rest = np.maximum(half_squares(centred) - half_squares(positions), 0)
        if not np.isfinite(rest).all():
            row = int(np.flatnonzero(~np.isfinite(rest))[0])
            raise InputError(f"features of row {row} are not finite numbers")
        return positions, rest

    def raw(self, features: NDArray[np.floating[Any]]) -> dict[str, NDArray[np.float64]]:
        """The two scores before percentiles, higher is stranger: "mahalanobis" and "neighbour", each of shape (n,).

        Rows are scored in blocks; a row's scores don't depend on the other rows but for float32 rounding in the matrix
        products.
        """
        features = np.asarray(features)
        scores = {name: np.zeros(len(features)) for name in (MAHALANOBIS, NEIGHBOUR)}
        for rows in _blocks(len(features)):
            for name, values in self.raw_of_projected(*self.project(features[rows])).items():
                scores[name][rows] = values
        return scores

    def raw_of_projected(
        self, positions: NDArray[np.float32], rest: NDArray[np.float32]
    ) -> dict[str, NDArray[np.float64]]:
        """`raw` of rows that `project` gave, all at once: pass some hundred rows at most."""
        return {
            MAHALANOBIS: self._mahalanobis(positions, rest),
            NEIGHBOUR: self._neighbour_distance(positions) + rest,
        }

    def score(self, features: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Novelty of each pair as a percentile of held-out in-distribution pairs, strictly between 0 and 100.

        Args:
            features: shape (n, F).

        Returns:
            shape (n,); see `PercentileTable` for pairs stranger than all held-out ones.
        """
        return self.combine(self.raw(features))

    def combine(self, raw: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
        """Novelty from the raw scores of `raw`."""
        return self.tables[COMBINED](fisher(self.tables, raw))

    def _mahalanobis(self, positions: NDArray[np.float32], rest: NDArray[np.float32]) -> NDArray[np.float64]:
        inside = (np.square(positions, dtype=np.float64) / self.variances).sum(axis=1)
        return np.asarray(inside + 2 * rest.astype(np.float64) / self.rest_variance)

    def _neighbour_distance(self, positions: NDArray[np.float32]) -> NDArray[np.float64]:
        """Half the squared distance to the k-th neighbour along the components.

        What a training pair has outside of them is left out: it is about the same for all.
        """
        one = np.ones((len(positions), 1), dtype=np.float32)
        nearest = kth_smallest(np.concatenate([positions, one], axis=1) @ self._search_bank, self.k)
        return np.asarray(np.maximum(nearest + half_squares(positions), 0), dtype=np.float64)

    def to_tensors(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Arrays by name, and settings that JSON can hold; `from_tensors` reads them back."""
        tensors: dict[str, NDArray[Any]] = {name: np.ascontiguousarray(getattr(self, name)) for name in _ARRAYS}
        tails = {}
        for name, table in self.tables.items():
            tensors[f"table.{name}.values"] = table.values
            tensors[f"table.{name}.percents"] = table.percents
            tails[name] = table.tail
        return tensors, {**self.settings, "k": self.k, "rest_variance": self.rest_variance, "tails": tails}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, NDArray[Any]], settings: Mapping[str, Any]) -> NoveltyModel:
        """The model that `to_tensors` wrote.

        Raises:
            InputError: a tensor or setting is missing.
        """
        try:
            tables = {
                name: PercentileTable(
                    np.asarray(tensors[f"table.{name}.values"], dtype=np.float64),
                    np.asarray(tensors[f"table.{name}.percents"], dtype=np.float64),
                    float(settings["tails"][name]),
                )
                for name in (MAHALANOBIS, NEIGHBOUR, COMBINED)
            }
            arrays = {name: np.asarray(tensors[name], dtype=dtype) for name, dtype in _ARRAYS.items()}
            own = {name: settings[name] for name in ("k", "rest_variance", "tails")}
            return cls(
                **arrays,
                rest_variance=float(own["rest_variance"]),
                tables=tables,
                k=int(own["k"]),
                settings={name: value for name, value in settings.items() if name not in own},
            )
        except (KeyError, TypeError) as error:
            raise InputError(f"novelty statistics are incomplete: {error} is missing") from error


_ARRAYS: dict[str, type[np.floating[Any]]] = {
    "weights": np.float32,
    "mean": np.float32,
    "components": np.float16,
    "variances": np.float32,
    "bank": np.float16,
}


def middle_layer_weights(feature_size: int) -> NDArray[np.float32]:
    """Weights of an engine's F features, shape (F,), that leave the second of its three parts, the middle layer's last
    token.

    The last layer is seldom the best for novelty (Darrin et al., AAAI 2024), and once fine-tuned it holds the grade.
    """
    return np.repeat(np.array(PART_WEIGHTS, dtype=np.float32), feature_size // len(PART_WEIGHTS))


def shrunk_covariance() -> Any:
    """scikit-learn's LedoitWolf, which novelty is fitted with: to be asked for before hours of features are computed.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """
    try:
        from sklearn.covariance import LedoitWolf
    except ImportError as error:
        raise MissingDependencyError("scikit-learn", "train", "to fit novelty") from error
    return LedoitWolf


def fit_novelty(
    features: NDArray[np.floating[Any]],
    held_out: NDArray[np.floating[Any]],
    *,
    weights: NDArray[np.float32] | None = None,
    dimensions: int = 128,
    variance: float = 0.99,
    bank_rows: int = 10_000,
    k: int = 10,
    fit_rows: int = 20_000,
    seed: int = 0,
) -> NoveltyModel:
    """Fit the novelty model of a training set.

    Args:
        features: of the training pairs, shape (n, F); may be memory-mapped.
        held_out: features of in-distribution pairs that are not in the training set, of other queries, shape (h, F).
            They only make the percentiles: with h pairs, the last resolved percentile is 100 · h / (h + 1).
        weights: what each feature counts, shape (F,), >= 0; see `middle_layer_weights`. All alike if None.
        dimensions: at most so many principal directions are kept.
        variance: as few directions are kept as hold this part of the variance.
        bank_rows: at most so many training pairs are kept as neighbours, a seeded sample.
        k: which neighbour's distance counts.
        fit_rows: mean and covariance come from at most so many training pairs, a seeded sample.
        seed: of the samples.

    Raises:
        InputError: shapes don't fit, values are not finite, or there are too few pairs.
        MissingDependencyError: scikit-learn is not installed.
    """
    estimator = shrunk_covariance()
    weights = np.ones(np.shape(features)[-1], np.float32) if weights is None else np.asarray(weights, np.float32)
    _check_fit(features, held_out, weights, k)
    rng = np.random.default_rng(seed)
    rows = _sample(rng, len(features), fit_rows)
    sample = weighted(features[rows], weights).astype(np.float64)
    if not np.isfinite(sample).all():
        raise InputError("training features contain values that are not finite numbers")

    mean = sample.mean(axis=0)
    sample -= mean
    values, directions = np.linalg.eigh(estimator(assume_centered=True).fit(sample).covariance_)
    # eigh gives the smallest first. Without any variance there is nothing to divide by.
    values, directions = np.maximum(values[::-1], np.finfo(np.float32).tiny), directions[:, ::-1]
    kept = np.cumsum(values) / values.sum()
    rank = min(int(np.searchsorted(kept, variance)) + 1, dimensions, len(kept))
    components = np.ascontiguousarray(directions[:, :rank].T).astype(np.float16)
    # Scoring sees the directions as rounded to float16, and so does the bank.
    bank = sample[_sample(rng, len(sample), bank_rows)] @ components.astype(np.float64).T
    unfinished = NoveltyModel(
        weights=weights,
        mean=mean.astype(np.float32),
        components=components,
        variances=values[:rank].astype(np.float32),
        rest_variance=float(values[rank:].mean() if rank < len(values) else values[0]),
        bank=bank.astype(np.float16),
        tables={},
        k=k,
        settings={
            "seed": seed,
            "training_pairs": len(features),
            "fitted_on": len(rows),
            "held_out_pairs": len(held_out),
            "variance_kept": float(kept[rank - 1]),
        },
    )
    raw = unfinished.raw(held_out)
    tables = {name: PercentileTable.fit(scores) for name, scores in raw.items()}
    tables[COMBINED] = PercentileTable.fit(fisher(tables, raw))
    return replace(unfinished, tables=tables)


def fisher(tables: Mapping[str, PercentileTable], raw: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """−Σ log(1 − percentile / 100) over the two scores, shape (n,)."""
    percents = np.stack([tables[name](raw[name]) for name in (MAHALANOBIS, NEIGHBOUR)])
    # A percentile is below 100, but for rounding.
    result: NDArray[np.float64] = -np.log(np.maximum(1 - percents / 100, np.finfo(np.float64).tiny)).sum(axis=0)
    return result


def weighted(features: NDArray[np.floating[Any]], weights: NDArray[np.float32]) -> NDArray[np.floating[Any]]:
    """The features of weight above 0, times their weights, shape (n, F) to (n, C)."""
    counted = weights > 0
    return np.asarray(features[:, counted] * weights[counted])


def half_squares(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Half the squared length of each row, shape (n, r) to (n,)."""
    result: NDArray[np.float32] = np.einsum("ij,ij->i", rows, rows) / 2
    return result


def kth_smallest(values: NDArray[np.float32], k: int) -> NDArray[np.float32]:
    """The k-th smallest value of each row, k from 1, shape (n, m) to (n,).

    A row is cut into groups: the k smallest values stand in the k groups whose smallest values are smallest (or equal
    ones do), so only those are searched. For thousands of columns that takes a quarter of a search of all.
    """
    n, m = values.shape
    groups = m // _GROUP
    if groups > 4 * k:
        grouped = values[:, : groups * _GROUP].reshape(n, groups, _GROUP)
        first = np.argpartition(grouped.min(axis=2), k - 1, axis=1)[:, :k]
        few = np.take_along_axis(grouped, first[:, :, None], axis=1).reshape(n, k * _GROUP)
        values = np.concatenate([few, values[:, groups * _GROUP :]], axis=1)
    result: NDArray[np.float32] = np.partition(values, k - 1, axis=1)[:, k - 1]
    return result


def _sample(rng: np.random.Generator, count: int, limit: int) -> NDArray[np.int64]:
    """At most `limit` of `count` row numbers, increasing."""
    return np.arange(count) if count <= limit else np.sort(rng.choice(count, limit, replace=False))


def _blocks(count: int) -> Iterator[slice]:
    for start in range(0, count, _BLOCK_ROWS):
        yield slice(start, min(start + _BLOCK_ROWS, count))


def _check_fit(
    features: NDArray[np.floating[Any]],
    held_out: NDArray[np.floating[Any]],
    weights: NDArray[np.float32],
    k: int,
) -> None:
    if features.ndim != 2 or held_out.ndim != 2 or features.shape[1] != held_out.shape[1]:
        raise InputError(f"features and held_out must be (n, F) and (h, F), got {features.shape} and {held_out.shape}")
    if weights.shape != (features.shape[1],) or not (np.isfinite(weights) & (weights >= 0)).all() or not weights.any():
        raise InputError(f"weights must be {features.shape[1]} numbers, none below 0 and not all 0")
    if not 1 <= k < len(features) or len(held_out) < 2:
        raise InputError(
            f"novelty needs more than k = {k} >= 1 training pairs and 2 held-out ones, "
            f"got {len(features)} and {len(held_out)}"
        )
