"""MTEB: the reranker as a cross-encoder for its reranking tasks."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from darl_rerank import Reranker
from darl_rerank.errors import InputError

from .judgement import require

require("mteb", "mteb", "2.20.0")

from mteb.models.model_meta import ModelMeta


class DarlMtebModel:
    """What `mteb.evaluate` takes (its CrossEncoderProtocol): pairs in, relevance in [0, 1] out.

    Args:
        model_name: a checkpoint's folder or name, as `Reranker.from_pretrained` takes it; or a reranker.
        revision: of a checkpoint on the hub.
        device: to load it on.
        options: other arguments of `Reranker.from_pretrained`.
        name: "organization/model" under which results are kept.
    """

    def __init__(
        self,
        model_name: str | Path | Reranker,
        revision: str | None = None,
        device: str | None = None,
        *,
        name: str | None = None,
        **options: Any,
    ) -> None:
        if isinstance(model_name, (str, Path)):
            self.reranker = Reranker.from_pretrained(model_name, revision=revision, device=device, **options)
            name = name or _name(str(model_name))
        else:
            self.reranker = model_name
            folder = self.reranker.checkpoint.folder
            name = name or _name("checkpoint" if folder is None else folder.name)
        self._encoder = self.reranker.as_cross_encoder()
        checkpoint = self.reranker.checkpoint
        self.mteb_model_meta = ModelMeta.create_empty(
            overwrites={
                "name": name,
                "revision": revision or checkpoint.fingerprint[:12],
                "max_tokens": checkpoint.prompt.max_length,
                "model_type": ["cross-encoder"],
                "adapted_from": checkpoint.base.name,
                "use_instructions": False,
            }
        )

    def predict(self, inputs1: Iterable[Any], inputs2: Iterable[Any], **options: Any) -> NDArray[np.float32]:
        """Relevance of each pair, shape (n,).

        Args:
            inputs1: batches with the queries' texts under "text".
            inputs2: batches with the documents' texts, pair for pair.
            options: what MTEB says of the task; nothing depends on it.

        Raises:
            InputError: not as many queries as documents, or an empty query.
        """
        queries, documents = ([text for batch in side for text in batch["text"]] for side in (inputs1, inputs2))
        if len(queries) != len(documents):
            raise InputError(f"got {len(queries)} queries but {len(documents)} documents")
        scores: NDArray[np.float32] = self._encoder.predict(
            list(zip(queries, documents, strict=True)), show_progress_bar=bool(options.get("show_progress_bar"))
        )
        return scores


def _name(model: str) -> str:
    """MTEB wants "organization/model"."""
    parts = [part for part in model.split("/") if part]
    return model if len(parts) == 2 and model == "/".join(parts) else f"darl-rerank/{parts[-1]}"
