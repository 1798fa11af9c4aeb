"""Attention of packed sequences in padded blocks: two batched products and a softmax, or torch's fused kernels.

Each sequence's queries, keys and values are gathered into a block of equal length, behind the prefix that all share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .attention import masked_attention


@dataclass(frozen=True, slots=True)
class Heads:
    """How many heads attention has, and their size."""

    queries: int
    keys: int
    size: int

    @property
    def width(self) -> int:
        """Rows of one token: its queries, then its keys, then its values."""
        return self.queries + 2 * self.keys


@dataclass(frozen=True, slots=True)
class Packed:
    """Where n sequences stand among T packed tokens, behind a prefix of `before` tokens; tensors are on the device.

    Attributes:
        lengths, starts, last: of each sequence its length and its first and last token's place, shape (n,).
        sequence, inside: of each real token its sequence and its place in it, shape (tokens,).
        tokens: how many of the T are real.
        padding: how many stand behind them, for fewer different sizes T.
        longest: length of the longest sequence.
        before: length of the prefix.
    """

    lengths: Tensor
    starts: Tensor
    last: Tensor
    sequence: Tensor
    inside: Tensor
    tokens: int
    padding: int
    longest: int
    before: int

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]], before: int, multiple: int, device: torch.device) -> Packed:
        """Only the lengths go to the device; tables, which are far larger, are made there.

        Args:
            sequences: token ids.
            before: length of the prefix.
            multiple: what T, padding included, is a multiple of.
            device: where the tables are made.
        """
        tokens, count, longest = sum(map(len, sequences)), len(sequences), max(map(len, sequences))
        lengths = torch.tensor([len(sequence) for sequence in sequences], device=device)
        ends = lengths.cumsum(0)
        starts = ends - lengths
        sequence = torch.repeat_interleave(torch.arange(count, device=device), lengths, output_size=tokens)
        inside = torch.arange(tokens, device=device) - starts[sequence]
        return cls(lengths, starts, ends - 1, sequence, inside, tokens, -tokens % multiple, longest, before)


@dataclass(frozen=True, slots=True)
class _Blocks:
    """Tables of one micro-batch; A is the prefix's length and the longest sequence's, L.

    Attributes:
        queries: which of the T · (heads + 2 · key heads) rows stands where in a block (n, heads, L).
        keys_values: the same for keys and values, a block of (2, n, key heads, L).
        keys_values_alone: the same where the rows have no queries, T · 2 · key heads of them.
        outputs: which of the block's n · heads · L rows stands where among the T · heads outputs.
        mask: 0 where query l may see key a, -inf elsewhere, shape (L, A); the same for all sequences, since the padding
            of shorter ones comes last, where causal attention does not see it.
        last_mask: the mask of each sequence's last token, shape (n, 1, 1, A).
    """

    queries: Tensor
    keys_values: Tensor
    keys_values_alone: Tensor
    outputs: Tensor
    mask: Tensor
    last_mask: Tensor


class BlockAttention:
    """Attention as described in the module; a prefix's keys and values are of shape (2, 1, key heads, length, size).

    Args:
        heads: the model's.
        fused: whether to use torch's fused kernels, which take nearly twice as long on a CPU, on sequences this short.
    """

    def __init__(self, heads: Heads, *, fused: bool) -> None:
        self._heads, self._fused = heads, fused

    def plan(self, packed: Packed, dtype: torch.dtype) -> _Blocks:
        """Tables for all layers of a micro-batch."""
        heads, before, longest, device = self._heads, packed.before, packed.longest, packed.lengths.device
        query = torch.arange(longest, device=device)
        # Padding reads its sequence's last token: finite, and never seen.
        places = packed.starts[:, None] + torch.minimum(query, packed.lengths[:, None] - 1)
        head = torch.arange(heads.width, device=device)
        rows = packed.sequence * (heads.queries * longest) + packed.inside
        key = torch.arange(before + longest, device=device)
        mask = torch.zeros(longest, before + longest, device=device)
        mask.masked_fill_(key > query[:, None] + before, -torch.inf)
        mask = mask.to(dtype if self._fused else torch.float32)
        return _Blocks(
            queries=places[:, None] * heads.width + head[: heads.queries, None],
            keys_values=places[None, :, None] * heads.width + head[heads.queries :].view(2, 1, heads.keys, 1),
            keys_values_alone=places[None, :, None] * (2 * heads.keys) + head[: 2 * heads.keys].view(2, 1, -1, 1),
            # Padding at the end reads some real token's output: finite, and nothing reads the padding's own.
            outputs=F.pad(rows[:, None] + head[: heads.queries] * longest, (0, 0, 0, packed.padding)),
            mask=mask,
            last_mask=mask[packed.lengths - 1][:, None, None],
        )

    @staticmethod
    def length(before: Tensor) -> int:
        """Tokens of a prefix, from its keys and values in a layer."""
        return before.shape[3]

    def kept(self, states: Tensor, plan: _Blocks) -> Tensor:
        """Keys and values, shape (2, n, key heads, L, size); of an only sequence, they are what `before` takes.

        Args:
            states: as for `attend` or `attend_last`.
            plan: of `plan`.
        """
        alone = states.shape[1] == 2 * self._heads.keys
        return _taken(states.view(-1, self._heads.size), plan.keys_values_alone if alone else plan.keys_values)

    def attend(self, states: Tensor, plan: _Blocks, before: Tensor | None) -> Tensor:
        """What attention gives for all tokens.

        Args:
            states: queries, keys and values of each token, shape (T, heads + 2 · key heads, size).
            plan: of `plan`.
            before: the prefix's keys and values in this layer, if there is one.

        Returns:
            shape (T, heads · size).
        """
        keys_values = self._behind(before, self.kept(states, plan))
        queries = _taken(states.view(-1, self._heads.size), plan.queries)
        # Fused kernels may return another memory layout than they were given.
        found = self._attend(queries, keys_values, plan.mask).reshape(-1, self._heads.size)
        return _taken(found, plan.outputs).view(len(states), -1)

    def attend_last(self, queries: Tensor, states: Tensor, plan: _Blocks, before: Tensor | None) -> Tensor:
        """What attention gives for each sequence's last token.

        Args:
            queries: of the last tokens, shape (n, heads, size).
            states: keys and values of each token, shape (T, 2 · key heads, size).
            plan: of `plan`.
            before: the prefix's keys and values in this layer, if there is one.

        Returns:
            shape (n, heads · size).
        """
        keys_values = self._behind(before, self.kept(states, plan))
        return self._attend(queries.unsqueeze(2), keys_values, plan.last_mask).flatten(1)

    @staticmethod
    def _behind(before: Tensor | None, keys_values: Tensor) -> Tensor:
        """Keys and values of each sequence, shape (2, n, key heads, L, size), behind the prefix's if there is one."""
        if before is None:
            return keys_values
        return torch.cat([before.expand(-1, keys_values.shape[1], -1, -1, -1), keys_values], dim=3)

    def _attend(self, queries: Tensor, keys_values: Tensor, mask: Tensor) -> Tensor:
        """Attention of all blocks.

        Args:
            queries: shape (n, heads, Q, size).
            keys_values: shape (2, n, key heads, A, size).
            mask: what is added to the products, shape (Q, A), or (n, 1, Q, A).

        Returns:
            shape (n, heads, Q, size).
        """
        if self._fused:
            return masked_attention(queries, keys_values[0], keys_values[1], mask)
        count, _, length, size = queries.shape
        heads, shared = self._heads, self._heads.queries // self._heads.keys
        dtype = queries.dtype
        # The query heads of one key head stand one below the other, so keys and values need not be repeated.
        # In float32, whose batched products keep no memory for each new shape as oneDNN's in bfloat16 do.
        queries = queries.reshape(count * heads.keys, shared * length, size).float()
        keys, values = keys_values.flatten(1, 2).float()
        whole = mask.dim() == 2
        added = mask.repeat(shared, 1) if whole else mask.expand(-1, heads.keys, shared, -1).flatten(0, 1)
        products = torch.baddbmm(added, queries, keys.transpose(1, 2), alpha=size**-0.5)
        attended = torch.bmm(products.softmax(dim=-1), values).to(dtype)
        return attended.view(count, heads.queries, length, size)


def _taken(rows: Tensor, places: Tensor) -> Tensor:
    """`rows[places]`, of the shape of `places` and one axis more; index_select copies whole rows, indexing does not."""
    return rows.index_select(0, places.flatten()).view(*places.shape, -1)
