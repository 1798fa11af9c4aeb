"""A reranker under the interface of sentence-transformers' CrossEncoder, which much of the field's code takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from .errors import InputError
from .model.scale import RelevanceScale
from .progress import progress_bar
from .results import PairScores, Ranking

# Pairs between two updates of the progress bar: enough to fill the engine's batches.
_CHUNK = 1024


class Judging(Protocol):
    """The part of `Reranker` that is used here."""

    @property
    def scale(self) -> RelevanceScale: ...

    def rerank(self, query: str, documents: Iterable[Any], *, top_k: int | None = None) -> Ranking: ...

    def score_pairs(self, pairs: Iterable[tuple[str, Any]], *, strict: bool = True) -> PairScores: ...


class _NoCard:
    """What the evaluators report their figures to."""

    def set_evaluation_metrics(self, evaluator: Any, metrics: Any, epoch: int = 0, step: int = 0) -> None:
        """Nothing: the checkpoint's card says what it was measured with."""


class CrossEncoderView:
    """`predict` and `rank` as sentence-transformers' CrossEncoder has them; from `Reranker.as_cross_encoder()`.

    For BEIR's `Rerank`, for `mine_hard_negatives` and the evaluators of sentence-transformers, and for anything else
    that calls `predict(pairs)`. A score is the expected gain as a share of the scale's range, in [0, 1]; one that was
    not judged (an empty document) is 0. What tunes PyTorch (`batch_size`, `device`, `pool` …) is taken and has no
    effect: the reranker was loaded with its own.

    Args:
        reranker: what judges.
    """

    # The evaluators ask: one score a pair, not one a class.
    num_labels = 1

    model_card_data = _NoCard()

    def __init__(self, reranker: Judging) -> None:
        self.reranker = reranker

    def predict(
        self,
        inputs: Iterable[Sequence[str]] | Sequence[str],
        *arguments: Any,
        show_progress_bar: bool | None = None,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        activation_fn: Any = None,
        apply_softmax: bool | None = False,
        **options: Any,
    ) -> Any:
        """Score (query, document) pairs, in their order.

        Args:
            inputs: pairs, or a single pair.
            show_progress_bar: show one on stderr.
            convert_to_numpy: return an array of float32, shape (n,); a list of tensors if False.
            convert_to_tensor: return one tensor of float32 on the CPU instead.
            activation_fn, apply_softmax: none can be applied, since the scores are no logits.
            arguments, options: ignored, as are all others of sentence-transformers.

        Returns:
            As asked; a single number for a single pair.

        Raises:
            InputError: something that is no pair, an empty query, or an activation.
        """
        if activation_fn is not None or apply_softmax:
            raise InputError("the scores are expected gains, not logits: activation_fn and apply_softmax don't apply")
        pairs: list[Any] = list(inputs)
        single = len(pairs) == 2 and all(isinstance(part, str) for part in pairs)
        if single:
            pairs = [pairs]
        scores = self._scores([(pair[0], pair[1]) for pair in map(_checked, pairs)], bool(show_progress_bar))
        if convert_to_tensor or not convert_to_numpy:
            import torch

            tensor = torch.from_numpy(scores)
            if single:
                return tensor[0]
            return tensor if convert_to_tensor else list(tensor)
        return scores[0] if single else scores

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None = None,
        return_documents: bool = False,
        *arguments: Any,
        **options: Any,
    ) -> list[dict[str, Any]]:
        """Rank documents, the best first, in exactly the order of `Reranker.rerank`.

        Args:
            query: its text.
            documents: their texts.
            top_k: how many to return; all if None.
            return_documents: add the text.
            arguments, options: ignored, as are all others of sentence-transformers.

        Returns:
            A mapping a document, with corpus_id (its place in `documents`), score, and text if asked for.

        Raises:
            InputError: an empty query, documents that are a lone string, or `top_k` below 1.
        """
        # A lone string is no list of documents, which `rerank` says.
        texts = documents if isinstance(documents, str) else list(documents)
        found = []
        for ranked in self.reranker.rerank(query, texts, top_k=top_k) if texts else []:
            gain = np.array(np.nan if ranked.score is None else ranked.score)
            entry: dict[str, Any] = {"corpus_id": ranked.index, "score": float(self.reranker.scale.relevance(gain))}
            found.append({**entry, "text": texts[ranked.index]} if return_documents else entry)
        return found

    def start_multi_process_pool(self, target_devices: Any = None) -> dict[str, Any]:
        """Nothing: the reranker runs where it was loaded. Here for callers that ask for a pool."""
        return {}

    def stop_multi_process_pool(self, pool: Any) -> None:
        """Nothing, see `start_multi_process_pool`."""

    def _scores(self, pairs: list[tuple[str, str]], show: bool) -> np.ndarray[Any, np.dtype[np.float32]]:
        """A query's pairs are judged together, so that its prompt prefix is run once."""
        order = sorted(range(len(pairs)), key=lambda i: str(pairs[i][0]))
        scores = np.zeros(len(pairs), dtype=np.float32)
        with progress_bar("scoring", len(pairs), unit="pair", progress=show) as bar:
            for start in range(0, len(order), _CHUNK):
                rows = order[start : start + _CHUNK]
                found = self.reranker.score_pairs([pairs[i] for i in rows], strict=False)
                scores[rows] = self.reranker.scale.relevance(found.score)
                bar.update(len(rows))
        return scores


def _checked(pair: Any) -> Any:
    if isinstance(pair, str) or not hasattr(pair, "__len__") or len(pair) != 2:
        raise InputError(f"expected (query, document) pairs, got {pair!r:.80}")
    return pair
