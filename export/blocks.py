"""How packed tokens attend: gathered into blocks of equal length, a row each, behind the prefix's keys and values."""

from __future__ import annotations

from typing import Any

import torch


class KeysValues:
    """What the decoder takes for a cache: keeps the keys and values of the packed tokens, shape (1, heads, T, size).

    A layer's first ones are its own, and what it gets whatever it makes later: see `last_tokens`.
    """

    def __init__(self, length: Any) -> None:
        self._length = length
        self.own: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.own.setdefault(layer_idx, (keys, values))

    def get_seq_length(self, layer_idx: int = 0) -> Any:
        return self._length


# Queries, keys, values of rows, (n, heads, …, size) each, and which queries may see which keys. Queries of heads that
# share keys and values stand one behind the other, (n, heads, times · queries, size): fewer and larger products.
Part = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


class Blocks:
    """Gathers packed rows into blocks for attention, behind the prefix, and its results back.

    Each row's queries are two parts: those of the first half have nothing to do with the second half's keys.

    Args:
        places: of n rows' L tokens among the T packed ones, shape (n, L).
        rows, inside: of each packed token its row and its place there, shape (T,).
        prefix: keys and values before each row, shape (layers, 2, heads, P, size); None if there are none.
    """

    def __init__(
        self, places: torch.Tensor, rows: torch.Tensor, inside: torch.Tensor, prefix: torch.Tensor | None
    ) -> None:
        self._places, self._rows, self._inside = places, rows, inside
        # Where each part of a row's queries begins and ends; of an odd number the one in the middle is in both, so that
        # neither is empty.
        longest = places.shape[1]
        self._spans: list[tuple[Any, Any]] = [(0, longest - longest // 2), (longest // 2, longest)]
        self.before = 0 if prefix is None else prefix.shape[3]
        # One layer's keys, or its values, are then one entry, with all heads' rows.
        self._prefix = None if prefix is None else prefix.flatten(0, 1).flatten(1, 2)
        # Made once for all layers, which have the same heads.
        self._tables: dict[tuple[int, int | None], torch.Tensor] = {}
        self._returned: dict[int, torch.Tensor] = {}
        self._masks: dict[tuple[int, int | None], torch.Tensor] = {}

    @property
    def keys(self) -> Any:
        """How many keys each row has, P + L."""
        return self.before + self._places.shape[1]

    def parts(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, layer: int, window: int | None
    ) -> list[Part]:
        """What has to be attended, of packed ones, shape (1, heads, T, size) each.

        Args:
            queries, keys, values: of one layer.
            layer: its number, from 0.
            window: how many of the last keys a query may see; None for all.
        """
        keys, values = self.keys_values(keys, values, layer)
        count, shared, heads, size = self._places.shape[0], keys.shape[1], queries.shape[1], queries.shape[3]
        first, second = (self._take(queries, part).reshape(count, shared, -1, size) for part in range(len(self._spans)))
        masks = [self._mask(part, window, heads // shared) for part in range(len(self._spans))]
        seen = masks[0].shape[3]
        return [(first, keys[:, :, :seen], values[:, :, :seen], masks[0]), (second, keys, values, masks[1])]

    def first_row(self, packed: torch.Tensor) -> torch.Tensor:
        """(1, heads, T, size) to (1, heads, L, size)."""
        return packed.transpose(1, 2).index_select(1, self._places[0]).transpose(1, 2)

    def keys_values(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """Each (1, heads, T, size) to (n, heads, P + L, size)."""
        if self._prefix is None:
            return self._take(keys), self._take(values)
        first, second = self._prefix[2 * layer], self._prefix[2 * layer + 1]
        return self._take(keys, before=first), self._take(values, before=second)

    def packed(self, parts: list[torch.Tensor], heads: int) -> torch.Tensor:
        """Of `parts` the results, for so many heads of queries, to (1, T, heads, size)."""
        if heads not in self._returned:
            (_, half), (start, _) = self._spans
            inside, head = self._inside[:, None], torch.arange(heads)
            first = (self._rows[:, None] * heads + head) * half + inside
            second = first + (self._places.shape[0] * heads * half - start)
            self._returned[heads] = torch.where(inside < half, first, second)
        stored = torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])
        return rows_of(stored, self._returned[heads])[None]

    def _mask(self, part: int, window: int | None, times: int) -> torch.Tensor:
        """True where a query of a part may see a key, shape (1, 1, times · queries, keys until the part's end).

        Made once for all layers of a kind.
        """
        key = part, window
        if key not in self._masks:
            start, end = self._spans[part]
            row = torch.arange(start, end).repeat(times)[:, None] + self.before
            column = torch.arange(self.before + end)[None]
            seen = column <= row
            if window is not None:
                seen = seen & (column > row - window)
            self._masks[key] = seen[None, None]
        return self._masks[key]

    def _take(self, own: torch.Tensor, part: int | None = None, before: torch.Tensor | None = None) -> torch.Tensor:
        """Of packed ones, shape (1, heads, T, size), the blocks, shape (n, heads, …, size): one gather.

        Args:
            own: what is packed.
            part: of each row; None for all of it.
            before: what comes before each row, shape (heads · P, size).
        """
        _, heads, _, size = own.shape
        key = heads, part
        if key not in self._tables:
            start, end = (0, self._places.shape[1]) if part is None else self._spans[part]
            head = torch.arange(heads)[None, :, None]
            table = self._places[:, None, start:end] * heads + head
            if before is not None:
                shared = (head * self.before + torch.arange(self.before)).expand(self._places.shape[0], -1, -1)
                table = torch.cat([shared, table + heads * self.before], dim=2)
            self._tables[key] = table
        # As the product gave them, in which form they need not be moved: see `simplification`.
        stored = own.transpose(1, 2).reshape(-1, size)
        if before is not None:
            stored = torch.cat([before, stored])
        return rows_of(stored, self._tables[key])


class OneRow(Blocks):
    """A single row without padding or prefix: its tokens are one block already, and one part."""

    def parts(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, layer: int, window: int | None
    ) -> list[Part]:
        _, heads, length, size = queries.shape
        self._spans, shared = [(0, length)], keys.shape[1]
        mask = self._mask(0, window, heads // shared)
        return [(queries.reshape(1, shared, -1, size), keys, values, mask)]

    def keys_values(self, keys: torch.Tensor, values: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        return keys, values

    def packed(self, parts: list[torch.Tensor], heads: int) -> torch.Tensor:
        (whole,) = parts
        return whole.reshape(1, heads, -1, whole.shape[-1]).transpose(1, 2)


class LastQueries:
    """One query a row, its last token's, behind the keys and values of `blocks`; see there for the methods.

    Args:
        blocks: of all tokens.
        lengths: of each row its tokens, shape (n,).
    """

    def __init__(self, blocks: Blocks, lengths: torch.Tensor) -> None:
        self._blocks = blocks
        # A row without any token sees one rather than failing.
        self._ends = (lengths + blocks.before).clamp(min=1)[:, None]
        self._masks: dict[int | None, torch.Tensor] = {}

    def parts(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, layer: int, window: int | None
    ) -> list[Part]:
        """`queries` of last tokens, shape (1, heads, n, size), keys and values of all."""
        keys, values = self._blocks.keys_values(keys, values, layer)
        _, heads, count, size = queries.shape
        shared = keys.shape[1]
        queries = queries.transpose(1, 2).reshape(count, shared, heads // shared, size)
        return [(queries, keys, values, self._mask(window, heads // shared))]

    def packed(self, parts: list[torch.Tensor], heads: int) -> torch.Tensor:
        """To (1, n, heads, size)."""
        (whole,) = parts
        return whole.reshape(1, -1, heads, whole.shape[-1])

    def _mask(self, window: int | None, times: int) -> torch.Tensor:
        """True where a row's last token may see a key, which padding lies behind, shape (n, 1, times, P + L)."""
        if window not in self._masks:
            column = torch.arange(self._blocks.keys)[None]
            seen = column < self._ends
            if window is not None:
                seen = seen & (column >= self._ends - window)
            self._masks[window] = seen[:, None, None].expand(-1, 1, times, -1)
        return self._masks[window]


def rows_of(stored: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """`stored[table]`, of the table's shape and one axis more."""
    # Of the operators that gather rows the one that becomes Gather alone.
    return torch.nn.functional.embedding(table, stored)
