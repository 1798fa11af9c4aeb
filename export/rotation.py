"""Rotates the states that layers pass on, so that no channel stands out when they are rounded, for int8.

Decoders write some channels of their states far larger than the others, and one scale a token then leaves those few
steps. An orthogonal matrix R spreads them over all channels (QuaRot; Ashkboos et al., NeurIPS 2024). A state h becomes
h·R: what writes it (embedding, o_proj, down_proj) is multiplied by R, what reads it (q, k, v, gate and up) by its
transpose. An RMS norm divides by the length of h, which R keeps; its gain goes into the readers first. So R is in the
weights, changes no result in float32, and costs nothing when the graph runs.

Heads, exits and novelty read a few states a pair; those are turned back. Values of heads are not rotated: with them the
error was no smaller, since columns of v_proj have scales of their own already.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import hadamard

_SEED = 0
_NORMS = ("input_layernorm", "post_attention_layernorm")
# The parts of a layer that is known to be norm, attention, norm, gated MLP; norms of single heads do no harm.
_LAYER = {"self_attn", "mlp", *_NORMS}
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
_HEAD_NORMS = {"q_norm", "k_norm"}
_MLP = {"gate_proj", "up_proj", "down_proj"}


def rotate(body: Any) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Rotate a decoder's states, in place; one of a kind that is not known is left as it is.

    Args:
        body: transformers' decoder in float32, with its linear layers.

    Returns:
        What turns states behind a layer back, and what does with states behind the last norm, shape (n, hidden) each.
    """
    if not _can_be_rotated(body):
        return torch.nn.Identity(), torch.nn.Identity()
    rotation = orthogonal(body.get_input_embeddings().weight.shape[1])
    with torch.no_grad():
        embedding = body.get_input_embeddings().weight
        embedding.copy_(embedding @ rotation)
        for layer in body.layers:
            attention, mlp = layer.self_attn, layer.mlp
            _read(layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj), rotation)
            _read(layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj), rotation)
            _write(attention.o_proj, rotation)
            _write(mlp.down_proj, rotation)
        final = Back(rotation * body.norm.weight[:, None])
        body.norm.weight.fill_(1)
    return Back(rotation), final


class Back(torch.nn.Module):
    """x·Rᵀ of a few rows; with a bias, which makes it a Gemm in the graph: those stay in float32, as the head does."""

    def __init__(self, rotation: torch.Tensor) -> None:
        super().__init__()
        self.rotation = torch.nn.Parameter(rotation, requires_grad=False)
        self.zero = torch.nn.Parameter(torch.zeros(len(rotation)), requires_grad=False)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(states, self.rotation, self.zero)


def orthogonal(size: int) -> torch.Tensor:
    """An orthogonal matrix that spreads each channel evenly over all, shape (size, size), the same every time.

    A Hadamard matrix of the largest power of two in `size`, times a random orthogonal one of what is left; with random
    signs, so that channels of one sign don't add up in a single one.
    """
    rng = np.random.default_rng(_SEED)
    power = size & -size
    rest, _ = np.linalg.qr(rng.normal(size=(size // power, size // power)))
    spread = np.kron(hadamard(power) / np.sqrt(power), rest)
    signs: NDArray[np.float64] = rng.choice([-1.0, 1.0], size=size)
    return torch.from_numpy((signs[:, None] * spread).astype(np.float32))


def _read(norm: Any, readers: Sequence[Any], rotation: torch.Tensor) -> None:
    """Let layers read turned states; the norm before them gives its gain to them."""
    for linear in readers:
        linear.weight.copy_((linear.weight * norm.weight) @ rotation)
    norm.weight.fill_(1)


def _write(linear: Any, rotation: torch.Tensor) -> None:
    """Let a layer write turned states."""
    linear.weight.copy_(rotation.T @ linear.weight)
    if linear.bias is not None:
        linear.bias.copy_(linear.bias @ rotation)


def _can_be_rotated(body: Any) -> bool:
    """Whether the decoder has the parts that `rotate` knows and no others, and norms whose gain can be given away."""
    norm = getattr(body, "norm", None)
    if norm is None or not _is_rms(norm):
        return False
    return all(
        _parts(layer) == _LAYER
        and _ATTENTION <= _parts(layer.self_attn) <= _ATTENTION | _HEAD_NORMS
        and _MLP <= _parts(layer.mlp) <= _MLP | {"act_fn"}
        and all(_is_rms(getattr(layer, name)) for name in _NORMS)
        for layer in body.layers
    )


def _parts(module: Any) -> set[str]:
    return {name for name, _ in module.named_children()}


def _is_rms(norm: Any) -> bool:
    """Whether a norm divides by the root mean square and multiplies by its weight (Gemma's by 1 + weight)."""
    if {name for name, _ in norm.named_parameters()} != {"weight"}:
        return False
    states = torch.linspace(-1, 2, len(norm.weight))
    wanted = states * states.square().mean().rsqrt() * norm.weight
    with torch.no_grad():
        return torch.allclose(norm(states), wanted, rtol=1e-3, atol=1e-3)
