"""The products of a decoder, in the form in which they are traced."""

from __future__ import annotations

import torch


class Product(torch.nn.Module):
    """A linear layer y = x W + b whose weight, shape (in, out), is what the traced MatMul reads, under its own name.

    Attributes:
        idle: whether nobody reads what it gives, which is zeros then.
    """

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(linear.weight.detach().T, requires_grad=False)
        self.bias = linear.bias
        self.idle = False

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """`states`, shape (…, in), to (…, out)."""
        if self.idle:
            return states.new_zeros(*states.shape[:-1], self.weight.shape[1])
        product = states @ self.weight
        return product if self.bias is None else product + self.bias
