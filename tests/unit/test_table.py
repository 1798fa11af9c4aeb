"""The table of a ranking in the terminal."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest
from rich.console import Console

from darl_rerank.cli import table as module
from darl_rerank.cli.table import can_draw_blocks
from darl_rerank.results import RankedDocument


def ranked(rank: int, probabilities: tuple[float, ...], novelty: float | None = None) -> RankedDocument:
    grade = probabilities.index(max(probabilities))
    name = ("irrelevant", "related", "perfect")[grade]
    score = sum(p * k for k, p in enumerate(probabilities))
    return RankedDocument(rank, rank - 1, f"d{rank}", None, score, grade, name, probabilities, novelty)


def ranking_table(*arguments: Any, colour: bool = False, width: int = 80, **options: Any) -> str:
    """The table as text, lines without the spaces at their ends."""
    console = Console(
        file=io.StringIO(), width=1000, force_terminal=colour, color_system="standard" if colour else None
    )
    with console.capture() as captured:
        console.print(module.ranking_table(*arguments, width=width, **options))
    return "\n".join(line.rstrip() for line in captured.get().rstrip("\n").split("\n"))


RANKING = [ranked(1, (0.0, 0.0, 1.0), 12.0), ranked(2, (0.5, 0.25, 0.25), 99.6), ranked(10, (1.0, 0.0, 0.0))]
TITLES = ["Dell XPS 13\nnotebook", "A sleeve " * 30, "Hose"]


def test_every_column_says_its_document() -> None:
    table = ranking_table(RANKING, TITLES, old_ranks=[3, None, 1], width=80, blocks=True).split("\n")
    assert table == [
        " #  was  score  grade       0  1  2   novelty  document",
        " 1    3  2.000  perfect           ██      12   Dell XPS 13 notebook",
        " 2    -  0.750  irrelevant  ▄▄ ▂▂ ▂▂      99!  A sleeve A sleeve A sleeve A sle…",
        "10    1  0.000  irrelevant  ██             -   Hose",
    ]


def test_colour_only_where_it_is_wanted() -> None:
    assert "\x1b[" not in ranking_table(RANKING, TITLES, blocks=True)
    coloured = ranking_table(RANKING, TITLES, blocks=True, colour=True)
    assert "\x1b[32m██" in coloured, "the highest grade is green"
    assert "99!" in coloured.split("\x1b[1;33m")[1]


def test_what_is_not_known_has_no_column() -> None:
    header = ranking_table([ranked(1, (0.5, 0.5))], ["x"], width=80, blocks=True).split("\n")[0]
    assert header.split() == ["#", "score", "grade", "0", "1", "document"]
    assert ranking_table([], []) == "(no documents)"


@pytest.mark.parametrize("width", [40, 62, 70, 80, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    wide = "日本語のタイトル" * 30
    table = ranking_table(RANKING, [wide, TITLES[1], "é" * 300], old_ranks=[1, 2, 3], width=width, blocks=True)
    for line in table.split("\n"):
        assert len(line) + sum(c in "日本語のタイトル" for c in line) <= width
    assert table.count("…") == 3


def test_a_narrow_terminal_still_shows_some_title() -> None:
    assert "Dell XPS 13…" in ranking_table(RANKING, TITLES, width=10, blocks=True)
    for width, header in ((50, "# was score grade novelty document"), (40, "# grade novelty document")):
        table = ranking_table(RANKING, TITLES, old_ranks=[1, 2, 3], width=width, blocks=True).split("\n")
        assert table[0].split() == header.split()


def test_without_block_characters_bars_are_tenths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="latin-1"))
    assert not can_draw_blocks()
    table = ranking_table(RANKING, TITLES, width=80)
    table.encode("ascii")
    assert ".5 .2 .2" in table.split("\n")[2]
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    assert can_draw_blocks()


def test_a_document_that_was_not_judged_has_no_figures() -> None:
    unjudged = RankedDocument(2, 0, "d", None, None, None, None, (), judged=False, reason="is empty")
    table = ranking_table([RANKING[0], unjudged], ["a", "b"], width=80, blocks=True).split("\n")
    assert table[2].split() == ["2", "-", "not", "judged", "-", "b"]
    assert ranking_table([unjudged], ["b"], width=80, blocks=True).split("\n")[1].split() == [
        "2",
        "-",
        "not",
        "judged",
        "b",
    ]


def test_a_title_can_not_command_the_terminal() -> None:
    titles = ["a \x1b[31mred\x1b]52;c;aGk=\x07 hose", "b \x9b2J \u202eesoh", "family \U0001f468\u200d\U0001f469"]
    table = ranking_table(RANKING, titles, width=200, blocks=True)
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(table)
    assert "a \ufffd[31mred\ufffd]52;c;aGk=\ufffd hose" in table
    assert "\U0001f468\u200d\U0001f469" in table
