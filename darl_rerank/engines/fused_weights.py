"""What the fused decoder needs of a model, in a file of its own: neither transformers nor PEFT has to be imported then.

Reading a model with transformers, and merging an adapter with PEFT, takes several seconds, most of it imports. The
merged weights in the engine's number format are kept in the cache, under a name that all they depend on goes into.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..cache import cache_folder
from ..errors import DarlRerankError
from ..files import atomic_folder
from ..model.checkpoint import Checkpoint

# Decoders whose layers are: RMS norm, attention with rotary positions, RMS norm, gated MLP, two residual sums.
_MODEL_TYPES = {"llama", "mistral", "qwen2", "qwen3"}
# Rotary factors that hang on the length of the sequence.
_VARYING_ROTARY = {"dynamic", "longrope"}
_FORMAT = 1
_FILE = "weights.safetensors"
# Smaller models load fast; of larger ones a second copy is too much for a cache, which keeps a few.
_SMALLEST, _LARGEST, _KEPT = 16 << 20, 2 << 30, 4


@dataclass(frozen=True, slots=True)
class FusedShape:
    """Numbers of a decoder.

    Attributes:
        layers, heads, key_heads, size: layers, query heads, key heads, and a head's size.
        epsilon: of the RMS norms.
        rotary_scale: what cos and sin are multiplied by.
        window: how many tokens attention reaches back; None for all.
    """

    layers: int
    heads: int
    key_heads: int
    size: int
    epsilon: float
    rotary_scale: float
    window: int | None


@dataclass(frozen=True, slots=True)
class FusedWeights:
    """A decoder's numbers and weights.

    Attributes:
        shape: its numbers.
        tensors: its weights by transformers' names, and "rotary.frequencies", shape (size / 2,), float32.
    """

    shape: FusedShape
    tensors: dict[str, Tensor]

    @classmethod
    def of_model(cls, model: Any) -> FusedWeights | None:
        """Those of a transformers decoder, whose weights are not copied; None if it is of another kind."""
        config = model.config
        rotary = getattr(model, "rotary_emb", None)
        if (
            config.model_type not in _MODEL_TYPES
            or config.hidden_act != "silu"
            or getattr(rotary, "rope_type", "default") in _VARYING_ROTARY
        ):
            return None
        heads = int(config.num_attention_heads)
        shape = FusedShape(
            layers=len(model.layers),
            heads=heads,
            key_heads=int(config.num_key_value_heads),
            size=int(getattr(config, "head_dim", None) or config.hidden_size // heads),
            epsilon=float(config.rms_norm_eps),
            rotary_scale=float(model.rotary_emb.attention_scaling),
            window=getattr(config, "sliding_window", None),
        )
        tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}
        return cls(shape, {**tensors, "rotary.frequencies": model.rotary_emb.inv_freq.detach().float()})

    def fits(self, longest: int) -> bool:
        """Whether attention reaches all tokens of sequences up to `longest`, as the fused decoder has it."""
        return self.shape.window is None or self.shape.window >= longest

    def save(self, path: Path) -> None:
        """Write a safetensors file into a folder of its own, which is replaced, whole or not at all."""
        metadata = {"format": str(_FORMAT), "shape": json.dumps(asdict(self.shape))}
        with atomic_folder(path.parent, overwrite=True) as temporary:
            save_file({name: t.contiguous() for name, t in self.tensors.items()}, temporary / path.name, metadata)

    @classmethod
    def load(cls, path: Path) -> FusedWeights | None:
        """What `save` wrote; None if the file is not there or damaged."""
        try:
            with safe_open(path, framework="pt") as stored:
                metadata = stored.metadata() or {}
                if metadata.get("format") != str(_FORMAT):
                    return None
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
                return cls(FusedShape(**json.loads(metadata["shape"])), tensors)
        except (OSError, SafetensorError, KeyError, TypeError, json.JSONDecodeError):
            return None


def cache_path(checkpoint: Checkpoint, dtype: torch.dtype) -> Path | None:
    """Where a checkpoint's merged weights are kept; None if nothing says that its base stays what it is."""
    base, own = checkpoint.base, _own_digests(checkpoint.sha256)
    if not any(name.startswith("model/") for name in own) and base.sha256 is None and base.revision is None:
        return None
    source: list[Any] = [_FORMAT, base.to_dict(), own, str(dtype)]
    norm = checkpoint.head.norm
    if checkpoint.layers is not None or norm is not None:
        source.append([checkpoint.layers, None if norm is None else norm.tolist()])
    digest = hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()
    return cache_folder() / "torch" / digest[:32] / _FILE


def _own_digests(digests: Mapping[str, str]) -> dict[str, str]:
    return {name: digest for name, digest in sorted(digests.items()) if name.startswith(("adapter/", "model/"))}


def keep(weights: FusedWeights, path: Path) -> None:
    """Save weights of a middling size, and let the cache keep the last few; that it can't be written is no fault."""
    if not _SMALLEST <= sum(tensor.nbytes for tensor in weights.tensors.values()) <= _LARGEST:
        return
    with contextlib.suppress(OSError, DarlRerankError, SafetensorError):
        weights.save(path)
        others = sorted(path.parent.parent.glob(f"*/{_FILE}"), key=lambda file: file.stat().st_mtime, reverse=True)
        for old in others[_KEPT:]:
            shutil.rmtree(old.parent)
