"""A head alone, trained on states that were computed once.

Its weight's norm is capped: under cross-entropy it grows without end, and the larger it is, the more over-confident
the model and the less fine-tuning can still move (Tomihari and Sato, NeurIPS 2024).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from darl_rerank.model.head import Head
from darl_rerank.progress import Progress, progress_bar

from ..losses.comparison import LOSSES
from ..losses.occ import occ
from ..recipe.settings import OccWeights, ProbeSettings


@dataclass(frozen=True, slots=True)
class ProbeOutcome:
    """What probing did.

    Attributes:
        head: the best one on the held-out pairs.
        epochs: passes made.
        loss_before, loss_after: on the held-out pairs, of the first head and of the best.
        norm: of the weight, as a multiple of the first one's.
    """

    head: Head
    epochs: int
    loss_before: float
    loss_after: float
    norm: float


def fit_probe(
    head: Head,
    states: NDArray[np.float32],
    targets: NDArray[np.float32],
    queries: NDArray[np.integer[Any]],
    held_out: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.integer[Any]]],
    gains: NDArray[np.floating[Any]],
    *,
    loss: str = "occ",
    terms: OccWeights | None = None,
    settings: ProbeSettings | None = None,
    weights: NDArray[np.float32] | None = None,
    seed: int = 0,
    progress: Progress = True,
) -> ProbeOutcome:
    """Train the head.

    Args:
        head: to start from.
        states: what the head reads, after its norm, shape (n, hidden).
        targets: grade probabilities, shape (n, K).
        queries: number of each example's query, shape (n,); those of a query stand together.
        held_out: states, targets and queries of pairs that decide when to stop.
        gains: shape (K,).
        loss: a name of `arms.LOSSES`.
        terms: weights of OCC's terms.
        settings: how.
        weights: of the examples, shape (n,).
        seed: of the order.
        progress: see `darl_rerank.progress`.
    """
    settings = settings or ProbeSettings()
    weight = torch.from_numpy(head.weight.copy()).requires_grad_(True)
    bias = torch.from_numpy(head.bias.copy()).requires_grad_(True)
    first_norm = float(weight.detach().norm())
    rate = settings.learning_rate * float(weight.detach().square().mean().sqrt())
    optimizer = torch.optim.Adam([weight, bias], lr=rate)
    gain = torch.tensor(gains, dtype=torch.float32)

    def value(x: Tensor, t: Tensor, q: Tensor, w: Tensor | None = None) -> Tensor:
        logits = torch.nn.functional.linear(x, weight, bias)
        if loss == "occ":
            return occ(logits, t, queries=q, gains=gain, weights=w, terms=terms)
        return LOSSES[loss](logits, t, queries=q, gains=gain, weights=w)

    dev = [torch.from_numpy(np.ascontiguousarray(array)) for array in held_out]
    chunks = _whole_queries(queries, 512)
    dev_chunks = _whole_queries(held_out[2], 512)

    @torch.no_grad()
    def dev_loss() -> float:
        sums = [float(value(*(d[rows] for d in dev))) * len(rows) for rows in dev_chunks]
        return sum(sums) / sum(map(len, dev_chunks))

    best = before = dev_loss()
    chosen, epoch, waited = head, 0, 0
    rng = np.random.default_rng(seed)
    data = [torch.from_numpy(np.ascontiguousarray(array)) for array in (states, targets, queries)]
    factors = None if weights is None else torch.from_numpy(weights)
    with progress_bar("probing", settings.epochs, unit="epoch", progress=progress) as bar:
        for epoch in range(1, settings.epochs + 1):  # noqa: B007
            for i in rng.permutation(len(chunks)):
                rows = chunks[i]
                optimizer.zero_grad()
                batch_states, batch_targets, batch_queries = (d[rows] for d in data)
                batch_weights = None if factors is None else factors[rows]
                torch.autograd.backward(value(batch_states, batch_targets, batch_queries, batch_weights))
                optimizer.step()
                with torch.no_grad():
                    norm = float(weight.norm())
                    if norm > settings.max_norm * first_norm:
                        weight.mul_(settings.max_norm * first_norm / norm)
            now = dev_loss()
            bar.update(status=f"dev {now:.4f}")
            waited += 1
            if now < best - 1e-5:
                best, waited = now, 0
                chosen = Head(weight.detach().numpy().copy(), bias.detach().numpy().copy(), head.norm)
            if waited >= settings.patience:
                break
    return ProbeOutcome(chosen, epoch, before, best, float(np.linalg.norm(chosen.weight)) / first_norm)


def _whole_queries(queries: NDArray[np.integer[Any]], size: int) -> list[NDArray[np.intp]]:
    """Rows in parts of at least `size`, cut between queries only; the ranking term compares within a query."""
    cuts = [0]
    changes = np.flatnonzero(np.r_[True, queries[1:] != queries[:-1]]) if len(queries) else np.zeros(0, int)
    for change in changes:
        if change - cuts[-1] >= size:
            cuts.append(int(change))
    cuts.append(len(queries))
    return [np.arange(a, b) for a, b in itertools.pairwise(cuts) if b > a]
