"""Offline reranking of TREC runs: a job that can be killed at any moment and goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from .arguments import check_count
from .errors import InputError
from .files import atomic_write, check_output_file
from .model.digests import file_sha256
from .progress import Progress, progress_bar
from .results import Ranking
from .trec.fusion import fuse as fuse_rankings
from .trec.journal import Journal
from .trec.runs import Run, RunEntry, check_word, run_lines

Missing = Literal["error", "skip"]
Fusion = Literal["auto", "rrf"]
_SHOWN = 5
# Tokens of a short passage: so many documents at least fill a batch.
_TOKENS = 64


class HasText(Protocol):
    """A document as `darl_rerank.trec.corpora` and the adapters give it."""

    @property
    def full_text(self) -> str: ...


class CanRerank(Protocol):
    """What jobs need of a `Reranker`."""

    @property
    def fingerprint(self) -> str: ...

    @property
    def batch_tokens(self) -> int: ...

    @property
    def rerank_many(self) -> Callable[..., Sequence[Ranking]]: ...


@dataclass(frozen=True, slots=True)
class RerankJob:
    """What is reranked, ready to run: every query has a topic and every document a text.

    Attributes:
        queries: query text by query id, in the run's order.
        candidates: for each query the documents to rerank, (docid, text), in retrieval order.
        scores: for each query what the first stage scored these documents.
        skipped: (qid, docid) of documents that had no text and were left out.
        unused_topics: how many topics the run has no documents for.
    """

    queries: dict[str, str]
    candidates: dict[str, list[tuple[str, str]]]
    scores: dict[str, list[float]] = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    unused_topics: int = 0

    @property
    def sha256(self) -> str:
        """Digest of all texts and ids, so that a journal can tell a changed corpus."""
        text = json.dumps([self.queries, self.candidates], ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


def wanted_documents(run: Run, depth: int) -> set[str]:
    """Ids of the first `depth` documents of every query."""
    check_count("depth", depth)
    return {entry.docid for entries in run.values() for entry in entries[:depth]}


def prepare(
    run: Run, topics: Mapping[str, str], documents: Mapping[str, HasText], *, depth: int, missing: Missing = "error"
) -> RerankJob:
    """Bring run, topics and documents together.

    Args:
        run: as `read_run` gives it.
        topics: query text by id.
        documents: texts by id, at least those of `wanted_documents`.
        depth: how many documents of each query are reranked; the rest is left out.
        missing: what to do with a document that has no text or is not there: "error", or "skip" it.

    Raises:
        InputError: a query of the run has no topic, or (missing="error") a document has no text.
    """
    if absent := [qid for qid in run if qid not in topics]:
        raise InputError(f"{len(absent)} queries of the run have no topic: {_some(absent)}")
    job = RerankJob({qid: topics[qid] for qid in run}, {}, unused_topics=len(topics.keys() - run.keys()))
    for qid, entries in run.items():
        kept, scores = job.candidates.setdefault(qid, []), job.scores.setdefault(qid, [])
        for entry in entries[:depth]:
            text = _text(documents, entry)
            if text:
                kept.append((entry.docid, text))
                scores.append(entry.score)
            else:
                job.skipped.append((qid, entry.docid))
    if job.skipped and missing == "error":
        places = [f"{docid} (query {qid})" for qid, docid in job.skipped]
        raise InputError(
            f"{len(places)} documents of the run are not in the corpus or are empty there: {_some(places)}; "
            "--missing skip leaves them out"
        )
    return job


def _text(documents: Mapping[str, HasText], entry: RunEntry) -> str:
    document = documents.get(entry.docid)
    return "" if document is None else document.full_text.strip()


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (" …" if len(names) > _SHOWN else "")


@dataclass(frozen=True, slots=True)
class Choices:
    """What `rerank_run` does with each query; its arguments say more."""

    top_k: int | None = None
    fuse: Fusion | None = None
    rules: Mapping[str, Any] = field(default_factory=dict)
    effort: Mapping[str, Any] = field(default_factory=dict)
    tag: str = "darl-rerank"

    def __post_init__(self) -> None:
        if self.top_k is not None:
            check_count("top_k", self.top_k)
        check_word("tag", self.tag)

    @property
    def identity(self) -> dict[str, Any]:
        """As JSON types, for a journal."""
        return {"top_k": self.top_k, "fuse": self.fuse, "rules": self.given, "effort": given(self.effort),
                "tag": self.tag}  # fmt: skip

    @property
    def given(self) -> dict[str, Any]:
        """The rules of `Reranker.rerank` that were given, a fusion by scores among them."""
        return given(self.rules) | ({"fuse": "auto"} if self.fuse == "auto" else {})


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those options that are not None."""
    return {name: value for name, value in options.items() if value is not None}


