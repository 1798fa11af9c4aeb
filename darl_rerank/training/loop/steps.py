"""Which query groups are trained on together: optimizer steps, each cut into micro-batches, planned before training.

A plan made from a seed is the same however many processes run it, so two processes that take every other micro-batch
make the steps that one makes alone.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from darl_rerank.errors import InputError
from darl_rerank.model.prompt import PromptEncoder

from ..data.examples import QueryExamples
from ..model.packing import pack

# A step: for each of its micro-batches the places of its queries in the list of examples.
Step = tuple[tuple[int, ...], ...]


def plan_steps(
    sizes: Sequence[int],
    *,
    batch: int,
    micro_batches: int = 1,
    epochs: float = 1.0,
    max_examples: int | None = None,
    seed: int = 0,
) -> list[Step]:
    """Steps of about `batch` examples, whole queries each, every query once an epoch.

    Args:
        sizes: number of examples of each query.
        batch: a step ends as soon as it has so many examples.
        micro_batches: into how many parts a step is cut, equal to within one query's examples.
        epochs: how often each query comes; the last pass may be cut short.
        max_examples: at most so many examples in all.
        seed: of the order.

    Raises:
        InputError: nothing to train on, or fewer queries in a step than micro-batches.
    """
    total = int(sum(sizes) * epochs)
    total = total if max_examples is None else min(total, max_examples)
    rng = random.Random(seed)
    steps: list[Step] = []
    current: list[int] = []
    size = planned = 0
    while planned < total and sizes:
        order = list(range(len(sizes)))
        rng.shuffle(order)
        for query in order:
            if planned >= total:
                break
            current.append(query)
            size += sizes[query]
            planned += sizes[query]
            if size >= batch:
                steps.append(_cut(current, sizes, micro_batches))
                current, size = [], 0
    if not steps:
        if not current:
            raise InputError("there is nothing to train on")
        steps.append(_cut(current, sizes, micro_batches))
    # A short last step would weigh its few examples as much as a whole step's: it is left out.
    return steps


def _cut(queries: Sequence[int], sizes: Sequence[int], parts: int) -> Step:
    """Queries over parts, the largest first to the part that is smallest so far."""
    if len(queries) < parts:
        raise InputError(
            f"a step of {len(queries)} queries can't be cut into {parts} micro-batches; "
            "make the batch larger or take fewer documents a query"
        )
    members: list[list[int]] = [[] for _ in range(parts)]
    load = [0] * parts
    for query in sorted(queries, key=lambda q: -sizes[q]):
        part = min(range(parts), key=lambda i: (load[i], len(members[i])))
        members[part].append(query)
        load[part] += sizes[query]
    return tuple(tuple(part) for part in members)


class MicroBatches(torch.utils.data.Dataset[dict[str, Any]]):
    """The micro-batches of a plan as tensors, tokenised on access.

    An item has `inputs` for `GradeModel`; `targets` (n, K), `weights` (n,), `queries` (n,) and `groups` (n,) for the
    loss, and `share` = 1 / (the weights of all examples of the step), by which a sum becomes the step's mean.
    """

    def __init__(self, examples: Sequence[QueryExamples], plan: Sequence[Step], encoder: PromptEncoder) -> None:
        self._examples, self._plan, self._encoder = examples, plan, encoder
        self.micro_batches = len(plan[0])
        self.groups = sorted({example.group for example in examples})

    def __len__(self) -> int:
        return len(self._plan) * self.micro_batches

    def __getitem__(self, index: int) -> dict[str, Any]:
        step = self._plan[index // self.micro_batches]
        members = [self._examples[i] for i in step[index % self.micro_batches]]
        packed = pack([self._encoder.encode(member.query, member.documents) for member in members])
        total = sum(float(self._examples[i].weights.sum()) for part in step for i in part)
        return {
            "inputs": {**packed.inputs(), "last": packed.last},
            "targets": _joined([member.targets for member in members]),
            "weights": _joined([member.weights for member in members]),
            "queries": torch.tensor([i for i, member in enumerate(members) for _ in member.documents]),
            "groups": torch.tensor([self.groups.index(m.group) for m in members for _ in m.documents]),
            "share": torch.tensor(1 / total),
            "step": torch.tensor(index // self.micro_batches),
        }


def _joined(arrays: Sequence[np.ndarray[Any, np.dtype[np.float32]]]) -> Tensor:
    return torch.from_numpy(np.concatenate(arrays))
