"""The plan of a job: where in the run each part begins and ends, so that a worker reads its own part alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..offline import Choices, HasText, Missing, blocks
from ..trec.lines import Faults, decoded_line
from ..trec.runs import parse_run
from ..trec.topics import read_topics
from .model import Model
from .storage import digest, local_copy, opened

# Wanted ids in, the documents that are there out.
Lookup = Callable[[Collection[str]], Mapping[str, HasText]]

# How many parts there are at most: each is a file.
_PARTS = 20_000
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Task:
    """What a worker is told of a job.

    Attributes:
        model: what judges.
        run, topics: files, absolute or URLs.
        open_documents: called in the worker, gives the texts.
        documents: where these lie, for the digest: a change is another job.
        depth: documents of each query to rerank; None for all.
        missing: see `darl_rerank.offline.prepare`.
        choices: see there.
        details: whether details are written.
        parts: folder of the finished parts.
        part_documents: documents of a part at least, where there are not too many parts then.
    """

    model: Model
    run: str
    topics: str
    open_documents: Callable[[], Lookup]
    documents: str
    depth: int | None
    missing: Missing
    choices: Choices
    details: bool
    parts: str
    part_documents: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What has to be done.

    Attributes:
        parts: start and end of each part in the run's bytes, and its documents, shape (parts, 3), int64.
        queries: how many there are.
        unused_topics: how many topics the run has no documents for.
        fingerprint: of the reranker, see `Reranker.fingerprint`.
        identity: digests of the inputs and what decides the parts, as JSON types.
    """

    parts: NDArray[np.int64]
    queries: int
    unused_topics: int
    fingerprint: str
    identity: dict[str, Any]


def plan(task: Task) -> Plan:
    """Read run and topics once, check them, and cut the run into parts. Runs on a worker.

    Parts are whole blocks of `darl_rerank.offline.blocks`: every pair is judged in the company it has on one machine.

    Raises:
        InputError: a run that is compressed, faulty or has a query in two places, a query without a topic, an input
            that is not there, or what `Model.load` says.
    """
    reranker = task.model.load()
    task.open_documents()
    with local_copy(task.topics) as path:
        topics = read_topics(path).keys()
    seen: set[str] = set()
    absent: list[str] = []
    sha256 = hashlib.sha256()

    def sizes(stream: IO[bytes]) -> Iterator[tuple[_Query, int]]:
        for query in _queries(stream, task.run, sha256.update):
            seen.add(query.qid)
            if query.qid not in topics:
                absent.append(query.qid)
            documents = query.documents if task.depth is None else min(task.depth, query.documents)
            yield replace(query, documents=documents), documents

    with opened(task.run) as stream:
        judged_together = blocks(sizes(stream), reranker.batch_tokens)
        found = np.array([(b[0].start, b[-1].end, sum(q.documents for q in b)) for b in judged_together], np.int64)
    if not len(found):
        raise InputError("the run is empty", path=task.run)
    if absent:
        shown = ", ".join(absent[:_SHOWN]) + (" …" if len(absent) > _SHOWN else "")
        raise InputError(f"{len(absent)} queries of the run have no topic: {shown}")
    parts = _joined(found, max(task.part_documents, int(found[:, 2].sum()) // _PARTS))
    identity = {"run": sha256.hexdigest(), "topics": digest(task.topics), "documents": digest(task.documents),
                "parts": len(parts), "batch_tokens": reranker.batch_tokens}  # fmt: skip
    return Plan(parts, len(seen), len(topics - seen), reranker.fingerprint, identity)


def _joined(found: NDArray[np.int64], documents: int) -> NDArray[np.int64]:
    """Neighbours put together until they have so many documents."""
    parts: list[tuple[int, int, int]] = []
    start, count = None, 0
    for first, end, size in found.tolist():
        start = first if start is None else start
        count += size
        if count >= documents:
            parts.append((start, end, count))
            start, count = None, 0
    if start is not None:
        parts.append((start, int(found[-1, 1]), count))
    return np.array(parts, np.int64)


@dataclass(frozen=True, slots=True)
class _Query:
    """The lines of one query in the run: their bytes [start, end), and how many documents they name."""

    qid: str
    start: int
    end: int
    documents: int


def _queries(stream: IO[bytes], path: str, update: Callable[[bytes], None]) -> Iterator[_Query]:
    """The queries of a run whose lines stand together, read once and with as much memory as one query needs."""
    faults = Faults(path)
    seen: set[str] = set()
    lines: list[tuple[int, str]] = []
    qid, start, offset = "", 0, 0
    for number, raw in enumerate(stream, 1):
        if number == 1 and raw.startswith(b"\x1f\x8b"):
            raise InputError("is compressed: workers read a part of it each, so unpack it first", path=path)
        update(raw)
        try:
            text = decoded_line(raw, number)
        except ValueError as error:
            raise InputError(str(error), path=path, line=number) from error
        if found := text.split(None, 1)[:1]:
            if found[0] != qid:
                if lines:
                    yield _Query(qid, start, offset, _count(lines, faults))
                qid, start, lines = found[0], offset, []
                if qid in seen:
                    raise InputError(
                        f"query {qid} stands in two places: workers read a part of the run each, so sort it by query "
                        "(sort -s -k1,1)", path=path, line=number,
                    )  # fmt: skip
                seen.add(qid)
            lines.append((number, text))
        offset += len(raw)
    if lines:
        yield _Query(qid, start, offset, _count(lines, faults))
    faults.check()


def _count(lines: list[tuple[int, str]], faults: Faults) -> int:
    return sum(map(len, parse_run(lines, faults).values()))
