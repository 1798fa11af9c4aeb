"""Last tokens' states behind some layers, for exits to be fitted to; computed once and kept as features are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from darl_rerank.engines.base import GradeOutput
from darl_rerank.engines.batching import MicroBatch
from darl_rerank.engines.torch_engine import TorchEngine
from darl_rerank.model.checkpoint import Checkpoint
from darl_rerank.model.exits import EPSILON, Exits
from darl_rerank.progress import Progress
from darl_rerank.reranker import Reranker
from darl_rerank.trec.graded_pairs import GradedPair

from .features import extract_features


class ExitStates:
    """Computes the states of a checkpoint's pairs.

    Args:
        checkpoint: the model; what it has of exits does not count.
        layers: behind which, rising, counted from 1; layers after the last of them are not run.
        device: as for `TorchEngine`.

    Raises:
        InputError: as `TorchEngine`.
    """

    def __init__(self, checkpoint: Checkpoint, layers: Sequence[int], *, device: str | None = None) -> None:
        self.layers = tuple(layers)
        # Neither novelty nor exits: what the engine gives for features are states.
        plain = checkpoint.replace(exits=None, novelty=None, calibration=checkpoint.calibration.at(0.0))
        self._reranker = Reranker(plain, _StateEngine(TorchEngine(plain, device=device), self.layers, len(plain.scale)))

    def of(
        self, pairs: Sequence[GradedPair], folder: Path, *, progress: Progress = True, description: str = "states"
    ) -> dict[int, NDArray[np.float32]]:
        """States of root mean square 1 by layer, each (n, hidden), to within float16's rounding.

        Args:
            pairs: at least one; those of a query together.
            folder: keeps them, so that an interrupted job goes on.
            progress: see `darl_rerank.progress`.
            description: what the progress bar calls the work.
        """
        found = extract_features(self._reranker, pairs, folder, progress=progress, description=description).features
        parts = np.split(np.asarray(found, dtype=np.float32), len(self.layers), axis=1)
        return dict(zip(self.layers, parts, strict=True))


class _StateEngine:
    """An engine whose features are the states behind some layers, and whose logits say nothing."""

    def __init__(self, engine: TorchEngine, layers: tuple[int, ...], grades: int) -> None:
        self._engine, self._layers, self._grades = engine, layers, grades
        self.exits: Exits | None = None
        self.name = f"states behind {', '.join(map(str, layers))}"
        self.device, self.precision, self.batch_tokens = engine.device, engine.precision, engine.batch_tokens

    def encode_prefix(self, prefix: tuple[int, ...]) -> Any:
        return self._engine.encode_prefix(prefix)

    @torch.inference_mode()
    def grade(self, batch: MicroBatch, prefix: Any | None, *, features: bool) -> GradeOutput:
        watched = _Watched(self._layers)
        before = None if prefix is None else prefix.keys_values
        self._engine.decoder.run(batch.sequences, before, exits=watched)
        logits = np.zeros((len(batch.sequences), self._grades), dtype=np.float32)
        return GradeOutput(logits, np.concatenate(watched.states, axis=1))


class _Watched:
    """Keeps states, and lets all sequences leave behind the last of the layers."""

    def __init__(self, layers: tuple[int, ...]) -> None:
        self.layers = layers
        self.states: list[NDArray[np.float32]] = []

    def leaving(self, layer: int, states: torch.Tensor) -> NDArray[np.bool_]:
        exact = states.float()
        self.states.append((exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + EPSILON)).cpu().numpy())
        return np.full(len(states), layer == self.layers[-1])
