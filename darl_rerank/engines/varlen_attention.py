"""Attention of packed sequences on a GPU by a kernel for different lengths: no padding, no mask, no new plans."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from .block_attention import Heads, Packed

_CAUSAL = (-1, 0)


@dataclass(frozen=True, slots=True)
class _Lengths:
    """Of one micro-batch of n sequences, T tokens, behind a prefix of P.

    Attributes:
        query_ends, key_ends: how many queries (keys) the first i sequences have, i from 0 to n, int32.
        single: 0 to n, int32: the same for one query a sequence.
        places: where each of the n · P + T keys stands among the prefix's and the T; None without a prefix.
        longest, before: lengths of the longest sequence and of the prefix.
    """

    query_ends: Tensor
    key_ends: Tensor
    single: Tensor
    places: Tensor | None
    longest: int
    before: int


class VarlenAttention:
    """As `BlockAttention`; a prefix's keys and values are of shape (2, length, key heads, size)."""

    def __init__(self, heads: Heads) -> None:
        self._heads = heads

    def plan(self, packed: Packed, dtype: torch.dtype) -> _Lengths:
        """See `BlockAttention.plan`."""
        count, before = len(packed.lengths), packed.before
        device = packed.lengths.device
        keys = packed.lengths + before
        query_ends, key_ends = (F.pad(each.cumsum(0), (1, 0)).to(torch.int32) for each in (packed.lengths, keys))
        places = None
        if before:
            total = packed.tokens + count * before
            sequence = torch.repeat_interleave(torch.arange(count, device=device), keys, output_size=total)
            inside = torch.arange(total, device=device) - (keys.cumsum(0) - keys)[sequence]
            places = inside + packed.starts[sequence].where(inside >= before, 0)
        single = torch.arange(count + 1, device=device, dtype=torch.int32)
        return _Lengths(query_ends, key_ends, single, places, packed.longest, before)

    @staticmethod
    def length(before: Tensor) -> int:
        """See `BlockAttention.length`."""
        return before.shape[1]

    def kept(self, states: Tensor, plan: _Lengths) -> Tensor:
        """See `BlockAttention.kept`."""
        return torch.stack(self._keys_values(states))

    def attend(self, states: Tensor, plan: _Lengths, before: Tensor | None) -> Tensor:
        """See `BlockAttention.attend`."""
        queries = states[:, : self._heads.queries]
        return self._attend(queries, states, plan, before, plan.query_ends, plan.longest)

    def attend_last(self, queries: Tensor, states: Tensor, plan: _Lengths, before: Tensor | None) -> Tensor:
        """See `BlockAttention.attend_last`."""
        return self._attend(queries, states, plan, before, plan.single, 1)

    def _attend(
        self, queries: Tensor, states: Tensor, plan: _Lengths, before: Tensor | None, ends: Tensor, longest: int
    ) -> Tensor:
        keys, values = self._keys_values(states)
        if before is not None and plan.places is not None:
            keys, values = (
                torch.cat([first, own]).index_select(0, plan.places)
                for first, own in zip(before, (keys, values), strict=True)
            )
        return _varlen(queries, keys, values, ends, plan.key_ends, longest, plan.longest + plan.before).flatten(1)

    def _keys_values(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Those of all tokens, which stand last in `states`, behind queries or without any."""
        keys = self._heads.keys
        return states[:, -2 * keys : -keys], states[:, -keys:]


def _varlen(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    query_ends: Tensor,
    key_ends: Tensor,
    most_queries: int,
    most_keys: int,
) -> Tensor:
    """Causal attention of sequences one after the other; the last query of each sees all of its keys.

    Args:
        queries: shape (all queries, heads, size).
        keys, values: shape (all keys, key heads, size).
        query_ends, key_ends: shape (n + 1,), int32, from 0.
        most_queries, most_keys: of any sequence.

    Returns:
        the shape of `queries`.
    """
    from torch.nn.attention.varlen import varlen_attn

    # One split: how a sequence's sum is cut would else depend on the longest in the batch, and with it its result.
    found = varlen_attn(
        queries, keys, values, query_ends, key_ends, most_queries, most_keys, window_size=_CAUSAL,
        enable_gqa=queries.shape[1] != keys.shape[1], num_splits=1,
    )  # fmt: skip
    assert isinstance(found, Tensor)
    return found


@cache
def varlen_works(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this torch has the kernel for `dtype` on `device`, and it gives what written-out attention gives.

    Its arguments have changed from version to version, so it is tried out rather than believed.
    """
    if dtype not in (torch.bfloat16, torch.float16):
        return False
    heads = Heads(4, 2, 64)
    packed = Packed.of([[0] * 3, [0] * 5], 2, 1, device)
    states = torch.linspace(-1, 1, 8 * heads.width * heads.size, device=device).sin().view(8, heads.width, -1).to(dtype)
    before = torch.linspace(1, -1, 2 * 2 * 2 * 64, device=device).view(2, 2, 2, 64).to(dtype)
    try:
        attention = VarlenAttention(heads)
        found = attention.attend(states, attention.plan(packed, dtype), before)
    except (
        ImportError,
        RuntimeError,
        TypeError,
        NotImplementedError,
    ):  # not there, not for this GPU, or called otherwise by now
        return False
    from .block_attention import BlockAttention

    blocks = BlockAttention(heads, fused=False)
    exact = blocks.attend(
        states.float(), blocks.plan(packed, torch.float32), before.float().transpose(1, 2)[:, None]
    )  # fmt: skip
    return torch.allclose(found.float(), exact, atol=0.02, rtol=0.02)
