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


class Blocks:
    """Gathers packed rows into blocks for attention, behind the prefix, and its results back.

    Args:
        places: of n rows' L tokens among the T packed ones, shape (n, L).
        rows, inside: of each packed token its row and its place there, shape (T,).
        prefix: keys and values before each row, shape (layers, 2, heads, P, size); None if there are none.
    """

    def __init__(
        self, places: torch.Tensor, rows: torch.Tensor, inside: torch.Tensor, prefix: torch.Tensor | None
    ) -> None:
        self._places, self._rows, self._inside = places, rows, inside
        self._before = 0 if prefix is None else prefix.shape[3]
        # One layer's keys, or its values, are then one entry, with all heads' rows.
        self._prefix = None if prefix is None else prefix.flatten(0, 1).flatten(1, 2)
        # Made once for all layers, which have the same heads.
        self._taken: dict[tuple[int, bool], torch.Tensor] = {}
        self._returned: dict[int, torch.Tensor] = {}
        self._masks: dict[int | None, torch.Tensor] = {}

    def queries(self, packed: torch.Tensor) -> torch.Tensor:
        """(1, heads, T, size) to (n, heads, L, size)."""
        return self._take(packed, None)

    def first_row(self, packed: torch.Tensor) -> torch.Tensor:
        """(1, heads, T, size) to (1, heads, L, size)."""
        return packed.transpose(1, 2).index_select(1, self._places[0]).transpose(1, 2)

    def keys_values(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """Each (1, heads, T, size) to (n, heads, P + L, size)."""
        if self._prefix is None:
            return self._take(keys, None), self._take(values, None)
        return self._take(keys, self._prefix[2 * layer]), self._take(values, self._prefix[2 * layer + 1])

    def packed(self, blocks: torch.Tensor) -> torch.Tensor:
        """(n, heads, L, size) to (1, T, heads, size)."""
        _, heads, length, size = blocks.shape
        if heads not in self._returned:
            head = torch.arange(heads)
            self._returned[heads] = (self._rows[:, None] * heads + head) * length + self._inside[:, None]
        table = self._returned[heads]
        return rows_of(blocks.reshape(-1, size), table)[None]

    def mask(self, queries: int, keys: int, window: int | None, times: int) -> torch.Tensor:
        """True where query i may see key j, shape (1, 1, times · queries, keys); made once for all layers of a kind.

        Args:
            queries, keys: how many each row has.
            window: how many of the last keys a query may see; None for all.
            times: as often queries stand there one behind the other.
        """
        if window not in self._masks:
            row = (torch.arange(queries) + (keys - queries)).repeat(times)[:, None]
            column = torch.arange(keys)[None]
            seen = column <= row
            if window is not None:
                seen = seen & (column > row - window)
            self._masks[window] = seen[None, None]
        return self._masks[window]

    def _take(self, own: torch.Tensor, before: torch.Tensor | None) -> torch.Tensor:
        """Rows of `own`, shape (1, heads, T, size), behind `before`, shape (heads · P, size): one gather of both."""
        _, heads, _, size = own.shape
        count = self._places.shape[0]
        key = heads, before is not None
        if key not in self._taken:
            head = torch.arange(heads)[None, :, None]
            table = self._places[:, None] * heads + head
            if before is not None:
                first = self._before
                shared = (head * first + torch.arange(first)).expand(count, -1, -1)
                table = torch.cat([shared, table + heads * first], dim=2)
            self._taken[key] = table
        table = self._taken[key]
        # As the product gave them, in which form they need not be moved: see `simplification`.
        stored = own.transpose(1, 2).reshape(-1, size)
        if before is not None:
            stored = torch.cat([before, stored])
        return rows_of(stored, table)


class OneRow(Blocks):
    """A single row without padding or prefix: its tokens are one block already."""

    def queries(self, packed: torch.Tensor) -> torch.Tensor:
        return packed

    def keys_values(self, keys: torch.Tensor, values: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        return keys, values

    def packed(self, blocks: torch.Tensor) -> torch.Tensor:
        return blocks.transpose(1, 2)


class LastQueries:
    """One query a row, its last token's, behind the keys and values of `blocks`.

    Args:
        blocks: of all tokens.
        lengths: of each row its tokens, shape (n,).
        before: length of the prefix.
    """

    def __init__(self, blocks: Blocks, lengths: torch.Tensor, before: Any) -> None:
        self.keys_values = blocks.keys_values
        # A row without any token sees one rather than failing.
        self._ends = (lengths + before).clamp(min=1)[:, None]
        self._masks: dict[int | None, torch.Tensor] = {}

    def queries(self, packed: torch.Tensor) -> torch.Tensor:
        """(1, heads, n, size) to (n, heads, 1, size)."""
        _, heads, count, size = packed.shape
        return packed.transpose(1, 2).reshape(count, heads, 1, size)

    def packed(self, blocks: torch.Tensor) -> torch.Tensor:
        """(n, heads, 1, size) to (1, n, heads, size)."""
        count, heads, _, size = blocks.shape
        return blocks.reshape(1, count, heads, size)

    def mask(self, queries: int, keys: int, window: int | None, times: int) -> torch.Tensor:
        """True where a row's last token may see key j, which padding lies behind, shape (n, 1, times, keys)."""
        if window not in self._masks:
            column = torch.arange(keys)[None]
            seen = column < self._ends
            if window is not None:
                seen = seen & (column >= self._ends - window)
            self._masks[window] = seen[:, None, None].expand(-1, 1, times, keys)
        return self._masks[window]


def rows_of(stored: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """`stored[table]`, of the table's shape and one axis more."""
    # Of the operators that gather rows the one that becomes Gather alone.
    return torch.nn.functional.embedding(table, stored)