@dataclass(frozen=True, slots=True)
class RunReport:
    """What became of a job's documents.

    Attributes:
        not_judged: how many of those written could not be judged; they stand last.
        cut: how many stayed out because of a cut or a lowest grade.
        warned: of how many of the queries that this call judged a ranking warns.
        warning: the first such warning, "" if there is none.
        queries, documents: how many were reranked.
        skipped: (qid, docid) of documents that had no text and were left out.
        unused_topics: how many topics the run has no documents for.
    """

    not_judged: int
    cut: int = 0
    warned: int = 0
    warning: str = ""
    queries: int = 0
    documents: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    unused_topics: int = 0


def rerank_run(
    reranker: CanRerank,
    job: RerankJob,
    output: str | Path,
    *,
    details: str | Path | None = None,
    top_k: int | None = None,
    fuse: Fusion | None = None,
    rules: Mapping[str, Any] | None = None,
    effort: Mapping[str, Any] | None = None,
    tag: str = "darl-rerank",
    settings: Mapping[str, Any] | None = None,
    restart: bool = False,
    progress: Progress = True,
) -> RunReport:
    """Rerank a job into a run file; the same call after a kill goes on and ends with the same bytes.

    A document that could not be judged stands last in the run; `details` says why.

    Args:
        reranker: what judges.
        job: from `prepare`.
        output: the run to write. While the job lasts, `<output>.journal` stands beside it.
        details: a JSONL to write beside it, one line a document: unrounded score, grade, probabilities, novelty.
        top_k: how many documents of each query to write; all if None.
        fuse: write the order of a fusion with the first stage's: "auto" of both scores, see `Reranker.rerank`, "rrf" of
            both places. The run's scores are then the fusion's, those of `details` stay the model's.
        rules: `cut`, `min_grade`, `min_probability`, `prevalence` of `Reranker.rerank`.
        effort: its `budget_ms` and `depth`. How many documents a budget suffices for depends on the machine: the run
            that a killed job ends with then is not the one it would have been.
        tag: the run's name.
        settings: further options that decide the result, kept in the journal.
        restart: begin anew even if a journal is there.
        progress: see `darl_rerank.progress`.

    Raises:
        InputError: the journal is of another job, `top_k` below 1, an output that is a folder, an id that can't stand
            in a run, or rules that are none.
        DarlRerankError: an output can't be written.
    """
    choices = Choices(top_k, fuse, rules or {}, effort or {}, tag)
    for path in (output, details):
        if path is not None:
            check_output_file(path)
    output = Path(output)
    identity = {
        "model": reranker.fingerprint,
        "input": job.sha256,
        **choices.identity,
        "first_stage": hashlib.sha256(json.dumps(job.scores).encode()).hexdigest() if fuse == "auto" else None,
        "details": details is not None,
        **(settings or {}),
    }
    total = sum(map(len, job.candidates.values()))
    warnings: list[str] = []
    with Journal(output.with_name(output.name + ".journal"), identity, restart=restart) as journal:
        done = sum(len(job.candidates[qid]) for qid in journal.finished)
        with progress_bar("reranking", total, unit="doc", done=done, progress=progress) as bar:
            for qid, ranking in judged(reranker, job, choices, finished=journal.finished):
                journal.append(qid, [ranked.to_dict() for ranked in ranking])
                warnings += ranking.warnings[:1]
                bar.update(len(job.candidates[qid]))
        if details is not None:
            with atomic_write(details) as stream:
                for qid in job.queries:
                    stream.write(Written.of(job, qid, journal.finished[qid], choices).details(qid))
        kept = not_judged = 0
        with atomic_write(output) as stream:
            for qid in job.queries:
                values = journal.finished[qid]
                written = Written.of(job, qid, values, choices)
                kept += len(values)
                not_judged += written.not_judged
                stream.write(written.run_lines(qid, tag))
        journal.remove()
    return RunReport(
        not_judged,
        total - kept if choices.given else 0,
        len(warnings),
        warnings[0] if warnings else "",
        queries=len(job.queries),
        documents=total,
        skipped=job.skipped,
        unused_topics=job.unused_topics,
    )


