"""What can be wrong with a checkpoint's files and with tensors beside the values of its manifest, each a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .digests import noted_sha256
from .exits import Exits
from .novelty import NoveltyModel

TOKENIZER = "tokenizer.json"
HEAD = "head.safetensors"


def file_faults(folder: Path, files: Mapping[str, str]) -> list[str]:
    faults = []
    for name in (HEAD, TOKENIZER):
        if files and name not in files:
            faults.append(f"files: lacks {name}")
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            faults.append(f"{name} is missing")
        elif noted_sha256(path) != expected:
            faults.append(f"{name} is not the file that was saved (sha256 differs)")
    return faults


def head_faults(head: Mapping[str, NDArray[Any]], parts: Mapping[str, Any]) -> list[str]:
    """What is wrong with the head's tensors, alone and beside the scale and the calibration."""
    if missing := {"weight", "bias"} - head.keys():
        return [f"{HEAD} lacks {', '.join(sorted(missing))}"]
    faults = []
    weight, bias, norm = head["weight"], head["bias"], head.get("norm")
    for name, tensor in head.items():
        if tensor.dtype != np.float32:
            faults.append(f"{HEAD}: expected {name} in float32, found {tensor.dtype}")
        elif not np.isfinite(tensor).all():
            faults.append(f"{HEAD}: {name} holds values that are not finite")
    if weight.ndim != 2 or bias.shape != weight.shape[:1]:
        return [*faults, f"{HEAD}: expected weight (K, hidden) and bias (K,), found {weight.shape} and {bias.shape}"]
    if norm is not None and norm.shape != weight.shape[1:]:
        faults.append(f"{HEAD}: expected norm ({weight.shape[1]},), found {norm.shape}")
    if "scale" in parts and len(weight) != len(parts["scale"]):
        faults.append(f"the head has {len(weight)} rows but the scale {len(parts['scale'])} grades")
    biases = parts["calibration"].bias if "calibration" in parts else ()
    if biases and len(biases) != len(weight):
        faults.append(f"the calibration has {len(biases)} biases but the head {len(weight)} rows")
    return faults


def layer_faults(parts: Mapping[str, Any]) -> list[str]:
    """Which layers lie behind the one that the model ends with."""
    last, exits, feature = parts.get("layers"), parts.get("exits"), parts.get("feature_layer")
    faults = []
    if (prefill := parts.get("prefill_layers")) is not None:
        if feature is not None and feature > prefill:
            faults.append(f"all tokens are run up to layer {prefill}, not up to its feature_layer {feature}")
        if isinstance(exits, Exits) and exits.layers[-1] > prefill:
            faults.append(f"all tokens are run up to layer {prefill}, not up to its exit behind {exits.layers[-1]}")
        if last is not None and prefill >= last:
            faults.append(f"prefill_layers {prefill} is not below the {last} layers that the model has")
    if last is None:
        return faults
    if feature is not None and feature > last:
        faults.append(f"the model ends behind layer {last}, before its feature_layer {feature}")
    if isinstance(exits, Exits) and exits.layers[-1] >= last:
        faults.append(f"the model ends behind layer {last}, no later than its exit behind layer {exits.layers[-1]}")
    return faults


def novelty_faults(novelty: NoveltyModel, head: Mapping[str, NDArray[Any]]) -> list[str]:
    weight = head.get("weight")
    if weight is None or weight.ndim != 2 or novelty.feature_size == 3 * weight.shape[1]:
        return []
    return [
        f"novelty takes features of size {novelty.feature_size}, the head's hidden size gives {3 * weight.shape[1]}"
    ]
