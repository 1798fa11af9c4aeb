"""Choosing the engine for a checkpoint, and the checkpoint for a user who names none."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from ..base_model import SMOLLM2, cache_folder
from ..checkpoint import MANIFEST, Checkpoint
from ..errors import InputError, MissingDependencyError
from ..scale import RelevanceScale
from .base import Engine
from .base_weights import require_torch

ENGINES = ("auto", "torch", "onnx")
_BUNDLED = Path(__file__).resolve().parent.parent / "data" / "model"


def default_checkpoint() -> Checkpoint:
    """The trained checkpoint that comes with the package; the zero-shot one on SmolLM2 until there is one.

    The zero-shot checkpoint is made once, in the user's cache.
    """
    if (_BUNDLED / MANIFEST).is_file():
        return Checkpoint.load(_BUNDLED)
    folder = cache_folder() / "zero-shot-smollm2"
    if (folder / MANIFEST).is_file():
        try:
            return Checkpoint.load(folder)
        except InputError:
            # A cached folder of an older version or a changed base is no more than a reason to make it again.
            pass
    return Checkpoint.from_base(SMOLLM2, RelevanceScale.named("trec4")).save(folder, overwrite=True)


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
