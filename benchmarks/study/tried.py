"""Ways to choose pairs that the library does not have, tried where shift is rare; all work on features that are there.

Each gives an order of the pool, the first choice first; the cap for a query is applied to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from darl_rerank.model.checkpoint import Checkpoint
from darl_rerank.model.head import Head
from darl_rerank.training.loop.probe import fit_probe
from darl_rerank.training.selection.coverage import QueryCap, take_in_order

from .chosen import Seed, probe_set
from .collections_by_role import Collections, Rows
from .settings import Study
from .states import BaseStates

COMMITTEE = 4
CLUSTERS = 32
Order = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Pool:
    """What a selector sees of a pool of n pairs beside m training pairs.

    Attributes:
        seed: the pool, and how the library's strategies see it.
        features: mean of the middle layer's states over the pair, training pairs first, shape (m + n, hidden).
        queries: number of each one's query, shape (m + n,).
        finals: final states of the pool's pairs, shape (n, hidden).
        heads: trained on the training pairs: on all of them, and on draws of their queries.
        ood: which pairs are out of distribution, shape (n,); only "oracle" looks.
        rng: for what is drawn.
    """

    seed: Seed
    features: NDArray[np.float32]
    queries: NDArray[np.int64]
    finals: NDArray[np.float32]
    heads: list[Head]
    ood: NDArray[np.bool_]
    rng: np.random.Generator

    @property
    def training(self) -> int:
        return len(self.seed.sets.train)


def pool_of(seed: Seed, data: Collections, states: BaseStates, heads: list[Head]) -> Pool:
    both = np.concatenate([seed.sets.train, seed.sets.pool])
    hidden = states.features.shape[1] // 3
    return Pool(
        seed,
        np.asarray(states.features[both][:, :hidden], dtype=np.float32),
        data.queries[both],
        states.finals[seed.sets.pool],
        heads,
        ~np.isin(seed.sets.pool, data.roles["home"]),
        np.random.default_rng(seed.number),
    )


def committee(data: Collections, states: BaseStates, checkpoint: Checkpoint, train: Rows, number: int) -> list[Head]:
    """A head of all training pairs, and `COMMITTEE` of as many queries drawn with replacement."""
    rng = np.random.default_rng(number)
    queries = np.unique(data.queries[train])
    draws = [train]
    for _ in range(COMMITTEE):
        drawn = rng.choice(queries, len(queries))
        draws.append(np.concatenate([train[data.queries[train] == query] for query in drawn]))
    dev = probe_set(data, states, data.roles["home_dev"])
    return [
        fit_probe(
            checkpoint.head, *probe_set(data, states, rows), dev, checkpoint.scale.gains, loss="ce", seed=number,
            progress=False,
        ).head
        for rows in draws
    ]  # fmt: skip


def likely_new(pool: Pool) -> NDArray[np.float64]:
    """How sure a classifier between training pairs and pool is that a pair is of the pool, shape (n,).

    Out of fold, query by query: a wide classifier would know each pair, and each query, by heart.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

    of_pool = np.arange(len(pool.features)) >= pool.training
    model = LogisticRegression(C=1.0, max_iter=200, class_weight="balanced")
    folds = StratifiedGroupKFold(3, shuffle=True, random_state=pool.seed.number)
    found = cross_val_predict(model, pool.features, of_pool, groups=pool.queries, cv=folds, method="predict_proba")
    return np.asarray(found[of_pool, 1], dtype=np.float64)


def domain(pool: Pool) -> Order:
    """Least like the training set for that classifier (Gissin and Shalev-Shwartz, 2019)."""
    return np.argsort(-likely_new(pool), kind="stable")


def domain_drawn(pool: Pool) -> Order:
    """Drawn with the classifier's odds, the ratio of the densities of pool and training set."""
    likely = likely_new(pool)
    return _drawn(likely / (1 - likely).clip(1e-6), pool.rng)


def deficit(pool: Pool) -> Order:
    """Drawn from clusters of pool and training set together, by how much more of the pool than of the set is there."""
    from sklearn.cluster import KMeans

    candidates = pool.seed.candidates
    both = np.concatenate([candidates.training, np.asarray(candidates.positions, dtype=np.float32)])
    cluster = KMeans(CLUSTERS, n_init=1, max_iter=30, random_state=pool.seed.number).fit_predict(both)
    training, own = cluster[: pool.training], cluster[pool.training :]
    shares = [np.bincount(part, minlength=CLUSTERS) / len(part) for part in (own, training)]
    excess = (shares[0] - shares[1]).clip(0) / shares[0].clip(1e-9)
    return _drawn(excess[own] + 1e-6, pool.rng)


def disagreement(pool: Pool) -> Order:
    """Where heads trained on draws of the training queries differ most: Jensen-Shannon divergence (McCallum, 1998)."""
    opinions = np.stack([_probabilities(head, pool.finals) for head in pool.heads[1:]])
    mean = opinions.mean(axis=0)
    divergence = (opinions * np.log(opinions.clip(1e-12) / mean.clip(1e-12))).sum(axis=2).mean(axis=0)
    return np.argsort(-divergence, kind="stable")


def gradient(pool: Pool) -> Order:
    """k-means++ on the head's gradient for its own most probable grade (BADGE, Ash et al., ICLR 2020)."""
    probabilities = _probabilities(pool.heads[0], pool.finals)
    slope = probabilities - np.eye(probabilities.shape[1])[probabilities.argmax(axis=1)]
    # The gradient is slope ⊗ state, so its products are those of its two parts.
    states = pool.finals / np.sqrt(np.square(pool.finals).sum(axis=1).mean())
    norms = np.square(slope).sum(1) * np.square(states).sum(1)
    order = [int(norms.argmax())]
    nearest = np.full(len(norms), np.inf)
    while len(order) < len(norms):
        last = order[-1]
        products = (slope @ slope[last]) * (states @ states[last])
        nearest = np.minimum(nearest, (norms + norms[last] - 2 * products).clip(0))
        nearest[order] = 0
        total = nearest.sum()
        if total <= 0 or len(order) >= 2000:
            break
        order.append(int(pool.rng.choice(len(norms), p=nearest / total)))
    rest = np.setdiff1d(np.arange(len(norms)), order)
    return np.array([*order, *pool.rng.permutation(rest)], dtype=np.intp)


def oracle(pool: Pool) -> Order:
    """OOD pairs first, at random: no selector but a bound on what finding them could be worth."""
    order = pool.rng.permutation(len(pool.ood))
    return order[np.argsort(~pool.ood[order], kind="stable")]


SELECTORS: dict[str, Callable[[Pool], Order]] = {
    "domain": domain,
    "domain-drawn": domain_drawn,
    "deficit": deficit,
    "disagreement": disagreement,
    "gradient": gradient,
    "oracle": oracle,
}


def first_of(order: Order, pool: Pool, budget: int, study: Study) -> Rows:
    """The pairs that an order gives a budget; those of a query stand together again."""
    cap = QueryCap(pool.seed.candidates.queries, study.per_query)
    return np.sort(pool.seed.sets.pool[take_in_order(order, budget, cap)])


def _probabilities(head: Head, states: NDArray[np.float32]) -> NDArray[np.float64]:
    logits = states.astype(np.float64) @ head.weight.T.astype(np.float64) + head.bias
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(odds / odds.sum(axis=1, keepdims=True))


def _drawn(weights: NDArray[np.float64], rng: np.random.Generator) -> Order:
    """All pairs, drawn one after the other with probabilities in proportion to `weights` (Efraimidis and Spirakis)."""
    return np.argsort(np.log(rng.random(len(weights))) / weights)[::-1]
