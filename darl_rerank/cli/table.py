"""A ranking as a table for the terminal: places, scores, grades and one small bar for each grade's probability."""

from __future__ import annotations

import shutil
import sys
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..results import RankedDocument

_BLOCKS = " ▁▂▃▄▅▆▇█"
# From this percentile on at most one in a hundred pairs like the training set's would be marked.
NOVEL = 99.0
_NARROWEST_TITLE = 12


def ranking_table(
    ranking: Sequence[RankedDocument],
    titles: Sequence[str],
    *,
    old_ranks: Sequence[int | None] | None = None,
    width: int | None = None,
    blocks: bool | None = None,
) -> str:
    """The table of one query: header, one line a document, no line longer than `width`, no newline at the end.

    The bars stand for the probabilities of the grades, the lowest grade on the left, a full bar for 1. The column
    for novelty is there if any document has one; from the 99th percentile on it is marked with "!".

    Args:
        ranking: what to show, in order.
        titles: what to call each document; white space is folded and what does not fit is cut, with "…".
        old_ranks: the place, from 1, that each document had before reranking, None where it is not known.
        width: cells of a line; the terminal's if None.
        blocks: draw bars with block characters; if not, tenths are written as digits. If None, by what the standard
            output can encode.
    """
    if not ranking:
        return "(no documents)"
    blocks = can_draw_blocks() if blocks is None else blocks
    bars = [" ".join(_bar(p, blocks) for p in ranked.probabilities) for ranked in ranking]
    grades = max(len(ranked.probabilities) for ranked in ranking)
    columns = [("#", ">", [str(ranked.rank) for ranked in ranking])]
    if old_ranks is not None:
        columns.append(("was", ">", ["-" if old is None else str(old) for old in old_ranks]))
    columns.append(("score", ">", ["-" if r.score is None else f"{r.score:.3f}" for r in ranking]))
    columns.append(("grade", "<", [ranked.grade_name or "not judged" for ranked in ranking]))
    columns.append((" ".join(_grade_number(grade) for grade in range(grades)), "<", bars))
    if any(ranked.novelty is not None for ranked in ranking):
        columns.append(("novelty", ">", [_novelty(ranked.novelty) for ranked in ranking]))
    lines = [""] * (len(ranking) + 1)
    for name, side, cells in columns:
        wide = max(map(_cells, [name, *cells]))
        for number, cell in enumerate([name, *cells]):
            space = " " * (wide - _cells(cell))
            lines[number] += (space + cell if side == ">" else cell + space) + "  "
    width = shutil.get_terminal_size().columns if width is None else width
    # In a terminal that is too narrow a line wraps, rather than saying nothing of the document.
    left = max(width - _cells(lines[0]), _NARROWEST_TITLE)
    shown = [_cut(" ".join(title.split()), left, "…" if blocks else "...") for title in ["document", *titles]]
    return "\n".join((line + title).rstrip() for line, title in zip(lines, shown, strict=True))


def can_draw_blocks() -> bool:
    """Whether the standard output can encode block characters."""
    try:
        _BLOCKS.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _bar(probability: float, blocks: bool) -> str:
    if blocks:
        return _BLOCKS[round(probability * (len(_BLOCKS) - 1))] * 2
    return f".{min(9, int(probability * 10))}"


def _grade_number(grade: int) -> str:
    return f"{grade:<2}"


def _novelty(novelty: float | None) -> str:
    return "- " if novelty is None else f"{int(novelty)}{'!' if novelty >= NOVEL else ' '}"


def _cells(text: str) -> int:
    """How many cells of a terminal a text takes: wide East Asian characters take two, combining marks none."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _cut(text: str, cells: int, mark: str) -> str:
    if _cells(text) <= cells:
        return text
    while _cells(text) > cells - len(mark):
        text = text[:-1]
    return text + mark
