"""What commands show: notes and warnings on stderr; results on stdout, as tables that fit the terminal or as JSON."""

from __future__ import annotations

import json
import logging
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .. import progress

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

_Command = TypeVar("_Command", bound=Callable[..., Any])

# The root of all our loggers: what the package has to say goes through `logging`.
_LOGGER = logging.getLogger(__package__.split(".", maxsplit=1)[0])

# Control characters, and those that override the direction of writing.
_OBEYED = dict.fromkeys([*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A)], "\ufffd")
del _OBEYED[ord("\n")], _OBEYED[ord("\t")]

# A file has no width: nothing is cut and nothing is wrapped.
_WIDE = 100_000

json_option: Callable[[_Command], _Command] = click.option(
    "--json", "as_json", is_flag=True, help="Print the results as JSON on the standard output."
)


class _OnStderr(logging.Handler):
    """Notes as they are, warnings and errors with a word before them, yellow or red on a terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        from rich.text import Text

        word, style = ("", "")
        if record.levelno >= logging.ERROR:
            word, style = "Error: ", "bold red"
        elif record.levelno >= logging.WARNING:
            word, style = "Warning: ", "yellow"
        console(stderr=True).print(Text.assemble((word, style), visible(record.getMessage())), soft_wrap=True)


@contextmanager
def logging_on_stderr() -> Iterator[None]:
    """While it lasts, what the package logs goes to stderr, and so does what Python warns of, in one line each."""
    handler = _OnStderr()
    level, propagate = _LOGGER.level, _LOGGER.propagate
    _LOGGER.addHandler(handler)
    # Libraries such as Pyserini give the root logger a handler when they are imported: nothing is said twice.
    _LOGGER.propagate = False
    _LOGGER.setLevel(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: _LOGGER.warning("%s", message)
            yield
    finally:
        _LOGGER.removeHandler(handler)
        _LOGGER.setLevel(level)
        _LOGGER.propagate = propagate
        progress.silence(False)


def add_quiet(command: click.Command) -> None:
    """Give a command, or all commands of a group, the option --quiet."""
    if isinstance(command, click.Group):
        for part in command.commands.values():
            add_quiet(part)
    elif not any(parameter.name == "quiet" for parameter in command.params):
        command.params.append(
            click.Option(
                ["--quiet", "-q"],
                is_flag=True,
                expose_value=False,
                callback=_be_quiet,
                help="No progress and no notes: only results, warnings and errors.",
            )
        )


def _be_quiet(context: click.Context, parameter: click.Parameter, quiet: bool) -> None:
    if quiet:
        _LOGGER.setLevel(logging.WARNING)
        progress.silence(True)


def print_json(values: Any, *, indent: int | None = 1) -> None:
    """One JSON value on stdout, as UTF-8 text where stdout is that, else escaped to ASCII."""
    utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    click.echo(json.dumps(values, indent=indent, ensure_ascii=not utf8))


def print_table(header: Sequence[str], rows: Sequence[Sequence[str | Text]], *, left: Sequence[int] = (0,)) -> None:
    """A table on stdout, as wide as its cells; the columns that a terminal has no room for follow in tables below.

    Args:
        header: names of the columns.
        rows: cells, as many as columns.
        left: columns that are aligned to the left; numbers stand to the right.
    """
    from rich.cells import cell_len
    from rich.table import Table

    width = console().width
    widths = [max(cell_len(str(cell)) for cell in column) + 2 for column in zip(header, *rows, strict=True)]
    blocks: list[list[int]] = [[]]
    room = width - widths[0]
    for column in range(1, len(header)):
        if blocks[-1] and widths[column] > room:
            blocks.append([])
            room = width - widths[0]
        blocks[-1].append(column)
        room -= widths[column]
    for number, block in enumerate(blocks):
        if number:
            click.echo()
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        columns = [0, *block]
        for column in columns:
            # Prose goes on in the next line; the first column and numbers would be cut rather than broken.
            prose = column > 0 and column in left
            table.add_column(header[column], justify="left" if column in left else "right", no_wrap=not prose)
        for row in rows:
            table.add_row(*(row[column] for column in columns))
        show(table)


def show(what: RenderableType, *, indent: int = 0, fits: bool = False) -> None:
    """Print what rich can draw on stdout, without the spaces that fill lines up: they are of no use in a file.

    Args:
        what: a table, a text.
        indent: spaces before each line.
        fits: it has the terminal's width already; a line that is longer all the same is the terminal's to wrap.
    """
    out = console()
    if fits:
        out.width = _WIDE
    with out.capture() as captured:
        out.print(what)
    out.file.write("\n".join((" " * indent + line).rstrip() for line in captured.get().split("\n")))


def visible(text: str) -> str:
    """The text with U+FFFD for what a terminal would obey rather than show, but for line ends and tabs.

    A document may hold anything: codes that set the clipboard or the title, or turn the direction of a line around.
    """
    return text.translate(_OBEYED)


def line_width() -> int:
    """Cells of a line on stdout; in a file what $COLUMNS says, else 80."""
    return shutil.get_terminal_size().columns


def console(*, stderr: bool = False) -> Console:
    """stdout or stderr as rich writes it: colour on a terminal alone and never with NO_COLOR."""
    from rich.console import Console

    made = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not made.is_terminal:
        made.width = _WIDE
    return made
