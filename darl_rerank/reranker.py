"""Reranker: the public face. Queries and documents in, documents in order of expected gain out."""

from __future__ import annotations

import asyncio
import math
import os
import threading
import time
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, get_args

import numpy as np

from .arguments import check_count
from .documents import QueryGroup, read_document, read_group, read_groups, read_query
from .effort import Depth, judge_from_the_top
from .engines.base import Engine
from .errors import InputError
from .judging import Judge
from .model.checkpoint import Checkpoint
from .model.prompt import LongDocuments
from .model.scale import RelevanceScale
from .model.shipped import DEFAULT
from .options import Options, RerankOptions
from .ranking import rank
from .results import PairScores, Ranking
from .rules import Fuse, Prevalence, Rules

if TYPE_CHECKING:
    from .cross_encoder import CrossEncoderView
    from .engines.loading import Exit
    from .queue.token_queue import TokenQueue

# Lengths of the documents of `Reranker.warm_up`, in sentences of eight words; twice, since the first run of a length is
# the slow one.
_WARM_UP = (1, 4, 16, 64) * 2


class Reranker:
    """Judges query-document pairs on an ordered scale and orders documents by expected gain.

    Safe to call from several threads. It may be pickled and go to another process, which loads the engine anew. A
    pair's result depends on the pair alone: not on what else is in the batch, on batch size or on order, to within
    rounding of the engine's number format (docs/reliability.md states the bounds).

    Args:
        checkpoint: the model.
        engine: what runs it.
        batch_tokens: token budget of a micro-batch; the engine's own if None.
        share_prefix: run instruction and query once for all documents of a query.
        long_documents: "truncate" cuts documents that do not fit the prompt's length and says so in the result;
            "window" splits them into overlapping windows, at most 256, takes the one with the best score and says where
            it is.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        engine: Engine,
        *,
        batch_tokens: int | None = None,
        share_prefix: bool = True,
        long_documents: LongDocuments = "truncate",
    ) -> None:
        if batch_tokens is not None:
            check_count("batch_tokens", batch_tokens)
        if long_documents not in get_args(LongDocuments):
            raise InputError(f"long_documents must be one of {get_args(LongDocuments)}, got {long_documents!r}")
        self.checkpoint = checkpoint
        self.engine = engine
        self.long_documents: LongDocuments = long_documents
        self._judge = Judge(
            checkpoint,
            engine,
            batch_tokens=batch_tokens or engine.batch_tokens,
            share_prefix=share_prefix,
            long_documents=long_documents,
        )
        self._queue: TokenQueue | None = None
        # Whose thread the queue has: a forked process has none.
        self._queue_process = 0
        self._queue_lock = threading.Lock()

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | None = None,
        *,
        revision: str | None = None,
        engine: str = "auto",
        device: str | None = None,
        precision: str | None = None,
        batch_tokens: int | None = None,
        long_documents: LongDocuments = "truncate",
        exit: Exit = "auto",
    ) -> Reranker:
        """Load a checkpoint and the engine that runs it.

        Args:
            model: a checkpoint folder, exported or not, the name of a checkpoint that comes with the package
                (`darl_rerank.model.shipped.shipped_names`), or "org/name" on the Hugging Face hub; None for
                "smollm2-darl".
            revision: a branch, tag or commit on the hub; the main branch if None.
            engine: "torch", "onnx", or "auto": onnx for an exported folder; on a CPU with int8 and without bfloat16
                products onnx too, with an int8 export that is made once and passed its gate; torch otherwise.
            device: "cpu", "cuda", "cuda:1" …; the first GPU that the engine can use, else the CPU, if None.
            precision: number format; the best that the device has in hardware if None (an export has its own).
            batch_tokens: token budget of a micro-batch; one that suits engine and device if None.
            long_documents: see the class.
            exit: "auto" lets pairs that are plainly irrelevant leave the model early, where the checkpoint has exits
                with a rule (`darl_rerank.model.exits`); "off" runs all layers for every pair.

        Raises:
            InputError: no checkpoint there, one with missing or changed files, or an unknown option.
            DarlRerankError: the hub was not reached, and its cache does not have the model.
            MissingDependencyError: the engine's runtime is not installed.
        """
        from .engines.fast_export import fast_export
        from .engines.loading import load_engine

        checkpoint = Checkpoint.load(DEFAULT if model is None else model, revision=revision)
        if engine == "auto":
            checkpoint = fast_export(checkpoint, device=device, precision=precision) or checkpoint
        runner = load_engine(checkpoint, engine, device=device, precision=precision, exit=exit)
        return cls(checkpoint, runner, batch_tokens=batch_tokens, long_documents=long_documents)

    @property
    def judge(self) -> Judge:
        """Judges query groups that were tokenised before, for a server that fills batches across requests."""
        return self._judge

    @property
    def scale(self) -> RelevanceScale:
        return self.checkpoint.scale

    @property
    def fingerprint(self) -> str:
        """Digest of the model and of everything in the engine's set-up that can change a result beyond rounding."""
        checkpoint = self.checkpoint if self.engine.exits is not None else self.checkpoint.replace(exits=None)
        return f"{checkpoint.fingerprint}/{self.engine.name}/{self.engine.precision}/{self.long_documents}"

    @property
    def batch_tokens(self) -> int:
        """Token budget of a micro-batch."""
        return self._judge.batch_tokens

    def as_cross_encoder(self) -> CrossEncoderView:
        """This reranker with `predict` and `rank` as sentence-transformers' CrossEncoder has them.

        For what takes a CrossEncoder: BEIR's `Rerank`, `mine_hard_negatives`, evaluators.
        """
        from .cross_encoder import CrossEncoderView

        return CrossEncoderView(self)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled and copied without what runs it: its engine is loaded anew, in another process for instance."""
        engine, judge = self.engine, self._judge
        settings = {"device": engine.device, "precision": engine.precision, "exit": "auto" if engine.exits else "off"}
        own = {"share_prefix": judge.share_prefix, "long_documents": judge.long_documents}
        return _loaded_again, (type(self), self.checkpoint, engine.name, settings, judge.batch_tokens, own)

    def __repr__(self) -> str:
        folder = self.checkpoint.folder
        name = self.checkpoint.base.name if folder is None else folder.name
        engine = self.engine
        return f"Reranker({name!r}, engine={engine.name!r}, device={engine.device!r}, precision={engine.precision!r})"

    def rerank(
        self,
        query: str,
        documents: Iterable[Any],
        *,
        top_k: int | None = None,
        strict: bool = False,
        cut: str | None = None,
        min_grade: str | int | None = None,
        min_probability: float | None = None,
        fuse: Fuse | None = None,
        prevalence: Prevalence | None = None,
        budget_ms: float | None = None,
        depth: Depth | None = None,
    ) -> Ranking:
        """Order documents by expected gain, the best first; ties keep the order they came in.

        A document that can't be judged (empty, None, without text) costs only itself: it comes last, `judged` is False
        and `reason` says why. A query so long that no document fits beside it is cut to half of the model's length, and
        the result says so (`query_truncated`).

        Args:
            query: its text.
            documents: any iterable of strings, mappings or objects, with an id under one of
                `darl_rerank.documents.ID_FIELDS`, a `title` if there is one, and a text under one of `TEXT_FIELDS`
                (`text`, `contents`, `content`, `page_content` …).
            top_k: how many to return; all if None.
            strict: a query that is too long or a document that can't be judged is an error.
            cut: a promise that the checkpoint has a threshold for, such as "recall 0.9 of relevant": documents below it
                stay out. `Ranking.cut` says how many did, `Ranking.warnings` if the promise is not for this query.
            min_grade: documents of a lower grade, by name or number, stay out.
            min_probability: with `min_grade`: documents of which it is less probable that they have that grade or a
                better one stay out, whatever their own grade is.
            fuse: "auto" orders by the model's score and the first stage's together, both standardised within the query,
                at the checkpoint's weight. The first stage's are the documents' own `score`, where each has one (the
                higher the better); their order, the best first, if not.
            prevalence: the share of each grade among the documents of your traffic, the lowest first, for which
                probabilities, scores and grades are then given; "estimate" for shares estimated from this list.
            budget_ms: milliseconds within which documents are judged, from the top of the list on; those that are left
                follow the judged ones in their order, with `judged` False. Call `warm_up` before: the first call has
                no measurements to go by.
            depth: how many documents from the top of the list are judged, the rest following likewise; "auto" goes on
                as long as a further document reaches the first `top_k` (10 if None) with a probability above the
                checkpoint's bound, see `darl_rerank.model.reach`.

        Raises:
            InputError: a query that is empty or no string, documents that are a lone string, `top_k` or `depth` below
                1, a budget below what a single document takes, a cut that the checkpoint lacks, an unknown grade,
                another argument out of its range; and what `strict` says.
        """
        return self.rerank_many(
            [query],
            [documents],
            top_k=top_k,
            strict=strict,
            cut=cut,
            min_grade=min_grade,
            min_probability=min_probability,
            fuse=fuse,
            prevalence=prevalence,
            budget_ms=budget_ms,
            depth=depth,
        )[0]

    async def rerank_async(self, query: str, documents: Iterable[Any], **options: Unpack[RerankOptions]) -> Ranking:
        """`rerank` without holding up the event loop; calls that wait at the same time fill their batches together.

        The ranking is that of `rerank`, and so are the arguments, but for these: the time that a call waits for others
        counts towards `budget_ms`, and where not one document fits into what is left, none is judged. A document on
        which the engine fails costs only itself. Cancelling the call takes it out of the queue.

        Raises:
            InputError: as `rerank`, but for a budget below what a single document takes.
            QueueError: the engine failed on every document.
        """
        from .queue.jobs import Job, make_job

        arrived = time.monotonic()
        asked = Options.read(self.checkpoint, options)

        def tokenised() -> Job:
            group = read_group(query, documents, strict=asked.strict)
            return make_job(
                self._judge, group, asked.rules, asked.effort, arrived=arrived, top_k=asked.top_k, strict=asked.strict
            )

        job = await asyncio.to_thread(tokenised)
        self._running_queue().submit([job])
        return (await asyncio.wrap_future(job.result)).ranking

    def rerank_many(
        self,
        queries: Iterable[str],
        documents_per_query: Iterable[Iterable[Any]],
        **options: Unpack[RerankOptions],
    ) -> list[Ranking]:
        """`rerank` for several queries at once; batches are filled across queries, or (given `budget_ms` or `depth`)
        one query is judged after the other, each with its own budget.

        Args:
            queries: their texts.
            documents_per_query: for each query its documents, as `rerank` takes them.
            options: the keyword arguments of `rerank`.

        Raises:
            InputError: as `rerank`, or the two differ in length.
        """
        asked = Options.read(self.checkpoint, options)
        started = time.perf_counter()
        groups = read_groups(queries, documents_per_query, strict=asked.strict)
        judged = self._judge_all(groups, asked, started)
        return [
            rank(group, scores, asked.rules, reasons=reasons, top_k=asked.top_k)
            for group, (scores, reasons) in zip(groups, judged, strict=True)
        ]

    def warm_up(self) -> None:
        """Judge some made-up pairs, so that the first request is not the slow one and `budget_ms` has measurements."""
        for sentences in _WARM_UP:
            documents = [f"{i}. " + "Indoor cats live for 12 to 18 years. " * sentences for i in range(4)]
            self.rerank("how long do cats live", documents)

    def score_pairs(
        self,
        pairs: Iterable[tuple[str, Any]],
        *,
        features: bool = False,
        strict: bool = True,
        prevalence: Prevalence | None = None,
    ) -> PairScores:
        """Judge (query, document) pairs; pair i of the result is pair i of the input.

        Args:
            pairs: queries with documents, each as `rerank` takes them.
            features: also return the novelty features, shape (n, F).
            strict: as in `rerank`, but on by default: arrays go into computations, through which the NaN of a pair that
                was not judged would spread unnoticed. If False, such a pair has NaN for score, probabilities and logits
                and -1 for its grade (`PairScores.judged`).
            prevalence: as in `rerank`; "estimate" estimates it from all pairs.

        Raises:
            InputError: as `rerank`, or an element that is not a pair.
        """
        rules = Rules.read(self.checkpoint, prevalence=prevalence)
        if not isinstance(pairs, Iterable):
            raise InputError(f"pairs must be a list of (query, document), got {pairs!r:.60}")
        read = []
        for i, pair in enumerate(pairs):
            if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
                raise InputError(f"pair {i}: expected (query, document), got {pair!r:.60}")
            document = read_document(pair[1])
            if strict and document.fault is not None:
                raise InputError(f"pair {i}: {document.fault}")
            read.append((read_query(pair[0], f"pair {i}: "), document))
        members: dict[str, list[int]] = {}
        for i, (query, document) in enumerate(read):
            if document.fault is None:
                members.setdefault(query, []).append(i)
        encoded = [
            self._judge.encode(query, [read[i][1].text for i in places], strict=strict)
            for query, places in members.items()
        ]
        places = np.array([i for indices in members.values() for i in indices], dtype=np.intp)
        return rules.shifted(self._judge.judge(encoded, features=features).spread(len(read), places))

    def _running_queue(self) -> TokenQueue:
        """The queue of `rerank_async`, whose thread starts with the first call and ends with the reranker."""
        from .queue.token_queue import TokenQueue

        with self._queue_lock:
            if self._queue is None or self._queue_process != os.getpid():
                self._queue_process = os.getpid()
                # Whoever awaits can't be told to come again later, so all that come are taken.
                self._queue = TokenQueue(self._judge, max_tokens=math.inf)
                self._queue.start()
                weakref.finalize(self, self._queue.close)
            return self._queue

    def _judge_all(
        self, groups: Sequence[QueryGroup], asked: Options, started: float
    ) -> list[tuple[PairScores, dict[int, str]]]:
        """For each group a row a document, and why a document was not judged, by its place."""
        result: list[tuple[PairScores, dict[int, str]]] = []
        if asked.effort is not None:
            for group in groups:
                result.append(
                    judge_from_the_top(self._judge, group, asked.effort, started=started, strict=asked.strict)
                )
                started = time.perf_counter()
            return result
        encoded = [
            self._judge.encode(group.query, [group.documents[i].text for i in group.readable], strict=asked.strict)
            for group in groups
        ]
        scores = self._judge.judge(encoded)
        start = 0
        for group in groups:
            places = np.array(group.readable, dtype=np.intp)
            faults = {i: document.fault for i, document in enumerate(group.documents) if document.fault is not None}
            result.append((scores[start : start + len(places)].spread(len(group.documents), places), faults))
            start += len(places)
        return result


def _loaded_again(
    cls: type[Reranker],
    checkpoint: Checkpoint,
    engine: str,
    settings: dict[str, Any],
    batch_tokens: int,
    own: dict[str, Any],
) -> Reranker:
    """See `Reranker.__reduce__`."""
    from .engines.loading import load_engine

    return cls(checkpoint, load_engine(checkpoint, engine, **settings), batch_tokens=batch_tokens, **own)
