"""The heads of a traced graph, and those of its early exits."""

from __future__ import annotations

import torch

from ..errors import InputError
from ..model.checkpoint import Checkpoint
from ..model.exits import EPSILON
from ..model.head import Head, Link


class GraphExit(torch.nn.Module):
    """An exit, see `darl_rerank.model.exits.exit_logits`; what is traced."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        assert head.norm is not None
        self.norm = torch.nn.Parameter(torch.from_numpy(head.norm), requires_grad=False)
        self.rows = linear(head)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Last tokens' states, shape (n, hidden), to outputs, shape (n, K)."""
        states = states.float()
        scaled = states * torch.rsqrt(states.square().mean(-1, keepdim=True) + EPSILON) * self.norm
        found: torch.Tensor = self.rows(scaled)
        return found


def grade_logits(link: Link, outputs: torch.Tensor) -> torch.Tensor:
    """`darl_rerank.model.head.grade_logits` in operators that can be traced."""
    if link == "softmax":
        return outputs
    conditionals = outputs[:, 1:] - outputs[:, :-1]
    beyond = torch.nn.functional.logsigmoid(conditionals).cumsum(dim=1)
    at = torch.nn.functional.logsigmoid(-conditionals)
    return torch.nn.functional.pad(beyond, (1, 0)) + torch.nn.functional.pad(at, (0, 1))


def linear(head: Head) -> torch.nn.Linear:
    linear = torch.nn.Linear(*head.weight.T.shape)
    linear.weight.data = torch.from_numpy(head.weight)
    linear.bias.data = torch.from_numpy(head.bias)
    return linear


def exits_of(checkpoint: Checkpoint, layers: int) -> tuple[int, ...]:
    """Behind which layers pairs leave.

    Raises:
        InputError: behind one that is not before the last of `layers`.
    """
    exits = checkpoint.exits
    if exits is None or exits.rule is None:
        return ()
    if exits.layers[-1] >= layers:
        raise InputError(f"the exit behind layer {exits.layers[-1]} is not one before the last of {layers} layers")
    return exits.layers
