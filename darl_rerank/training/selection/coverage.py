"""Greedy choice of pairs that cover what the training set leaves uncovered, and the farthest-first baseline.

Both are greedy maximisations whose values only fall as pairs are chosen, so a value computed earlier is a bound on
today's, and only the pairs with the largest bounds are computed again (lazy greedy, Minoux 1978). The choice is that of
plain greedy, at a small part of the work.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from darl_rerank.model.novelty import half_squares

Floats = NDArray[np.float32]
Rows = NDArray[np.intp]

# Rows and columns of a block of similarities: 16 MB, which the allocator hands out again and again. Blocks of more than
# 32 MB come from the system each time, and clearing their pages takes longer than the product.
_BLOCK_ROWS = 512
_BLOCK_COLUMNS = 8192
# Candidates whose bound is refreshed at once, at first and at most: a matrix product of 32 rows costs little more than
# one of 1, and where many bounds have to fall before one holds, large products are several times as fast a row.
_REFRESHED = (32, 512)


class QueryCap:
    """Counts how many pairs of each query were taken, and says whether another one may be.

    Args:
        queries: shape (n,), numbers from 0.
        most: pairs of one query that may be taken; no limit if None.
    """

    def __init__(self, queries: NDArray[np.int32], most: int | None) -> None:
        self._queries, self._most = queries, most
        self._taken = np.zeros(int(queries.max()) + 1 if len(queries) else 0, dtype=np.int64)

    def allows(self, row: int) -> bool:
        return self._most is None or bool(self._taken[self._queries[row]] < self._most)

    def take(self, row: int) -> None:
        self._taken[self._queries[row]] += 1


def take_in_order(order: Rows, budget: int, cap: QueryCap) -> Rows:
    """The first `budget` rows of `order` that the cap allows."""
    chosen: list[int] = []
    for row in order:
        if len(chosen) == budget:
            break
        if cap.allows(int(row)):
            cap.take(int(row))
            chosen.append(int(row))
    return np.array(chosen, dtype=np.intp)


def lazy_greedy(
    rows: Rows,
    bounds: Floats,
    budget: int,
    cap: QueryCap,
    value: Callable[[Rows], Floats],
    choose: Callable[[int], None],
) -> Rows:
    """Choose, one after the other, the row of the largest value; among equals the one that comes first.

    Args:
        rows: the candidates, shape (c,).
        bounds: no less than the value of each at the start, shape (c,).
        budget: how many to choose.
        cap: rows it does not allow are passed over.
        value: today's values of some rows; they may only fall from one choice to the next.
        choose: called with every choice.

    Returns:
        the chosen rows in order; fewer than `budget` if the cap allows no more.
    """
    queue = _Bounds(rows, bounds)
    chosen: list[int] = []
    many, most = _REFRESHED
    while len(chosen) < budget:
        stale: list[int] = []
        while len(stale) < many and (top := queue.best()) is not None and top[2] != len(chosen):
            queue.pop()
            if cap.allows(top[1]):
                stale.append(top[1])
        if stale:
            for row, number in zip(stale, value(np.array(stale, dtype=np.intp)).tolist(), strict=True):
                queue.push(number, row, len(chosen))
            many = min(2 * many, most)
            continue
        top = queue.best()
        if top is None:
            break
        # The best bound is today's value, so no other row can be worth more.
        queue.pop()
        cap.take(top[1])
        choose(top[1])
        chosen.append(top[1])
        many = _REFRESHED[0]
    return np.array(chosen, dtype=np.intp)


class _Bounds:
    """Candidates by their latest bound, as (−bound, row, number of choices at which it was valued; −1 for never).

    Most candidates are never looked at again: they wait sorted, and only those valued once more stand in the heap.
    """

    def __init__(self, rows: Rows, bounds: Floats) -> None:
        order = np.argsort(-bounds, kind="stable")
        self._rows, self._bounds = rows[order], bounds[order]
        self._next = 0
        self._heap: list[tuple[float, int, int]] = []

    def _waiting(self) -> tuple[float, int, int] | None:
        if self._next == len(self._rows):
            return None
        return -float(self._bounds[self._next]), int(self._rows[self._next]), -1

    def best(self) -> tuple[float, int, int] | None:
        """The candidate of the highest bound; of equals the first row."""
        waiting = self._waiting()
        if waiting is None or (self._heap and self._heap[0] < waiting):
            return self._heap[0] if self._heap else None
        return waiting

    def pop(self) -> None:
        """Take `best` out."""
        waiting = self._waiting()
        if waiting is None or (self._heap and self._heap[0] < waiting):
            heapq.heappop(self._heap)
        else:
            self._next += 1

    def push(self, value: float, row: int, choices: int) -> None:
        heapq.heappush(self._heap, (-value, row, choices))


class Coverage:
    """Uncertainty coverage of target pairs: Σ_x u(x) · max over chosen and training pairs c of κ(x, c).

    κ(x, c) = 2^(−d(x, c) / half_distance), d half the squared distance: a Gaussian that falls to one half where d is
    `half_distance`. Source: Bae et al., "Uncertainty Herding: One Active Learning Method for All Label Budgets" (ICLR
    2025); it is monotone and submodular, so greedy comes within 1 − 1/e of the optimum.

    Args:
        targets: positions of the pairs to cover, shape (t, r).
        weights: u, shape (t,), >= 0.
        training: positions of the training pairs, which count as chosen already, shape (m, r).
        half_distance: half the squared distance at which half is covered, > 0.
    """

    def __init__(self, targets: Floats, weights: Floats, training: Floats, half_distance: float) -> None:
        # A product with (position, its half square, 1) is κ's exponent: no passes over the products to make it one.
        one = np.ones((len(targets), 1), dtype=np.float32)
        joined = np.concatenate([targets, -one, -half_squares(targets)[:, None]], axis=1)
        self._targets = np.ascontiguousarray(joined.T / half_distance, dtype=np.float32)
        self._weights = np.asarray(weights, dtype=np.float32)
        self._covered = np.zeros(len(targets), dtype=np.float32)
        for start in range(0, len(training), _BLOCK_ROWS):
            self._cover(training[start : start + _BLOCK_ROWS])

    def _kernel(self, positions: Floats) -> Floats:
        """κ of some pairs and all targets, shape (c, t)."""
        one = np.ones((len(positions), 1), dtype=np.float32)
        exponent = np.concatenate([positions, half_squares(positions)[:, None], one], axis=1) @ self._targets
        # A pair's distance to itself may come out a rounding below 0.
        np.minimum(exponent, 0, out=exponent)
        return np.exp2(exponent, out=exponent)

    def _cover(self, positions: Floats) -> None:
        np.maximum(self._covered, self._kernel(positions).max(axis=0), out=self._covered)

    def gains(self, positions: Floats) -> Floats:
        """How much choosing each of some pairs would add, shape (c, r) to (c,)."""
        result = np.empty(len(positions), dtype=np.float32)
        for start in range(0, len(positions), _BLOCK_ROWS):
            rows = slice(start, start + _BLOCK_ROWS)
            kernel = self._kernel(positions[rows])
            kernel -= self._covered
            np.maximum(kernel, 0, out=kernel)
            result[rows] = kernel @ self._weights
        return result

    def add(self, position: Floats) -> None:
        """Count a pair as chosen, shape (r,)."""
        self._cover(position[None])

    @property
    def share(self) -> float:
        """Covered part of the targets' weight, 0..1."""
        total = float(self._weights.sum())
        return float(self._weights @ self._covered) / total if total > 0 else 1.0


