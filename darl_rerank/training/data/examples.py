"""Training examples: the labelled pairs of one query together, with their weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from darl_rerank.errors import InputError
from darl_rerank.trec.graded_pairs import GradedPair


@dataclass(frozen=True, slots=True)
class QueryExamples:
    """The examples of one query.

    Attributes:
        query: its text.
        documents: n texts.
        targets: grade probabilities, shape (n, K), float32.
        weights: shape (n,), float32, >= 0.
        group: the domain they count for.
    """

    query: str
    documents: tuple[str, ...]
    targets: np.ndarray[Any, np.dtype[np.float32]]
    weights: np.ndarray[Any, np.dtype[np.float32]]
    group: str

    def __len__(self) -> int:
        return len(self.documents)


def query_examples(pairs: Sequence[GradedPair], grades: int, *, weight: float = 1.0) -> list[QueryExamples]:
    """Graded pairs by query (and group), in the order in which the queries first occur.

    Args:
        pairs: all labelled.
        grades: number of grades K.
        weight: what each of them counts.

    Raises:
        InputError: a pair without a label, or a label that is off the scale.
    """
    queries: dict[tuple[str, str], list[GradedPair]] = {}
    for pair in pairs:
        queries.setdefault((pair.group or "", pair.qid), []).append(pair)
    result = []
    for (group, _), members in queries.items():
        targets = np.zeros((len(members), grades), dtype=np.float32)
        for row, pair in enumerate(members):
            if pair.probabilities is not None and len(pair.probabilities) == grades:
                targets[row] = pair.probabilities
            elif pair.grade is not None and 0 <= pair.grade < grades:
                targets[row, pair.grade] = 1
            else:
                raise InputError(f"a pair of query {pair.query[:60]!r} has no label on the scale 0..{grades - 1}")
        documents = tuple(pair.document for pair in members)
        result.append(
            QueryExamples(members[0].query, documents, targets, np.full(len(members), weight, np.float32), group)
        )
    return result


def in_parts(examples: Sequence[QueryExamples], most: int, seed: int) -> list[QueryExamples]:
    """Queries of more than `most` documents as parts of nearly equal size, each with an even share of every label.

    Otherwise a query with a thousand documents would be one step, in which no other query has a say, and would have to
    be held in memory at once.

    Args:
        examples: of any number of documents.
        most: documents of a part, >= 1.
        seed: of which document comes into which part.
    """
    rng = np.random.default_rng(seed)
    result = []
    for example in examples:
        count = -(-len(example) // most)
        if count == 1:
            result.append(example)
            continue
        drawn = rng.permutation(len(example))
        # Sorted by label, at random within one, and dealt out in turn.
        dealt = drawn[np.argsort(np.arange(example.targets.shape[1]) @ example.targets[drawn].T, kind="stable")]
        for part in (np.sort(dealt[start::count]) for start in range(count)):
            documents = tuple(example.documents[i] for i in part)
            result.append(
                replace(example, documents=documents, targets=example.targets[part], weights=example.weights[part])
            )
    return result


def check_variety(examples: Sequence[QueryExamples]) -> None:
    """Raise InputError unless there are examples of at least two grades."""
    if not examples:
        raise InputError("there is nothing to train on")
    seen = {int(row.argmax()) for example in examples for row in example.targets}
    soft = any(float(row.max()) < 1 for example in examples for row in example.targets)
    if len(seen) < 2 and not soft:
        raise InputError(f"all training examples have grade {seen.pop()}: a model of it would learn nothing else")
