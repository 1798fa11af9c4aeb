"""Rounds a weight so that what its product gives changes least, rather than each number by itself.

Rounding a weight's row adds an error to the product that rows not yet rounded can make up for, because channels of what
it reads go together. In order of their size each row is rounded, and its error, as far as the other channels' values
predict this one's, is taken off the rows that follow (GPTQ; Frantar et al., ICLR 2023). The graph stays what it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky
from scipy.linalg.lapack import dtrtri

from .graph import GradeGraph
from .inputs import grams

# Added to the Gram matrix's diagonal, in shares of its mean: as in the paper.
_DAMPING = 0.01
# Rows whose errors are brought to all later ones at once.
_BLOCK = 64
_LARGEST = 127
_TINY = float(np.finfo(np.float32).tiny)


def column_scales(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """The step of each column of a weight, shape (1, out), so that its largest number takes 127."""
    scale: NDArray[np.float32] = np.abs(weight).max(axis=0, keepdims=True) / np.float32(_LARGEST)
    scale[scale == 0] = 1.0
    return scale


def rounded_columns(weight: NDArray[np.float32], gram: NDArray[np.float32] | None = None) -> NDArray[np.int8]:
    """A weight in whole steps of `column_scales`, -127 to 127, shape (in, out).

    Args:
        weight: shape (in, out).
        gram: X'X of what the product reads, X of shape (tokens, in); None to round each number to the nearest.
    """
    rest: NDArray[np.float32] = weight / column_scales(weight)
    whole = np.empty(weight.shape, np.int8)
    if gram is None:
        whole[:] = np.rint(rest)
        return whole
    order = np.argsort(-np.diag(gram), kind="stable")
    steps, rest = np.empty_like(rest), rest[order]
    needed = _factor(gram[np.ix_(order, order)])
    for start in range(0, len(rest), _BLOCK):
        end = min(start + _BLOCK, len(rest))
        errors = np.empty_like(rest[start:end])
        for i in range(start, end):
            steps[i] = np.clip(np.rint(rest[i]), -_LARGEST, _LARGEST)
            errors[i - start] = (rest[i] - steps[i]) / needed[i, i]
            rest[i + 1 : end] -= needed[i, i + 1 : end, None] * errors[i - start]
        rest[end:] -= needed[start:end, end:].T @ errors
    whole[order] = steps
    return whole


def rounded_products(
    graph: GradeGraph,
    factors: Mapping[str, NDArray[np.float32]],
    calibration: Iterable[Mapping[str, NDArray[Any]]],
) -> dict[str, NDArray[np.int8]]:
    """`rounded_columns` of all products' weights, smoothed by `factors`, by the product's name.

    Args:
        graph: the module.
        factors: of `smoothing`.
        calibration: inputs of the graph, without padding.
    """
    read, found = grams(graph, factors, calibration), {}
    for name, module in graph.products().items():
        weight = module.weight.detach().numpy()
        weight = weight * factors[name][:, None] if name in factors else weight
        found[name] = rounded_columns(weight, read.pop(name))
    return found


def _factor(gram: NDArray[np.float32]) -> NDArray[np.float32]:
    """The upper triangular U with U'U the inverse of the damped Gram matrix."""
    damped = gram.astype(np.float64)
    damped[np.diag_indices_from(damped)] += max(_DAMPING * float(np.diag(gram).mean()), _TINY)
    # With the rows in reverse order: the factor of a matrix is then that of its inverse.
    lower = cholesky(damped[::-1, ::-1], lower=True)
    inverse, _ = dtrtri(lower, lower=True)
    found: NDArray[np.float32] = inverse[::-1, ::-1].astype(np.float32)
    return found
