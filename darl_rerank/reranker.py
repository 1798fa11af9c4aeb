"""Reranker: the public face. Queries and documents in, documents in order of expected gain out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from .documents import docid_and_text
from .engines.base import Engine, grade_groups
from .errors import InputError
from .model.checkpoint import Checkpoint
from .model.prompt import LongDocuments, PromptGroup
from .model.scale import RelevanceScale
from .model.shipped import DEFAULT
from .results import PairScores, RankedDocument


class Reranker:
    """Judges query-document pairs on an ordered scale and orders documents by expected gain.

    Safe to call from several threads. A pair's result depends on the pair alone: not on what else is in the batch,
    on batch size or on order, to within rounding of the engine's number format (docs/performance.md states the bounds).

    Args:
        checkpoint: the model.
        engine: what runs it.
        batch_tokens: token budget of a micro-batch; the engine's own if None.
        share_prefix: run instruction and query once for all documents of a query.
        long_documents: "truncate" cuts documents that do not fit the prompt's length and says so in the result;
            "window" splits them into overlapping windows and takes the one with the best score.
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
        if batch_tokens is not None and batch_tokens < 1:
            raise InputError(f"batch_tokens must be at least 1, got {batch_tokens}")
        if long_documents not in get_args(LongDocuments):
            raise InputError(f"long_documents must be one of {get_args(LongDocuments)}, got {long_documents!r}")
        self.checkpoint = checkpoint
        self.engine = engine
        self.batch_tokens = batch_tokens or engine.batch_tokens
        self.share_prefix = share_prefix
        self.long_documents: LongDocuments = long_documents
        self._encoder = checkpoint.encoder()

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
    ) -> Reranker:
        """Load a checkpoint and the engine that runs it.

        Args:
            model: a checkpoint folder, exported or not, the name of a checkpoint that comes with the package
                (`darl_rerank.model.shipped.shipped_names`), or "org/name" on the Hugging Face hub; None for
                "smollm2-darl".
            revision: a branch, tag or commit on the hub; the main branch if None.
            engine: "torch", "onnx", or "auto": onnx for an exported folder, torch otherwise.
            device: "cpu", "cuda", "cuda:1" …; the first GPU that the engine can use, else the CPU, if None.
            precision: number format; the best that the device has in hardware if None (an export has its own).
            batch_tokens: token budget of a micro-batch; one that suits engine and device if None.
            long_documents: see the class.

        Raises:
            InputError: no checkpoint there, one with missing or changed files, or an unknown option.
            DarlRerankError: the hub was not reached, and its cache does not have the model.
            MissingDependencyError: the engine's runtime is not installed.
        """
        from .engines.loading import load_engine

        checkpoint = Checkpoint.load(DEFAULT if model is None else model, revision=revision)
        runner = load_engine(checkpoint, engine, device=device, precision=precision)
        return cls(checkpoint, runner, batch_tokens=batch_tokens, long_documents=long_documents)

    @property
    def scale(self) -> RelevanceScale:
        return self.checkpoint.scale

    @property
    def fingerprint(self) -> str:
        """Digest of the model and of everything in the engine's set-up that can change a result beyond rounding."""
        return f"{self.checkpoint.fingerprint}/{self.engine.name}/{self.engine.precision}/{self.long_documents}"

    def rerank(self, query: str, documents: Sequence[Any], *, top_k: int | None = None) -> list[RankedDocument]:
        """Order documents by expected gain, the best first; ties keep the order they came in.

        Args:
            query: its text.
            documents: strings, mappings (`id`/`_id`/`docid`, `title`, `text`/`contents`), or objects with `docid`,
                `title` and `text`.
            top_k: how many to return; all if None.

        Raises:
            InputError: an empty or too long query, an empty document, `top_k` below 1.
        """
        return self.rerank_many([query], [documents], top_k=top_k)[0]

    def rerank_many(
        self, queries: Sequence[str], documents_per_query: Sequence[Sequence[Any]], *, top_k: int | None = None
    ) -> list[list[RankedDocument]]:
        """`rerank` for several queries at once; batches are filled across queries.

        Raises:
            InputError: as `rerank`, or the two sequences differ in length.
        """
        if top_k is not None and top_k < 1:
            raise InputError(f"top_k must be at least 1, got {top_k}")
        if len(queries) != len(documents_per_query):
            raise InputError(f"got {len(queries)} queries but {len(documents_per_query)} lists of documents")
        read = [
            [docid_and_text(document, f"query {q!r}, document {i}") for i, document in enumerate(documents)]
            for q, documents in zip(queries, documents_per_query, strict=True)
        ]
        groups = [self._encode(query, [text for _, text in texts]) for query, texts in zip(queries, read, strict=True)]
        scores = self._grade(groups)
        rankings = []
        start = 0
        for documents, texts in zip(documents_per_query, read, strict=True):
            group = scores[start : start + len(texts)]
            start += len(texts)
            order = np.argsort(-group.score, kind="stable")[:top_k]
            rankings.append([
                self._ranked(rank, int(i), texts[i][0], documents[i], group) for rank, i in enumerate(order, 1)
            ])  # fmt: skip
        return rankings

    def score_pairs(self, pairs: Sequence[tuple[str, Any]], *, features: bool = False) -> PairScores:
        """Judge (query, document) pairs; pair i of the result is pair i of the input.

        Args:
            pairs: queries with documents, each as `rerank` takes them.
            features: also return the novelty features, shape (n, F).

        Raises:
            InputError: as `rerank`.
        """
        members: dict[str, list[int]] = {}
        for i, (query, _) in enumerate(pairs):
            members.setdefault(query, []).append(i)
        groups = [
            self._encode(query, [docid_and_text(pairs[i][1], f"pair {i}")[1] for i in indices])
            for query, indices in members.items()
        ]
        scores = self._grade(groups, keep_features=features)
        grouped = [i for indices in members.values() for i in indices]
        return scores[np.argsort(grouped, kind="stable")]

    def _encode(self, query: str, texts: Sequence[str]) -> PromptGroup:
        return self._encoder.encode(query, texts, self.long_documents)

    def _grade(self, groups: Sequence[PromptGroup], *, keep_features: bool = False) -> PairScores:
        novelty_model = self.checkpoint.novelty
        output = grade_groups(
            self.engine,
            groups,
            grades=len(self.scale),
            features=keep_features or novelty_model is not None,
            batch_tokens=self.batch_tokens,
            share_prefix=self.share_prefix,
        )
        novelty = None
        if novelty_model is not None:
            novelty = np.zeros(0) if output.features is None else novelty_model.score(output.features)
        probabilities = self.checkpoint.calibration.probabilities(output.logits, novelty)
        score = probabilities @ self.scale.gains
        chosen = self._best_windows(groups, score)
        return PairScores(
            logits=output.logits[chosen],
            probabilities=probabilities[chosen],
            score=score[chosen],
            grade=probabilities[chosen].argmax(axis=1),
            novelty=None if novelty is None else novelty[chosen],
            features=output.features[chosen] if keep_features and output.features is not None else None,
            truncated=np.array([cut for group in groups for cut in group.truncated], dtype=bool),
        )

    @staticmethod
    def _best_windows(groups: Sequence[PromptGroup], score: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """For each document the index of its sequence with the highest score, the first of equals."""
        best: list[int] = []
        start = 0
        for group in groups:
            of_document: dict[int, int] = {}
            for i, owner in enumerate(group.owners, start):
                if owner not in of_document or score[i] > score[of_document[owner]]:
                    of_document[owner] = i
            best.extend(of_document.values())
            start += len(group.owners)
        return np.array(best, dtype=np.intp)

    def _ranked(self, rank: int, index: int, docid: str | None, document: Any, scores: PairScores) -> RankedDocument:
        grade = int(scores.grade[index])
        return RankedDocument(
            rank=rank,
            index=index,
            docid=docid,
            document=document,
            score=float(scores.score[index]),
            grade=grade,
            grade_name=self.scale.grades[grade].name,
            probabilities=tuple(float(p) for p in scores.probabilities[index]),
            novelty=None if scores.novelty is None else float(scores.novelty[index]),
            truncated=bool(scores.truncated[index]),
        )