class Farthest:
    """Half the squared distance of every candidate to the nearest training or chosen pair (k-centre greedy).

    Source: Sener and Savarese, "Active Learning for Convolutional Neural Networks: A Core-Set Approach" (ICLR 2018).

    Args:
        positions: of the pool, shape (n, r); may be a memory map.
        training: shape (m, r).
    """

    def __init__(self, positions: NDArray[np.float16], training: Floats) -> None:
        self._positions = positions
        self.distance = np.full(len(positions), np.inf, dtype=np.float32)
        self._centres: list[Floats] = []
        # How many of the chosen centres a row's distance accounts for: the others are looked at when it matters.
        self._seen = np.zeros(len(positions), dtype=np.int32)
        parts = [training[start : start + _BLOCK_COLUMNS] for start in range(0, len(training), _BLOCK_COLUMNS)]
        for start in range(0, len(positions), _BLOCK_ROWS):
            rows = slice(start, start + _BLOCK_ROWS)
            for part in parts:
                np.minimum(self.distance[rows], self._nearest(rows, part), out=self.distance[rows])

    def _nearest(self, rows: Rows | slice, centres: Floats) -> Floats:
        block = np.asarray(self._positions[rows], dtype=np.float32)
        products = block @ centres.T
        np.subtract(half_squares(centres), products, out=products)
        nearest: Floats = np.maximum(products.min(axis=1) + half_squares(block), 0)
        return nearest

    def value(self, rows: Rows) -> Floats:
        """Today's distances of some rows."""
        unseen = int(self._seen[rows].min())
        if unseen < len(self._centres):
            nearest = self._nearest(rows, np.stack(self._centres[unseen:]))
            self.distance[rows] = np.minimum(self.distance[rows], nearest)
            self._seen[rows] = len(self._centres)
        return self.distance[rows]

    def choose(self, row: int) -> None:
        """Make a row a centre."""
        self._centres.append(np.asarray(self._positions[row], dtype=np.float32))
