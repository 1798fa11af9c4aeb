"""Choosing the engine for a checkpoint."""

from __future__ import annotations

from importlib.util import find_spec

from ..errors import InputError, MissingDependencyError
from ..model.base_weights import require_torch
from ..model.checkpoint import Checkpoint
from .base import Engine

ENGINES = ("auto", "torch", "onnx")


def load_engine(checkpoint: Checkpoint, engine: str, *, device: str | None, precision: str | None) -> Engine:
    """The engine called `engine`, with the checkpoint loaded.

    Raises:
        InputError: an unknown engine, device or precision.
        MissingDependencyError: its runtime is not installed.
    """
    if engine not in ENGINES:
        raise InputError(f"unknown engine {engine!r}; known: {', '.join(ENGINES)}")
    if engine == "onnx" or (engine == "auto" and checkpoint.exported):
        if find_spec("onnxruntime") is None:
            raise MissingDependencyError("onnxruntime", "onnx", "or darl-rerank[gpu] for a GPU")
        from .onnx_engine import OnnxEngine

        return OnnxEngine(checkpoint, device=device, precision=precision)
    require_torch()
    from .torch_engine import TorchEngine

    return TorchEngine(checkpoint, device=device, precision=precision)
