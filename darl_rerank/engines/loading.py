"""Choosing the engine for a checkpoint."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal, get_args

from ..errors import InputError, MissingDependencyError
from ..model.base_weights import require_torch
from ..model.checkpoint import Checkpoint
from .base import Engine

ENGINES = ("auto", "torch", "onnx")
Exit = Literal["auto", "off"]


def load_engine(
    checkpoint: Checkpoint, engine: str, *, device: str | None, precision: str | None, exit: Exit = "auto"
) -> Engine:
    """The engine called `engine`, with the checkpoint loaded.

    Args:
        checkpoint: what to run.
        engine: one of `ENGINES`.
        device: see the engine.
        precision: see the engine.
        exit: "auto" to let pairs leave early where the checkpoint has a rule for it, "off" to run all whole.

    Raises:
        InputError: an unknown engine, device, precision or `exit`.
        MissingDependencyError: its runtime is not installed.
    """
    if engine not in ENGINES:
        raise InputError(f"unknown engine {engine!r}; known: {', '.join(ENGINES)}")
    if exit not in get_args(Exit):
        raise InputError(f"exit must be 'auto' or 'off', got {exit!r}")
    if exit == "off":
        checkpoint = checkpoint.replace(exits=None)
    if engine == "onnx" or (engine == "auto" and checkpoint.exported):
        if find_spec("onnxruntime") is None:
            raise MissingDependencyError("onnxruntime", "onnx", "or darl-rerank[gpu] for a GPU")
        from .onnx_engine import OnnxEngine

        return OnnxEngine(checkpoint, device=device, precision=precision)
    require_torch()
    from .torch_engine import TorchEngine

    return TorchEngine(checkpoint, device=device, precision=precision)
