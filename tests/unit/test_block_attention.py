"""Attention in blocks, whatever memory layout a kernel returns."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from darl_rerank.engines import block_attention
from darl_rerank.engines.block_attention import BlockAttention, Heads, Packed


def test_a_kernel_may_return_another_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    # The memory-efficient kernel of a GPU returns (n, Q, heads, size) in memory, seen as (n, heads, Q, size).
    real = block_attention.masked_attention

    def laid_out_anew(*arguments: Any, **options: Any) -> torch.Tensor:
        return real(*arguments, **options).transpose(1, 2).contiguous().transpose(1, 2)

    heads = Heads(4, 2, 8)
    packed = Packed.of([[0] * 3, [0] * 5], 0, 1, torch.device("cpu"))
    states = torch.linspace(-1, 1, 8 * heads.width * heads.size).sin().view(8, heads.width, -1)
    exact = BlockAttention(heads, fused=False)
    expected = exact.attend(states, exact.plan(packed, torch.float32), None)
    monkeypatch.setattr(block_attention, "masked_attention", laid_out_anew)
    fused = BlockAttention(heads, fused=True)
    found = fused.attend(states, fused.plan(packed, torch.float32), None)
    torch.testing.assert_close(found, expected)
