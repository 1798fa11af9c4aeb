"""The pairs of a study by role, and what a seed makes of them: its training queries and its pool."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from darl_rerank.errors import InputError
from darl_rerank.model.prompt import PromptEncoder
from darl_rerank.training.data.labels import hard_grades, label_matrix
from darl_rerank.training.data.sources import load_source, that_fit
from darl_rerank.trec.graded_pairs import GradedPair

from .settings import ROLES, Study, digest

Rows = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Collections:
    """All pairs of a study, each once; sets of them are row numbers.

    Attributes:
        pairs: those of a query one after the other; a query's id stands for its text.
        roles: rows by role, increasing.
        labels: grades, shape (n,); the most probable one of a soft label.
        targets: labels as probabilities, shape (n, K), float32.
        queries: number of each pair's query, shape (n,).
        digest: changes whenever a text, a label or a role does.
        dropped: pairs left out because their query does not fit the prompt, or as repeats, by role.
    """

    pairs: list[GradedPair]
    roles: dict[str, Rows]
    labels: NDArray[np.intp]
    targets: NDArray[np.float32]
    queries: NDArray[np.int64]
    digest: str
    dropped: dict[str, dict[str, int]]

    def of(self, rows: Rows) -> list[GradedPair]:
        return [self.pairs[row] for row in rows]

    def table(self) -> dict[str, Any]:
        """Counts by role, JSON types; of tests also how many documents stand in another role, with other queries."""
        found: dict[str, Any] = {}
        tests = ("home_test", "away_test")
        known = {
            self.pairs[row].key[1] for role, rows in self.roles.items() if role not in tests for row in rows
        }  # fmt: skip
        for role, rows in self.roles.items():
            found[role] = {
                "pairs": len(rows),
                "queries": len(np.unique(self.queries[rows])),
                "grades": np.bincount(self.labels[rows], minlength=self.targets.shape[1]).tolist(),
                "groups": dict(Counter(self.pairs[row].group or "" for row in rows).most_common()),
                **self.dropped[role],
            }
            if role in tests:
                found[role]["documents_elsewhere"] = sum(self.pairs[row].key[1] in known for row in rows)
        return found


def load_collections(study: Study, encoder: PromptEncoder, grades: int) -> Collections:
    """Read all sources.

    Raises:
        InputError: a source can't be read, or two roles share a query.
    """
    roles: dict[str, list[GradedPair]] = {}
    dropped: dict[str, dict[str, int]] = {}
    owner: dict[str, str] = {}
    for role in ROLES:
        read = [pair for source in study.roles[role] for pair in _read(source, grades)]
        fitting = that_fit(read, encoder)
        roles[role] = _once(fitting)
        dropped[role] = {"too_long": len(read) - len(fitting), "repeated": len(fitting) - len(roles[role])}
        for pair in roles[role]:
            other = owner.setdefault(pair.key[0], role)
            if other != role:
                raise InputError(f"the roles {other} and {role} share the query {pair.query[:60]!r}")
    pairs = [pair for role in ROLES for pair in roles[role]]
    starts = np.cumsum([0, *(len(roles[role]) for role in ROLES)])
    numbers: dict[str, int] = {}
    return Collections(
        pairs=pairs,
        roles={role: np.arange(starts[i], starts[i + 1]) for i, role in enumerate(ROLES)},
        labels=hard_grades(pairs),
        targets=label_matrix(pairs, grades),
        queries=np.array([numbers.setdefault(pair.qid, len(numbers)) for pair in pairs], dtype=np.int64),
        digest=digest([
            (role, pair.query, pair.document, pair.grade, pair.probabilities) for role in ROLES for pair in roles[role]
        ]),
        dropped=dropped,
    )  # fmt: skip


def _read(source: Any, grades: int) -> list[GradedPair]:
    return [replace(pair, qid=f"{source.name}/{pair.qid}") for pair in load_source(source, grades).train]


def _once(pairs: Sequence[GradedPair]) -> list[GradedPair]:
    """Each pair of texts once, those of equal queries together under one id."""
    queries: dict[str, dict[str, GradedPair]] = {}
    for pair in pairs:
        query, document = pair.key
        members = queries.setdefault(query, {})
        first = next(iter(members.values()), pair)
        members.setdefault(document, replace(pair, qid=first.qid, query=first.query))
    return [pair for members in queries.values() for pair in members.values()]


@dataclass(frozen=True, slots=True)
class SeedSets:
    """What a seed draws.

    Attributes:
        train: labelled ID pairs.
        pool: unlabelled pairs: the role's own, and ID ones of queries that were not drawn.
    """

    train: Rows
    pool: Rows


def seed_sets(data: Collections, study: Study, seed: int) -> SeedSets:
    """Whole queries of about `home_pairs` pairs for training, and of about `pool_home` of the others for the pool."""
    rows = data.roles["home"]
    order = list(dict.fromkeys(data.queries[rows].tolist()))
    random.Random(seed).shuffle(order)
    sizes = Counter(data.queries[rows].tolist())
    drawn: dict[str, set[int]] = {"train": set(), "pool": set()}
    wanted = {"train": study.home_pairs, "pool": study.pool_home}
    counts = {"train": 0, "pool": 0}
    for query in order:
        use = next((name for name in wanted if counts[name] < wanted[name]), None)
        if use is None:
            break
        drawn[use].add(query)
        counts[use] += sizes[query]

    def members(name: str) -> Rows:
        return rows[np.isin(data.queries[rows], list(drawn[name]))]

    return SeedSets(members("train"), np.concatenate([data.roles["pool"], members("pool")]))
