"""Query groups as one packed sequence: what several prompts begin with is run once, and nothing is padded.

A micro-batch of n prompts is a tree. Its root is the instruction that all of them share, then come the queries, then
the documents. Each segment's tokens stand once in the packed sequence, and attend to themselves and to the segments
above them. The linear layers, nine tenths of the work, then see only distinct tokens; attention gathers queries, keys
and values of each segment into small padded blocks. The result is that of the prompts run one by one.

It works with every decoder of transformers that attends through its attention registry and takes position ids: the
registered attention function `ATTENTION` finds its blocks in the keyword arguments of the model's forward call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from darl_rerank.engines.attention import masked_attention
from darl_rerank.model.prompt import PromptGroup

ATTENTION = "darl_rerank_packed"
# Packed lengths and block sizes are multiples of these, so that few different sizes of memory are allocated: with
# a new size at every step, glibc's allocator grows without end.
TOKEN_MULTIPLE = 128
BLOCK_MULTIPLE = 32


@dataclass(frozen=True, slots=True)
class PackedPrompts:
    """n prompts as one sequence of T tokens.

    Attributes:
        ids: token ids, shape (1, T); padding, at the end, is id 0.
        positions: each token's position in its prompt, shape (1, T).
        last: where each prompt's last token stands, shape (n,), in the order of the groups' suffixes.
        blocks: for attention, three tensors a block of R segments: where the attending tokens stand, shape (R, Q);
            where the attended ones stand, shape (R, A); and which may be attended to, boolean, shape (R, 1, Q, A).
        places: where each token's output stands among the blocks' flattened ones, shape (T,).
        tokens: how many of the T are real.
    """

    ids: Tensor
    positions: Tensor
    last: Tensor
    blocks: tuple[tuple[Tensor, Tensor, Tensor], ...]
    places: Tensor
    tokens: int

    def inputs(self) -> dict[str, Any]:
        """Keyword arguments for the decoder."""
        return {
            "input_ids": self.ids,
            "position_ids": self.positions,
            "packed_blocks": self.blocks,
            "packed_places": self.places,
        }


@dataclass(frozen=True, slots=True)
class _Segment:
    """Tokens that follow those of `above` in a prompt; `start` is the first one's place in the packed sequence."""

    start: int
    length: int
    above: tuple[int, ...]


def pack(groups: Sequence[PromptGroup]) -> PackedPrompts:
    """Pack the prompts of `groups`; see `PackedPrompts`."""
    ids: list[int] = []
    positions: list[int] = []
    segments: list[_Segment] = []

    def add(tokens: Sequence[int], above: tuple[int, ...]) -> tuple[int, ...]:
        start = len(ids)
        ids.extend(tokens)
        positions.extend(range(len(above), len(above) + len(tokens)))
        segments.append(_Segment(start, len(tokens), above))
        return (*above, *range(start, start + len(tokens)))

    shared = _common([group.prefix for group in groups])
    root = add(groups[0].prefix[:shared], ()) if shared else ()
    last = []
    for group in groups:
        rest = group.prefix[shared:]
        above = add(rest, root) if rest else root
        for suffix in group.suffixes:
            last.append(add(suffix, above)[-1])
    tokens = len(ids)
    padding = -tokens % TOKEN_MULTIPLE
    blocks, places = _blocks(segments, tokens + padding)
    zeros = [0] * padding
    return PackedPrompts(
        ids=torch.tensor([ids + zeros]),
        positions=torch.tensor([positions + zeros]),
        last=torch.tensor(last),
        blocks=blocks,
        places=places,
        tokens=tokens,
    )


def _common(sequences: Sequence[tuple[int, ...]]) -> int:
    """How many tokens all sequences begin with, less one where a sequence would be left empty."""
    shortest, longest = min(sequences), max(sequences)
    count = 0
    for a, b in zip(shortest, longest, strict=False):
        if a != b:
            break
        count += 1
    return count


