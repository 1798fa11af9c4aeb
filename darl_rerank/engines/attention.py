"""Attention by torch's fused kernels, for GPUs; serving and training call the same function."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

# Not cuDNN's kernel: it plans every new shape anew, and nearly every batch has one.
_KERNELS = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def masked_attention(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor, *, scale: float | None = None, dropout: float = 0.0
) -> Tensor:
    """softmax(q kᵀ · scale + mask) v, without planning anew for a new shape.

    The memory-efficient kernel takes a mask, but no fewer heads for keys than for queries, so keys and values are
    repeated.

    Args:
        queries: shape (n, heads, Q, size).
        keys, values: shape (n, key heads, A, size); a key head serves heads / key heads query heads in a row.
        mask: boolean (True: may be attended to) or added to the products; broadcast to (n, heads, Q, A).
        scale: of the products; 1 / √size if None.
        dropout: probability of leaving out an attention weight.

    Returns:
        shape (n, heads, Q, size).
    """
    shared = queries.shape[1] // keys.shape[1]
    keys, values = (part.repeat_interleave(shared, dim=1) for part in (keys, values))
    with sdpa_kernel(_KERNELS):
        return torch.nn.functional.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, dropout_p=dropout, scale=scale
        )
