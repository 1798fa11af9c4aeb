"""Products with constant weights; what follows one is done on its result while that is still in cache."""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F


class Product:
    """y = x Wᵀ + b.

    Args:
        weights: matrices of shape (outputs, inputs); several are joined, so that their inputs are read once.
        biases: one for each matrix, shape (outputs,), or None.
    """

    def __init__(self, weights: list[Tensor], biases: list[Tensor | None]) -> None:
        self._weight = torch.cat(weights)
        given = [bias for bias in biases if bias is not None]
        self._bias = torch.cat(given) if given else None

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self._weight, self._bias)

    def swish(self, x: Tensor) -> Tensor:
        """y · sigmoid(y), shape (tokens, outputs)."""
        return F.silu(self(x))

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """y · other, both of shape (tokens, outputs)."""
        return self(x) * other

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """y + other, both of shape (tokens, outputs)."""
        return self(x) + other


class OneDnnProduct(Product):
    """The same by oneDNN, with weights laid out for it once and what follows done inside the product.

    These operators are those that torch.compile uses on CPUs.
    """

    def __init__(self, weights: list[Tensor], biases: list[Tensor | None]) -> None:
        super().__init__(weights, biases)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(self._weight.contiguous(), _TYPICAL_TOKENS)

    def __call__(self, x: Tensor) -> Tensor:
        return self._run(x, "none")

    def swish(self, x: Tensor) -> Tensor:
        return self._run(x, "swish")

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        return self._run_with(x, other, "mul")

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        return self._run_with(x, other, "add")

    def _run(self, x: Tensor, then: str) -> Tensor:
        product: Any = torch.ops.mkldnn._linear_pointwise
        return cast(Tensor, product(x, self._weight, self._bias, then, [], ""))

    def _run_with(self, x: Tensor, other: Tensor, then: str) -> Tensor:
        product: Any = torch.ops.mkldnn._linear_pointwise.binary
        return cast(Tensor, product(x, other, self._weight, self._bias, then))


# Tells oneDNN that a batch has many rows; the layout of weights hardly depends on how many.
_TYPICAL_TOKENS = 1024


def product_kind(device: torch.device, dtype: torch.dtype) -> type[Product]:
    """The fastest kind of product that works for `dtype` on `device`."""
    return OneDnnProduct if device.type == "cpu" and _onednn_works(dtype) else Product


@cache
def _onednn_works(dtype: torch.dtype) -> bool:
    """Whether this torch on this CPU has oneDNN's products and they give what plain ones give.

    The operators are not part of torch's stable interface, so they are tried out rather than believed.
    """
    if dtype not in (torch.float32, torch.bfloat16):
        return False
    x = torch.linspace(-1, 1, 8 * 32).view(8, 32).to(dtype)
    other = torch.linspace(2, 1, 8 * 16).view(8, 16).to(dtype)
    weight = torch.linspace(-1, 2, 16 * 32).view(16, 32).to(dtype)
    bias = torch.linspace(0, 1, 16).to(dtype)
    plain = Product([weight], [bias])
    try:
        fused = OneDnnProduct([weight], [bias])
        pairs = [
            (fused(x), plain(x)),
            (fused.swish(x), plain.swish(x)),
            (fused.times(x, other), plain.times(x, other)),
            (fused.plus(x, other), plain.plus(x, other)),
        ]
    except (RuntimeError, AttributeError, TypeError):  # not there, not for this CPU, or called otherwise by now
        return False
    bound = 1e-4 if dtype == torch.float32 else 0.05
    return all(torch.allclose(a.float(), b.float(), rtol=bound, atol=bound) for a, b in pairs)
