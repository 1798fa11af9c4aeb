"""Novelty: how far a pair's features lie from those of the training set.

Two scores on features projected to at most 128 dimensions:

- relative Mahalanobis: the squared Mahalanobis distance to the nearest grade's mean under one covariance shared by the
  grades, minus the squared distance under one Gaussian for all training pairs. Sources: Lee et al. (NeurIPS 2018), Ren
  et al. (2021) for the subtraction, Ledoit and Wolf (2004) for the shrunk covariances, Mueller and Hein (ICML 2025)
  for normalising features first, which the engines do: every block of the features has unit length.
- neighbour: the cosine distance to the k-th nearest training pair. Source: Sun et al. (ICML 2022).

Each is turned into its percentile among held-out in-distribution pairs, the two percentiles are averaged, and the
average is turned into a percentile again: a novelty of 80 means "stranger than 80 % of held-out pairs".

Scoring needs numpy only. Fitting needs scikit-learn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InputError, MissingDependencyError

MAHALANOBIS = "mahalanobis"
NEIGHBOUR = "neighbour"
COMBINED = "combined"

# Rows scored at once: 1024 rows against a bank of 10,000 take 40 MB.
_BLOCK_ROWS = 1024
# From this many bank rows on FAISS searches, if it is installed: its exact search keeps no row-by-bank matrix.
_LARGE_BANK = 50_000
_TABLE_KNOTS = 513


@dataclass(frozen=True)
class PercentileTable:
    """A raw score as a percentile of the held-out scores, strictly increasing wherever the scores tell pairs apart.

    Between the smallest and the largest of n held-out scores: linear between quantiles, rank / (n + 1). Beyond them the
    percentile goes on towards 0 and 100 without reaching them, half of the way for every `tail` past the end; so 100
    never occurs, and pairs that are all stranger than any held-out pair keep their order.

    Attributes:
        values: raw scores at the knots, increasing, shape (q,), float64.
        percents: their percentiles, increasing, shape (q,), float64.
        tail: raw distance past an end at which half of the rest is used up, > 0.
    """

    values: NDArray[np.float64]
    percents: NDArray[np.float64]
    tail: float

    @classmethod
    def fit(cls, scores: NDArray[np.floating[Any]]) -> PercentileTable:
        """The table of held-out raw scores, shape (n,)."""
        scores = np.sort(np.asarray(scores, dtype=np.float64))
        values, first, counts = np.unique(scores, return_index=True, return_counts=True)
        percents = 100.0 * (first + (counts + 1) / 2) / (len(scores) + 1)
        knots = np.unique(np.linspace(0, len(values) - 1, min(_TABLE_KNOTS, len(values))).round().astype(int))
        tail = float(scores[-1] - np.median(scores))
        return cls(values[knots], percents[knots], tail if tail > 0 else 1.0)

    def __call__(self, scores: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Percentiles of raw scores, each strictly between 0 and 100; any shape."""
        scores = np.asarray(scores, dtype=np.float64)
        percents = np.interp(scores, self.values, self.percents)
        above = np.maximum(scores - self.values[-1], 0.0)
        below = np.maximum(self.values[0] - scores, 0.0)
        percents += (100.0 - self.percents[-1]) * above / (above + self.tail)
        percents -= self.percents[0] * below / (below + self.tail)
        result: NDArray[np.float64] = percents
        return result


