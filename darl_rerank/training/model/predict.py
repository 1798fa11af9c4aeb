"""Grade logits of the model in training, for choosing between its states without writing each as a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from darl_rerank.engines.hardware import cpu_has_bfloat16
from darl_rerank.model.head import grade_logits
from darl_rerank.model.prompt import PromptEncoder
from darl_rerank.progress import Progress, progress_bar
from darl_rerank.trec.graded_pairs import GradedPair

from .grade_model import GradeModel
from .packing import pack


def training_device(device: str | None) -> torch.device:
    """What a training runs on: one GPU if torch sees any and `device` is not "cpu", else the CPU."""
    return torch.device("cpu" if device == "cpu" or not torch.cuda.is_available() else "cuda")


def reduced_precision(device: torch.device) -> AbstractContextManager[Any]:
    """bfloat16 products where the device has them in hardware, as in training and serving; else float32."""
    fast = cpu_has_bfloat16() if device.type == "cpu" else torch.cuda.is_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16) if fast else nullcontext()


@torch.inference_mode()
def predict_logits(
    model: GradeModel,
    encoder: PromptEncoder,
    pairs: Sequence[GradedPair],
    *,
    batch: int = 32,
    progress: Progress = True,
    description: str = "predicting",
) -> NDArray[np.float32]:
    """Grade logits of `pairs`, shape (n, K), in their order.

    Args:
        model: any state of it.
        encoder: the checkpoint's.
        pairs: labelled or not.
        batch: documents run together.
        progress: see `darl_rerank.progress`.
        description: what the progress bar calls the work.
    """
    model.eval()
    device = next(model.parameters()).device
    members: dict[str, list[int]] = {}
    for i, pair in enumerate(pairs):
        members.setdefault(pair.query, []).append(i)
    chunks = [
        (query, rows[start : start + batch]) for query, rows in members.items() for start in range(0, len(rows), batch)
    ]
    logits = np.zeros((len(pairs), model.head.out_features), dtype=np.float32)
    with progress_bar(description, len(pairs), unit="pair", progress=progress) as bar:
        waiting: list[tuple[str, list[int]]] = []
        for i, chunk in enumerate(chunks):
            waiting.append(chunk)
            size = sum(len(rows) for _, rows in waiting)
            following = len(chunks[i + 1][1]) if i + 1 < len(chunks) else batch
            if size + following <= batch:
                continue
            packed = pack([encoder.encode(query, [pairs[row].document for row in rows]) for query, rows in waiting])
            inputs = to_device(packed.inputs(), device)
            with reduced_precision(device):
                found = model(packed.last.to(device), **inputs)[0]
            logits[[row for _, rows in waiting for row in rows]] = grade_logits(model.link, found.float().cpu().numpy())
            bar.update(size)
            waiting = []
    return logits


def to_device(values: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The tensors of `PackedPrompts.inputs`, in tuples or not, on `device`."""

    def moved(value: Any) -> Any:
        return value.to(device) if isinstance(value, torch.Tensor) else tuple(moved(part) for part in value)

    return {name: moved(value) for name, value in values.items()}
