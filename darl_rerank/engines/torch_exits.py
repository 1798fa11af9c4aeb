"""Early exit in the torch engine: which sequences of a micro-batch leave, from their last tokens' states on the way."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..model.exits import EPSILON, Exits
from ..model.head import Head, Link, grade_logits


class Leaving(Protocol):
    """What a decoder asks behind some layers.

    Attributes:
        layers: behind which, counted from 1; not behind the last.
    """

    layers: tuple[int, ...]

    def leaving(self, layer: int, states: Tensor) -> NDArray[np.bool_]:
        """Which of the sequences that are still there leave behind `layer`.

        Args:
            layer: one of `layers`; they are asked in rising order.
            states: of each sequence's last token, before any norm, shape (m, hidden).

        Returns:
            shape (m,).
        """
        ...


class TorchExits:
    """A checkpoint's exits on a device.

    Args:
        exits: heads and rule.
        link: how the heads' outputs are read.
        device: where the states are.
    """

    def __init__(self, exits: Exits, link: Link, device: torch.device) -> None:
        self.exits, self._link = exits, link
        self._heads = {each.layer: _on(each.head, device) for each in exits.heads}

    def logits(self, layer: int, states: Tensor) -> NDArray[np.float32]:
        """Grade logits, shape (m, K); see `darl_rerank.model.exits.exit_logits`."""
        norm, weight, bias = self._heads[layer]
        exact = states.float()
        scaled = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + EPSILON) * norm
        return grade_logits(self._link, torch.nn.functional.linear(scaled, weight, bias).cpu().numpy())


def _on(head: Head, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    assert head.norm is not None
    norm, weight, bias = (torch.from_numpy(part).to(device) for part in (head.norm, head.weight, head.bias))
    return norm, weight, bias


class MicroBatchExits:
    """The exits of one micro-batch of n sequences, filled while a decoder runs it.

    Attributes:
        layers: see `Leaving`.
        present: which sequences have not left, rising.
        left_at: behind which layer each left, 0 for those that have not, shape (n,).
        logits: grade logits of those that left, shape (n, K); 0 for the others.
    """

    def __init__(self, exits: TorchExits, count: int) -> None:
        self._exits = exits
        self.layers = exits.exits.layers
        self.present = np.arange(count)
        self.left_at = np.zeros(count, dtype=np.intp)
        self.logits = np.zeros((count, len(exits.exits.heads[0].head.bias)), dtype=np.float32)

    def leaving(self, layer: int, states: Tensor) -> NDArray[np.bool_]:
        """See `Leaving.leaving`."""
        found = self._exits.logits(layer, states)
        gone = self._exits.exits.leaving(layer, found)
        self.left_at[self.present[gone]] = layer
        self.logits[self.present[gone]] = found[gone]
        self.present = self.present[~gone]
        return gone
