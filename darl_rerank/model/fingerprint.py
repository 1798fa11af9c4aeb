"""The fingerprint of a checkpoint: a digest of all that decides a result."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .checkpoint import Checkpoint


def fingerprint(checkpoint: Checkpoint) -> str:
    """See `Checkpoint.fingerprint`."""
    novelty = None
    if checkpoint.novelty is not None:
        tensors, settings = checkpoint.novelty.to_tensors()
        novelty = [settings, {name: _digest(tensor) for name, tensor in sorted(tensors.items())}]
    weights = {name: digest for name, digest in checkpoint.sha256.items() if name.startswith(("adapter/", "model"))}
    values = [
        checkpoint.scale.to_dict(), checkpoint.prompt.to_dict(), checkpoint.base.to_dict(), checkpoint.feature_layer,
        checkpoint.calibration.to_dict(), _digest(checkpoint.head.weight), _digest(checkpoint.head.bias), novelty,
        hashlib.sha256(checkpoint.tokenizer_json.encode()).hexdigest(), weights,
    ]  # fmt: skip
    # Left out where it is what older checkpoints have, whose fingerprints stay.
    if checkpoint.link != "softmax":
        values.append(checkpoint.link)
    if decisions := checkpoint.decisions.to_dict(checkpoint.scale):
        values.append(decisions)
    if checkpoint.layers is not None or checkpoint.head.norm is not None:
        values.append([checkpoint.layers, None if checkpoint.head.norm is None else _digest(checkpoint.head.norm)])
    if checkpoint.prefill_layers is not None:
        values.append({"prefill_layers": checkpoint.prefill_layers})
    if checkpoint.exits is not None:
        tensors, settings = checkpoint.exits.to_tensors(checkpoint.scale)
        values.append([settings, {name: _digest(tensor) for name, tensor in sorted(tensors.items())}])
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _digest(array: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
