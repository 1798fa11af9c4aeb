"""A ranking as a table for the terminal: places, scores, grades and one small bar for each grade's probability."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from .terminal import visible

if TYPE_CHECKING:
    from ..results import RankedDocument

_BLOCKS = " ▁▂▃▄▅▆▇█"
# From this percentile on at most one in a hundred pairs like the training set's would be marked.
NOVEL = 99.0
_NARROWEST_TITLE = 12
# On a terminal, from the lowest grade to the highest.
_COLOURS = ("bright_black", "yellow", "cyan", "green")

# Header, side that cells stand on, cells.
_Column = tuple[str, Literal["left", "right"], Sequence[str | Text]]


def ranking_table(
    ranking: Sequence[RankedDocument],
    titles: Sequence[str],
    *,
    old_ranks: Sequence[int | None] | None = None,
    width: int,
    blocks: bool | None = None,
) -> RenderableType:
    """The table of one query: header and one line a document, none longer than `width`.

    The bars stand for the probabilities of the grades, the lowest grade on the left, a full bar for 1. The column
    for novelty is there if any document has one; from the 99th percentile on it is marked with "!".

    Args:
        ranking: what to show, in order.
        titles: what to call each document; white space is folded and what does not fit is cut, with "…".
        old_ranks: the place, from 1, that each document had before reranking, None where it is not known.
        width: cells of a line. Where that leaves too few for the titles, bars, old places and scores are left out.
        blocks: draw bars with block characters; if not, tenths are written as digits. If None, by what the standard
            output can encode.
    """
    if not ranking:
        return "(no documents)"
    blocks = can_draw_blocks() if blocks is None else blocks
    grades = max(len(ranked.probabilities) for ranked in ranking)
    columns: list[_Column] = [("#", "right", [str(ranked.rank) for ranked in ranking])]
    if old_ranks is not None:
        columns.append(("was", "right", ["-" if old is None else str(old) for old in old_ranks]))
    columns.append(("score", "right", ["-" if r.score is None else f"{r.score:.3f}" for r in ranking]))
    columns.append(("grade", "left", [ranked.grade_name or "not judged" for ranked in ranking]))
    bars = " ".join(f"{grade:<2}" for grade in range(grades))
    columns.append((bars, "left", [_bars(ranked.probabilities, blocks) for ranked in ranking]))
    if any(ranked.novelty is not None for ranked in ranking):
        columns.append(("novelty", "left", [_novelty(ranked.novelty) for ranked in ranking]))
    # The titles take what the other columns leave.
    for name in (bars, "was", "score"):
        if _room(columns, width) < _NARROWEST_TITLE:
            columns = [column for column in columns if column[0] != name]
    room = max(_room(columns, width), _NARROWEST_TITLE)
    columns.append(("document", "left", [_cut(title, room, "…" if blocks else "...") for title in titles]))
    return _table(columns)


def _room(columns: Sequence[_Column], width: int) -> int:
    """Cells that these columns leave to one more."""
    return width - Console(width=10_000).measure(_table(columns)).maximum - 2


def _table(columns: Sequence[_Column]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for header, side, _ in columns:
        table.add_column(header, justify=side, no_wrap=True)
    for row in zip(*(cells for _, _, cells in columns), strict=True):
        table.add_row(*row)
    return table


def can_draw_blocks() -> bool:
    """Whether the standard output can encode block characters."""
    try:
        _BLOCKS.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _bars(probabilities: Sequence[float], blocks: bool) -> Text:
    bars = []
    for grade, probability in enumerate(probabilities):
        drawn = _BLOCKS[round(probability * (len(_BLOCKS) - 1))] * 2 if blocks else f".{min(9, int(probability * 10))}"
        place = grade / max(1, len(probabilities) - 1)
        bars.append(Text(drawn, _COLOURS[round(place * (len(_COLOURS) - 1))]))
    return Text(" ").join(bars)


def _novelty(novelty: float | None) -> Text:
    # The mark stands behind the number, which ends above and below where it does without one.
    marked = novelty is not None and novelty >= NOVEL
    number = "-" if novelty is None else str(int(novelty))
    return Text(f"{number:>6}{'!' if marked else ''}", "bold yellow" if marked else "")


def _cut(title: str, cells: int, mark: str) -> Text:
    text = Text(visible(" ".join(title.split())))
    if text.cell_len > cells:
        text.truncate(cells - len(mark))
        text.append(mark)
    return text