def _blocks(segments: Sequence[_Segment], length: int) -> tuple[tuple[tuple[Tensor, Tensor, Tensor], ...], Tensor]:
    """Attention blocks of segments of like length, and where each of `length` tokens is found in their output."""
    by_size: dict[int, list[_Segment]] = {}
    for segment in segments:
        by_size.setdefault(_round_up(segment.length), []).append(segment)
    blocks = []
    # Padding reads some real token's output: it is finite, and nothing reads the padding's own.
    places = torch.zeros(length, dtype=torch.long)
    offset = 0
    for size, members in sorted(by_size.items()):
        attended = _round_up(max(len(s.above) + s.length for s in members))
        queries = torch.zeros((len(members), size), dtype=torch.long)
        keys = torch.zeros((len(members), attended), dtype=torch.long)
        mask = torch.zeros((len(members), 1, size, attended), dtype=torch.bool)
        for row, segment in enumerate(members):
            own = torch.arange(segment.start, segment.start + segment.length)
            before = len(segment.above)
            queries[row, : segment.length] = own
            keys[row, :before] = torch.tensor(segment.above, dtype=torch.long)
            keys[row, before : before + segment.length] = own
            mask[row, 0, :, :before] = True
            mask[row, 0, : segment.length, before : before + segment.length] = torch.ones(
                segment.length, segment.length, dtype=torch.bool
            ).tril()
            # A row of nothing but False has no softmax.
            mask[row, 0, segment.length :, 0] = True
            places[own] = offset + row * size + torch.arange(segment.length)
        blocks.append((queries, keys, mask))
        offset += queries.numel()
    return tuple(blocks), places


def _round_up(length: int) -> int:
    return -(-length // BLOCK_MULTIPLE) * BLOCK_MULTIPLE


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed_blocks: Sequence[tuple[Tensor, Tensor, Tensor]],
    packed_places: Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of a packed sequence, as transformers calls it.

    Args:
        module: the attention layer.
        query: shape (1, heads, T, d).
        key, value: shape (1, key heads, T, d).
        attention_mask: not used: the blocks' masks say it all.
        packed_blocks, packed_places: as in `PackedPrompts`.
        scaling: factor of the products; 1 / √d if None.
        dropout: probability of leaving out an attention weight.

    Returns:
        shape (1, T, heads, d), and None for the weights, which are not kept.
    """
    heads, key_heads = query.shape[1], key.shape[1]
    rows = [states[0].transpose(0, 1).flatten(1) for states in (query, key, value)]
    outputs = []
    for attending, attended, mask in packed_blocks:
        count, size = attending.shape
        q = rows[0].index_select(0, attending.flatten()).view(count, size, heads, -1).transpose(1, 2)
        k, v = (
            part.index_select(0, attended.flatten()).view(count, attended.shape[1], key_heads, -1).transpose(1, 2)
            for part in rows[1:]
        )
        outputs.append(_attend(q, k, v, mask, scaling, dropout).transpose(1, 2).reshape(count * size, -1))
    result = torch.cat(outputs).index_select(0, packed_places)
    return result.view(1, -1, heads, query.shape[-1]), None


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scaling: float | None, dropout: float) -> Tensor:
    """Attention of one block, shape (R, heads, Q, d); a key head serves heads / key heads query heads in a row.

    Written out on a CPU: torch's fused kernel there takes four times as long backwards on segments this short.
    """
    rows, heads, size, width = q.shape
    key_heads = k.shape[1]
    if q.device.type != "cpu":
        return masked_attention(q, k, v, mask, scale=scaling, dropout=dropout)
    # The query heads of one key head stand one below the other, so that keys and values need not be repeated.
    q = q.reshape(rows, key_heads, -1, width) * (width**-0.5 if scaling is None else scaling)
    products = (q @ k.transpose(2, 3)).view(rows, heads, size, -1)
    weights = products.masked_fill(~mask, -torch.inf).softmax(dim=-1).to(v.dtype)
    weights = torch.nn.functional.dropout(weights, dropout)
    return (weights.view(rows, key_heads, heads // key_heads * size, -1) @ v).view(rows, heads, size, width)


def register() -> None:
    """Make `ATTENTION` known to transformers; may be called again."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, packed_attention)
