"""Query groups into micro-batches under a token budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..arguments import check_count
from ..model.prompt import PromptGroup

# Below this many documents, running the prefix on its own costs more than it saves: whole sequences of several
# groups then fill a batch together.
MIN_SHARED = 4
# What a sequence of L tokens behind a prefix of P takes besides its own activations, as a share of a token's: its keys
# and values, the prefix's included, and what attention computes for L queries and P + L keys.
_KEYS_PER_TOKEN = 4
_PRODUCTS_PER_TOKEN = 1024


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Sequences that run together.

    Attributes:
        prefix: the token ids that all of them begin with and that are run once; empty if each sequence is whole.
        sequences: token ids after the prefix, in order of length.
        positions: for each sequence, its place in the flattened list of all groups' suffixes.
    """

    prefix: tuple[int, ...]
    sequences: tuple[tuple[int, ...], ...]
    positions: tuple[int, ...]


def plan(groups: Sequence[PromptGroup], batch_tokens: int, *, share_prefix: bool = True) -> Iterator[MicroBatch]:
    """Micro-batches that hold every sequence of `groups` once; those with the same prefix come one after the other.

    Args:
        groups: query groups.
        batch_tokens: largest number of tokens, padding included, in one micro-batch, and fewer where the prefix or long
            sequences make attention the larger part of the memory; a single longer sequence still gets a micro-batch
            of its own.
        share_prefix: run the prefix of a group of at least `MIN_SHARED` sequences once.

    Raises:
        InputError: `batch_tokens` below 1.
    """
    check_count("batch_tokens", batch_tokens)
    whole: list[tuple[tuple[int, ...], int]] = []
    offset = 0
    for group in groups:
        numbered = [(suffix, offset + i) for i, suffix in enumerate(group.suffixes)]
        offset += len(numbered)
        if share_prefix and len(numbered) >= MIN_SHARED:
            yield from _cut(group.prefix, numbered, batch_tokens)
        else:
            whole.extend((group.prefix + suffix, position) for suffix, position in numbered)
    yield from _cut((), whole, batch_tokens)


def _cut(
    prefix: tuple[int, ...], numbered: Sequence[tuple[tuple[int, ...], int]], batch_tokens: int
) -> Iterator[MicroBatch]:
    # Longest first: the first batch is the largest, so memory that suffices for it suffices for all.
    ordered = sorted(numbered, key=lambda item: (-len(item[0]), item[1]))
    start = 0
    while start < len(ordered):
        count = max(1, batch_tokens // _cost(len(ordered[start][0]), len(prefix)))
        sequences, positions = zip(*ordered[start : start + count], strict=True)
        yield MicroBatch(prefix, sequences, positions)
        start += count


def _cost(length: int, before: int) -> int:
    """Memory of a sequence behind a prefix of `before` tokens, in tokens of the budget."""
    keys = before + length
    return max(length, -(-keys // _KEYS_PER_TOKEN), -(-length * keys // _PRODUCTS_PER_TOKEN))


def halves(batch: MicroBatch) -> tuple[MicroBatch, MicroBatch]:
    """The first and the second half of a micro-batch of at least two sequences."""
    middle = -(-len(batch.sequences) // 2)
    first, second = (
        MicroBatch(batch.prefix, batch.sequences[part], batch.positions[part])
        for part in (slice(None, middle), slice(middle, None))
    )
    return first, second
