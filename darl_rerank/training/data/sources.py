"""Training data: one or several collections, each with its own grade map, negatives, cap and held-out queries.

A collection is a JSONL file of graded pairs, or topics, corpus and qrels. Its labels are brought onto the model's scale
by an explicit map, because they seldom mean the same: "1" of a collection with two labels is neither "related" nor
"perfect", but something between, which a soft label says: `{2: 0.5, 3: 0.5}`.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from darl_rerank.errors import InputError
from darl_rerank.model.prompt import PromptEncoder
from darl_rerank.trec.corpora import load_documents, read_corpus
from darl_rerank.trec.graded_pairs import GradedPair, pairs_from_qrels, read_graded_pairs
from darl_rerank.trec.runs import read_run
from darl_rerank.trec.topics import read_topics

from ..recipe.fields import Target, target_probabilities
from ..recipe.source import LEARNED, Negatives, Source


@dataclass(frozen=True, slots=True)
class SourcePairs:
    """What a source gives.

    Attributes:
        source: where it is from.
        train, dev: its pairs, those of one query one after the other; no query is in both. Of a source for another
            use than training or being known, all are in `train`.
        counts: what was read, drawn and left out, by name.
    """

    source: Source
    train: list[GradedPair]
    dev: list[GradedPair]
    counts: dict[str, int] = field(default_factory=dict)


def load_source(
    source: Source,
    grades: int,
    *,
    names: tuple[str, ...] = (),
    seed: int = 0,
    excluded: Exclusions | None = None,
) -> SourcePairs:
    """Read a source, map its labels, draw its negatives and split its queries.

    Args:
        source: the collection.
        grades: number of grades K of the model.
        names: of the model's grades, lowest first, which a file of pairs may give instead of numbers.
        seed: of all draws; a source's draws don't depend on other sources.
        excluded: queries and documents that must not be trained on.

    Raises:
        InputError: a file can't be read, a label is not in the map, or nothing is left.
    """
    rng = random.Random(f"{seed}/{source.name}")
    pairs = _mapped_pairs(source, grades, names)
    counts = {"judged": len(pairs)}
    queries = _in_part(_by_query(_grouped(source, pairs)), source.part)
    if excluded is not None and source.use in (*LEARNED, "pool"):
        queries = excluded.filter(queries, counts)
    order = sorted(queries)
    rng.shuffle(order)
    if source.max_queries is not None:
        order = order[: source.max_queries + source.dev_queries]
    most = source.max_documents
    chosen = {qid: queries[qid] if most is None else spread(queries[qid], most, rng) for qid in order}
    # Said, since the default is for few documents a query: of long lists it would leave out most, unseen.
    if left_out := sum(len(queries[qid]) - len(chosen[qid]) for qid in order):
        counts["left out by max_documents"] = left_out
    if source.negatives is not None:
        _add_negatives(source, source.negatives, grades, chosen, pairs, rng, excluded, counts)
    if source.dev_queries >= len(order):
        asked = f", {source.dev_queries} of them to be held out" if source.dev_queries else ""
        raise InputError(f"source {source.name}: {len(order)} queries{asked}; nothing is left")
    group = source.group or source.name
    chosen = {
        qid: [pair if pair.group else replace(pair, group=group) for pair in members] for qid, members in chosen.items()
    }
    held_out = set(order[: source.dev_queries])
    train = [pair for qid in order if qid not in held_out for pair in chosen[qid]]
    dev = [pair for qid in order if qid in held_out for pair in chosen[qid]]
    counts |= {"queries": len(order), "train" if source.use == "train" else "pairs": len(train)}
    if source.dev_queries:
        counts["dev"] = len(dev)
    return SourcePairs(source, train, dev, counts)


def labelled(pair: GradedPair, target: Target, grades: int) -> GradedPair:
    """`pair` with the label `target`: a grade if it is certain, else a soft label."""
    soft = target_probabilities(target, grades)
    hard = soft.index(1.0) if 1.0 in soft else None
    return replace(pair, grade=hard, probabilities=None if hard is not None else soft)


def _mapped_pairs(source: Source, grades: int, scale: tuple[str, ...]) -> list[GradedPair]:
    """The source's pairs on the model's scale. The readers map texts to integers: here to places in `targets`."""
    names = None if source.grades is None else list(source.grades)
    places = None if names is None else {name: i for i, name in enumerate(names)}
    own = grades if names is None else None
    if source.pairs is not None:
        labels = "optional" if source.use == "pool" else "required"
        pairs = read_graded_pairs(source.pairs, grades=own, grade_map=places, names=scale, labels=labels)
    elif source.topics is not None and source.corpus is not None and source.run is not None:
        return _pairs_of_run(source.topics, source.corpus, source.run)
    elif source.topics is not None and source.corpus is not None and source.qrels is not None:
        pairs = pairs_from_qrels(
            source.topics, source.corpus, source.qrels, grades=own, grade_map=places, partial=source.partial
        )
    else:
        raise InputError(f"source {source.name} needs either pairs, or topics, corpus and qrels")
    if source.grades is None or names is None:
        return pairs
    targets = [source.grades[name] for name in names]
    return [pair if pair.grade is None else labelled(pair, targets[pair.grade], grades) for pair in pairs]


def _pairs_of_run(topics: Path, corpus: Path, run: Path) -> list[GradedPair]:
    """Every document of a run with its query, unlabelled; those that the corpus lacks are left out."""
    queries = read_topics(topics)
    entries = {qid: found for qid, found in read_run(run).items() if qid in queries}
    documents = load_documents(corpus, {entry.docid for found in entries.values() for entry in found})
    return [
        GradedPair(queries[qid], documents[entry.docid].full_text, None, None, qid, entry.docid)
        for qid, found in entries.items()
        for entry in found
        if entry.docid in documents and documents[entry.docid].full_text
    ]


def _grouped(source: Source, pairs: list[GradedPair]) -> list[GradedPair]:
    """The pairs of the groups wanted, with the group that `groups_file` names."""
    if source.groups_file is None:
        if source.only_groups or source.skip_groups:
            return [p for p in pairs if _wanted(source, p.group or "")]
        return pairs
    group_of = read_topics(source.groups_file)
    named = [replace(pair, group=group_of[pair.qid]) for pair in pairs if pair.qid in group_of]
    unknown = {*source.only_groups, *source.skip_groups} - set(group_of.values())
    if unknown:
        raise InputError(f"source {source.name}: no query has group {sorted(unknown)[0]!r}", path=source.groups_file)
    return [pair for pair in named if _wanted(source, pair.group or "")]


def _wanted(source: Source, group: str) -> bool:
    return group not in source.skip_groups and (not source.only_groups or group in source.only_groups)


def _in_part(queries: dict[str, list[GradedPair]], part: tuple[float, float]) -> dict[str, list[GradedPair]]:
    if part == (0.0, 1.0):
        return queries

    def place(text: str) -> float:
        return int.from_bytes(hashlib.sha256(_folded(text).encode()).digest()[:6], "big") / 2**48

    low, high = part
    return {qid: members for qid, members in queries.items() if low <= place(members[0].query) < high}


def _by_query(pairs: Iterable[GradedPair]) -> dict[str, list[GradedPair]]:
    queries: dict[str, list[GradedPair]] = {}
    for pair in pairs:
        queries.setdefault(pair.qid, []).append(pair)
    return queries


def spread(pairs: Sequence[GradedPair], most: int, rng: random.Random) -> list[GradedPair]:
    """At most `most` pairs of one query, as many of each label as there are, in turn, at random within a label."""
    if len(pairs) <= most:
        return list(pairs)
    strata: dict[Any, list[GradedPair]] = {}
    for pair in pairs:
        strata.setdefault(pair.probabilities or pair.grade, []).append(pair)
    for members in strata.values():
        rng.shuffle(members)
    # The rarest label first: its few pairs are what the query can teach.
    piles = sorted(strata.values(), key=len)
    chosen: list[GradedPair] = []
    while len(chosen) < most:
        for pile in piles:
            if pile and len(chosen) < most:
                chosen.append(pile.pop())
    return chosen


def _add_negatives(
    source: Source,
    negatives: Negatives,
    grades: int,
    chosen: dict[str, list[GradedPair]],
    judged: Sequence[GradedPair],
    rng: random.Random,
    excluded: Exclusions | None,
    counts: dict[str, int],
) -> None:
    if source.corpus is None or source.topics is None:
        raise InputError(f"source {source.name}: negatives need topics and corpus")
    known = {qid: {pair.docid for pair in members} for qid, members in _by_query(judged).items()}
    topics = read_topics(source.topics)
    drawn: dict[str, list[str]] = {qid: [] for qid in chosen}
    if negatives.bm25 and negatives.run is None:
        raise InputError(f"source {source.name}: its BM25 run has not been made")
    if negatives.run is not None and negatives.per_query:
        run = read_run(negatives.run)
        for qid in chosen:
            unjudged = [e.docid for e in run.get(qid, [])[: negatives.depth] if e.docid not in known[qid]]
            candidates = unjudged[negatives.skip :]
            drawn[qid] += rng.sample(candidates, min(negatives.per_query, len(candidates)))
    if negatives.random:
        # Ids alone are held; sorted already by the file's order, which is all that a seeded draw needs.
        ids = [document.docid for document in read_corpus(source.corpus)]
        for qid in chosen:
            taken = known[qid] | set(drawn[qid])
            drawn[qid] += [docid for docid in rng.sample(ids, min(negatives.random, len(ids))) if docid not in taken]
    documents = load_documents(source.corpus, {docid for docids in drawn.values() for docid in docids})
    added = 0
    for qid, docids in drawn.items():
        # The same passage may stand in a corpus under two ids: a copy of a judged one is no negative.
        texts = {" ".join(pair.document.casefold().split()) for pair in chosen[qid]}
        for docid in docids:
            document = documents.get(docid)
            if document is None or not document.full_text:
                continue
            text = document.full_text
            if " ".join(text.casefold().split()) in texts or (excluded is not None and excluded.has_document(text)):
                continue
            blank = GradedPair(topics[qid], text, None, None, qid, docid)
            chosen[qid].append(labelled(blank, negatives.target, grades))
            added += 1
    counts["negatives"] = added


def that_fit(pairs: Sequence[GradedPair], encoder: PromptEncoder) -> list[GradedPair]:
    """The pairs whose query leaves room for a document in the prompt; serving refuses the others too."""
    fits: dict[str, bool] = {}
    for pair in pairs:
        if pair.query not in fits:
            try:
                encoder.encode(pair.query, ["."])
            except InputError:
                fits[pair.query] = False
            else:
                fits[pair.query] = True
    return [pair for pair in pairs if fits[pair.query]]


class Exclusions:
    """Queries and documents that must not be trained on: those of the collections a model will be measured on."""

    def __init__(self, topics: Iterable[Path] = (), corpora: Iterable[Path] = ()) -> None:
        self._queries = {_folded(text) for path in topics for text in read_topics(path).values()}
        self._documents = {hash(_folded(d.full_text)) for path in corpora for d in read_corpus(path)}

    def has_document(self, text: str) -> bool:
        return hash(_folded(text)) in self._documents

    def filter(self, queries: Mapping[str, list[GradedPair]], counts: dict[str, int]) -> dict[str, list[GradedPair]]:
        """The queries without those excluded, and without excluded documents; `counts` says how many went."""
        kept = {qid: members for qid, members in queries.items() if _folded(members[0].query) not in self._queries}
        counts["excluded queries"] = len(queries) - len(kept)
        before = sum(map(len, kept.values()))
        kept = {
            qid: [pair for pair in members if not self.has_document(pair.document)] for qid, members in kept.items()
        }
        kept = {qid: members for qid, members in kept.items() if members}
        counts["excluded documents"] = before - sum(map(len, kept.values()))
        return kept


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())