@dataclass(frozen=True)
class NoveltyModel:
    """What the training set looks like, small enough to travel with a checkpoint.

    With F feature dimensions, r kept ones, G grades seen and m bank rows it takes F·(2·r + 4) + r·(8·r + 4·G + 4) +
    2·m·r bytes and a little: 3.2 MB at F = 1728, r = 128, m = 10,000.

    Attributes:
        mean: mean of the training features, shape (F,), float32.
        components: principal directions, orthonormal, shape (r, F), float16.
        grade_means: mean projected features of each grade seen in training, shape (G, r), float32.
        whitener: W with Wᵀ W the inverse of the grades' shared covariance, shape (r, r), float32.
        background_mean: mean of all projected features, shape (r,), float32.
        background_whitener: the same as `whitener` for all training pairs at once, shape (r, r), float32.
        bank: projected training features of unit length, a seeded sample, shape (m, r), float16.
        tables: percentile tables "mahalanobis", "neighbour" and "combined".
        k: which neighbour's distance counts, from 1.
        settings: how the model was fitted (seed, rows, variance kept), for the record.
    """

    mean: NDArray[np.float32]
    components: NDArray[np.float16]
    grade_means: NDArray[np.float32]
    whitener: NDArray[np.float32]
    background_mean: NDArray[np.float32]
    background_whitener: NDArray[np.float32]
    bank: NDArray[np.float16]
    tables: Mapping[str, PercentileTable]
    k: int
    settings: Mapping[str, Any]

    @property
    def feature_size(self) -> int:
        """F, the length of the features the model takes."""
        return int(self.components.shape[1])

    @property
    def dimensions(self) -> int:
        """r, the number of dimensions after projection."""
        return int(self.components.shape[0])

    @cached_property
    def _directions(self) -> NDArray[np.float32]:
        return self.components.astype(np.float32).T

    @cached_property
    def _unit_bank(self) -> NDArray[np.float32]:
        # float16 moves a unit vector's length by up to 5e-4; back at length 1, a pair's distance to itself is 0.
        return unit_rows(self.bank.astype(np.float32))

    @cached_property
    def _faiss_bank(self) -> Any | None:
        try:
            import faiss
        except ImportError:
            return None
        index = faiss.IndexFlatIP(self.dimensions)
        index.add(self._unit_bank)
        return index

    def project(self, features: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Features, shape (n, F), in the r dimensions the scores are computed in, shape (n, r).

        Raises:
            InputError: wrong shape, or a value that is not finite.
        """
        features = np.asarray(features)
        if features.ndim != 2 or features.shape[1] != self.feature_size:
            raise InputError(f"features must have shape (n, {self.feature_size}), got {features.shape}")
        # Less the mean before the product: float32 keeps its digits for the differences between pairs.
        projected = np.asarray((features.astype(np.float32) - self.mean) @ self._directions, dtype=np.float32)
        if not np.isfinite(projected).all():
            row = int(np.flatnonzero(~np.isfinite(projected).all(axis=1))[0])
            raise InputError(f"features of row {row} are not finite numbers")
        return projected

    def raw(self, features: NDArray[np.floating[Any]]) -> dict[str, NDArray[np.float64]]:
        """The two scores before percentiles, higher is stranger: "mahalanobis" and "neighbour", each of shape (n,).

        "mahalanobis" is relative and may be negative; "neighbour" lies in 0..2. Rows are scored in blocks; a row's
        scores don't depend on the other rows but for float32 rounding in the matrix products.
        """
        features = np.asarray(features)
        scores = {name: np.zeros(len(features)) for name in (MAHALANOBIS, NEIGHBOUR)}
        for rows in _blocks(len(features)):
            for name, values in self.raw_of_projected(self.project(features[rows])).items():
                scores[name][rows] = values
        return scores

    def raw_of_projected(self, projected: NDArray[np.float32]) -> dict[str, NDArray[np.float64]]:
        """`raw` of rows that `project` gave, shape (n, r); all at once, so pass some thousand rows at most."""
        return {
            MAHALANOBIS: self._relative_mahalanobis(projected),
            NEIGHBOUR: self._neighbour_distance(projected),
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
        return self.tables[COMBINED](mean_percentile(self.tables, raw))

    def _relative_mahalanobis(self, projected: NDArray[np.float32]) -> NDArray[np.float64]:
        # ‖W y − W μ‖² is a sum of squares and can't come out negative, unlike the expanded form.
        whitened = projected @ self.whitener.T
        centres = self.grade_means @ self.whitener.T
        nearest = np.min([np.square(whitened - centre).sum(axis=1) for centre in centres], axis=0)
        background = np.square((projected - self.background_mean) @ self.background_whitener.T).sum(axis=1)
        return np.asarray(nearest - background, dtype=np.float64)

    def _neighbour_distance(self, projected: NDArray[np.float32]) -> NDArray[np.float64]:
        queries = unit_rows(projected)
        if len(self.bank) >= _LARGE_BANK and self._faiss_bank is not None:
            similarity = self._faiss_bank.search(queries, self.k)[0][:, -1]
        else:
            similarity = -np.partition(-(queries @ self._unit_bank.T), self.k - 1, axis=1)[:, self.k - 1]
        return np.asarray(np.clip(1.0 - similarity.astype(np.float64), 0.0, 2.0))

    def to_tensors(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Arrays by name, and settings that JSON can hold; `from_tensors` reads them back."""
        tensors: dict[str, NDArray[Any]] = {name: np.ascontiguousarray(getattr(self, name)) for name in _ARRAYS}
        tails = {}
        for name, table in self.tables.items():
            tensors[f"table.{name}.values"] = table.values
            tensors[f"table.{name}.percents"] = table.percents
            tails[name] = table.tail
        return tensors, {**self.settings, "k": self.k, "tails": tails}

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
            kept = {name: value for name, value in settings.items() if name not in ("k", "tails")}
            return cls(**arrays, tables=tables, k=int(settings["k"]), settings=kept)
        except (KeyError, TypeError) as error:
            raise InputError(f"novelty statistics are incomplete: {error} is missing") from error


_ARRAYS: dict[str, type[np.floating[Any]]] = {
    "mean": np.float32,
    "components": np.float16,
    "grade_means": np.float32,
    "whitener": np.float32,
    "background_mean": np.float32,
    "background_whitener": np.float32,
    "bank": np.float16,
}


def fit_novelty(
    features: NDArray[np.floating[Any]],
    grades: NDArray[np.integer[Any]],
    held_out: NDArray[np.floating[Any]],
    *,
    dimensions: int = 128,
    variance: float = 0.99,
    bank_rows: int = 10_000,
    k: int = 10,
    fit_rows: int = 50_000,
    seed: int = 0,
) -> NoveltyModel:
    """Fit the novelty model of a training set.

    Args:
        features: of the training pairs, shape (n, F); may be memory-mapped.
        grades: of the training pairs, shape (n,).
        held_out: features of in-distribution pairs that are not in the training set, of other queries, shape (h, F).
            They only make the percentiles: with h pairs, the last resolved percentile is 100 · h / (h + 1).
        dimensions: at most so many principal directions are kept.
        variance: as few directions are kept as hold this part of the variance.
        bank_rows: at most so many training pairs are kept as neighbours, a seeded sample.
        k: which neighbour's distance counts.
        fit_rows: directions and covariances come from at most so many training pairs, a seeded sample.
        seed: of the samples and of the randomised decomposition.

    Raises:
        InputError: shapes don't fit, values are not finite, or there are too few pairs.
        MissingDependencyError: scikit-learn is not installed.
    """
    try:
        from sklearn.covariance import LedoitWolf
        from sklearn.decomposition import PCA
    except ImportError as error:
        raise MissingDependencyError("scikit-learn", "train", "to fit novelty") from error
    _check_fit(features, grades, held_out, k)
    rng = np.random.default_rng(seed)
    rows = _sample(rng, len(features), fit_rows)
    sample = np.asarray(features[rows], dtype=np.float32)
    if not np.isfinite(sample).all():
        raise InputError("training features contain values that are not finite numbers")
    labels = np.asarray(grades)[rows]

    pca = PCA(min(dimensions, *sample.shape), svd_solver="randomized", random_state=seed).fit(sample)
    kept = np.cumsum(pca.explained_variance_ratio_)
    rank = min(int(np.searchsorted(kept, variance)) + 1, len(kept))
    mean = pca.mean_.astype(np.float32)
    # Everything below is fitted on what scoring will see: the directions as rounded to float16.
    components = pca.components_[:rank].astype(np.float16)
    projected = ((sample - mean) @ components.astype(np.float32).T).astype(np.float64)

    means = {int(grade): projected[labels == grade].mean(axis=0) for grade in np.unique(labels)}
    residuals = projected - np.stack([means[int(grade)] for grade in labels])
    centre = projected.mean(axis=0)
    bank = unit_rows(projected[_sample(rng, len(projected), bank_rows)].astype(np.float32)).astype(np.float16)
    unfinished = NoveltyModel(
        mean=mean,
        components=components,
        grade_means=np.stack(list(means.values())).astype(np.float32),
        whitener=_whitener(LedoitWolf(assume_centered=True).fit(residuals).covariance_),
        background_mean=centre.astype(np.float32),
        background_whitener=_whitener(LedoitWolf(assume_centered=True).fit(projected - centre).covariance_),
        bank=bank,
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
    tables[COMBINED] = PercentileTable.fit(mean_percentile(tables, raw))
    return replace(unfinished, tables=tables)


def mean_percentile(
    tables: Mapping[str, PercentileTable], raw: Mapping[str, NDArray[np.float64]]
) -> NDArray[np.float64]:
    """The two scores' percentiles, averaged, shape (n,)."""
    return (tables[MAHALANOBIS](raw[MAHALANOBIS]) + tables[NEIGHBOUR](raw[NEIGHBOUR])) / 2


def unit_rows(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows, shape (n, r), scaled to length 1; a row of zeros stays."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    result: NDArray[np.float32] = rows / np.maximum(lengths, np.finfo(np.float32).tiny)
    return result


def _whitener(covariance: NDArray[np.float64]) -> NDArray[np.float32]:
    """W with Wᵀ W = covariance⁻¹, from the Cholesky factor C: covariance = C Cᵀ, W = C⁻¹."""
    return np.linalg.inv(np.linalg.cholesky(covariance)).astype(np.float32)


def _sample(rng: np.random.Generator, count: int, limit: int) -> NDArray[np.int64]:
    """At most `limit` of `count` row numbers, increasing."""
    return np.arange(count) if count <= limit else np.sort(rng.choice(count, limit, replace=False))


def _blocks(count: int) -> Iterator[slice]:
    for start in range(0, count, _BLOCK_ROWS):
        yield slice(start, min(start + _BLOCK_ROWS, count))


def _check_fit(
    features: NDArray[np.floating[Any]],
    grades: NDArray[np.integer[Any]],
    held_out: NDArray[np.floating[Any]],
    k: int,
) -> None:
    if features.ndim != 2 or held_out.ndim != 2 or features.shape[1] != held_out.shape[1]:
        raise InputError(f"features and held_out must be (n, F) and (h, F), got {features.shape} and {held_out.shape}")
    if np.shape(grades) != (len(features),):
        raise InputError(f"grades must have shape ({len(features)},), got {np.shape(grades)}")
    if not 1 <= k < len(features) or len(held_out) < 2:
        raise InputError(
            f"novelty needs more than k = {k} >= 1 training pairs and 2 held-out ones, "
            f"got {len(features)} and {len(held_out)}"
        )