def judged(
    reranker: CanRerank, job: RerankJob, choices: Choices, *, finished: Collection[str] = ()
) -> Iterator[tuple[str, Ranking]]:
    """The ranking of each query that is not `finished`, in order.

    Queries are judged in blocks which depend on the job alone: a job that goes on after a kill judges each pair in the
    company it would have had, since in bfloat16 or int8 another batch may round another way.
    """
    # What was left out counts for the blocks, so that they are known before any text is read.
    sizes = Counter(qid for qid, _ in job.skipped)
    sizes.update({qid: len(candidates) for qid, candidates in job.candidates.items()})
    for block in blocks(((qid, sizes[qid]) for qid in job.candidates), reranker.batch_tokens):
        if all(qid in finished for qid in block):
            continue
        documents = [_documents(job, qid, with_scores=choices.fuse == "auto") for qid in block]
        # A fusion counts every place, and what was cut is told from what lies below top_k.
        kept = None if choices.fuse or choices.given else choices.top_k
        rankings = reranker.rerank_many(
            [job.queries[qid] for qid in block], documents, top_k=kept, **choices.given, **given(choices.effort)
        )
        yield from ((q, ranking) for q, ranking in zip(block, rankings, strict=True) if q not in finished)


_Query = TypeVar("_Query")
_Scored = list[tuple[str, float | None]]


def blocks(sizes: Iterable[tuple[_Query, int]], batch_tokens: int) -> Iterator[list[_Query]]:
    """Queries that are judged together, so many that their documents fill a batch of the engine.

    Args:
        sizes: queries, each with the number of its documents.
        batch_tokens: `Reranker.batch_tokens`.
    """
    block: list[_Query] = []
    waiting = 0
    for query, documents in sizes:
        block.append(query)
        waiting += documents
        if waiting * _TOKENS >= batch_tokens:
            yield block
            block, waiting = [], 0
    if block:
        yield block


def _documents(job: RerankJob, qid: str, *, with_scores: bool) -> list[dict[str, Any]]:
    documents: list[dict[str, Any]] = [{"id": docid, "text": text} for docid, text in job.candidates[qid]]
    if with_scores:
        # A job made by hand may have none: then places count.
        for document, score in zip(documents, job.scores.get(qid, ()), strict=False):
            document["score"] = score
    return documents


@dataclass(frozen=True, slots=True)
class Written:
    """What is written of one query.

    Attributes:
        scored: (docid, score) of the run, best first.
        entries: what was judged of each of these documents.
    """

    scored: _Scored
    entries: Sequence[dict[str, Any]]

    @classmethod
    def of(cls, job: RerankJob, qid: str, values: Sequence[dict[str, Any]], choices: Choices) -> Written:
        """What is written of a query whose documents were judged as `values` says (`RankedDocument.to_dict`)."""
        if choices.fuse != "rrf":
            values = values[: choices.top_k]
        scored: _Scored = [(entry["docid"], entry.get("fused", entry["score"])) for entry in values]
        if choices.fuse == "rrf":
            scored = _fused(job.candidates[qid], scored, choices.top_k)
            values = _in_order(values, scored)
        return cls(scored, values)

    def run_lines(self, qid: str, tag: str) -> str:
        """The query's lines of the run."""
        return run_lines(qid, self.scored, tag)

    def details(self, qid: str) -> str:
        """A JSON line for each document."""
        return "".join(json.dumps({"qid": qid, **entry}, ensure_ascii=False) + "\n" for entry in self.entries)

    @property
    def not_judged(self) -> int:
        return sum(not entry["judged"] for entry in self.entries)


def _fused(candidates: Sequence[tuple[str, str]], ranking: _Scored, top_k: int | None) -> _Scored:
    """(docid, score) of both orders fused by their places, best first; what was cut from the second is in neither."""
    kept = {docid for docid, _ in ranking}
    hits = fuse_rankings([[docid for docid, _ in candidates if docid in kept], ranking], top_k=top_k)
    return [(hit.docid, hit.score) for hit in hits]


def _in_order(values: Sequence[dict[str, Any]], scored: _Scored) -> list[dict[str, Any]]:
    """What was judged of each document, in the order of `scored` and with its ranks."""
    by_docid = {entry["docid"]: entry for entry in values}
    return [{**by_docid[docid], "rank": rank} for rank, (docid, _) in enumerate(scored, 1)]


def input_digests(**paths: Path | None) -> dict[str, str | None]:
    """Digest of each input file, for a journal's settings; None for what is not a file."""
    return {name: file_sha256(path) if path is not None and path.is_file() else None for name, path in paths.items()}
