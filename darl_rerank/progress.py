"""Progress of long work: a bar on a terminal, a line now and then in a log, or a function of the caller's.

Every function of the package that works for long takes one argument, `progress`, and hands it to `progress_bar`.
"""

from __future__ import annotations

import atexit
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress as Display

# True shows rate and time left on stderr, False shows nothing; a function is called with what is being done, how much
# of it is done, and how much there is (None if that isn't known).
Progress = bool | Callable[[str, int, int | None], None]

# Seconds until the first line where stderr is no terminal; each further one comes after twice as long, up to the second
# number.
_FIRST_LINE, _LONGEST = 5.0, 80.0
# Columns.
_ROOM_FOR_A_BAR = 72

_silent = False
_lock = threading.Lock()
_display: Display | None = None
_shown = 0


class Bar(Protocol):
    """One piece of work under way."""

    def update(self, count: int = 1, status: str = "") -> None:
        """`count` more are done; `status` stands behind the bar, such as a loss."""


def silence(silent: bool) -> None:
    """Show no bar at all, whatever is asked for (`--quiet`); functions are called all the same."""
    global _silent  # noqa: PLW0603
    _silent = silent


@contextmanager
def progress_bar(what: str, total: int | None, *, unit: str, done: int = 0, progress: Progress = True) -> Iterator[Bar]:
    """Show how far `what` is.

    Args:
        what: what is done, such as "reranking".
        total: how much there is to do, None if that isn't known.
        unit: of what, such as "doc".
        done: how much an earlier run has done; it doesn't count for the rate.
        progress: see `Progress`.
    """
    if callable(progress):
        progress(what, done, total)
        yield _Function(progress, what, done, total)
    elif not progress or _silent:
        yield _Nothing()
    elif _on_a_terminal():
        with _shared_display() as display:
            task = display.add_task(what, total=total, completed=done, unit=unit, status="")
            yield _Task(display, task)
    else:
        lines = _Lines(what, total, unit, done)
        yield lines
        lines.finish()


class _Nothing:
    def update(self, count: int = 1, status: str = "") -> None:
        pass


class _Function:
    def __init__(self, call: Callable[[str, int, int | None], None], what: str, done: int, total: int | None) -> None:
        self._call, self._what, self._done, self._total = call, what, done, total

    def update(self, count: int = 1, status: str = "") -> None:
        self._done += count
        self._call(self._what, self._done, self._total)


class _Task:
    def __init__(self, display: Display, task: int) -> None:
        self._display, self._task = display, task

    def update(self, count: int = 1, status: str = "") -> None:
        from rich.progress import TaskID

        self._display.update(TaskID(self._task), advance=count, status=status)


class _Lines:
    """Lines for a log: after 5 seconds, then after twice as long each time, and one at the end."""

    def __init__(self, what: str, total: int | None, unit: str, done: int) -> None:
        self._what, self._total, self._unit, self._before = what, total, unit, done
        self._done = 0
        self._started = time.monotonic()
        self._pause = _FIRST_LINE
        self._next = self._started + self._pause

    def update(self, count: int = 1, status: str = "") -> None:
        self._done += count
        now = time.monotonic()
        if now < self._next:
            return
        self._pause = min(2 * self._pause, _LONGEST)
        self._next = now + self._pause
        done, rate = self._before + self._done, self._done / (now - self._started)
        line = f"{self._what}: {done:,}"
        if self._total:
            line += f" of {self._total:,} {self._unit} ({done / self._total:.0%}), {_rate(rate)} {self._unit}/s"
            line += f", {_clock((self._total - done) / rate)} left" if rate else ""
        else:
            line += f" {self._unit}, {_rate(rate)} {self._unit}/s"
        print(line + (f", {status}" if status else ""), file=sys.stderr, flush=True)  # noqa: T201

    def finish(self) -> None:
        if not self._done:
            return
        seconds = time.monotonic() - self._started
        rate = f", {_rate(self._done / seconds)} {self._unit}/s" if seconds else ""
        print(  # noqa: T201
            f"{self._what}: {self._done:,} {self._unit} in {_clock(seconds)}{rate}", file=sys.stderr, flush=True
        )


def _on_a_terminal() -> bool:
    from rich.console import Console

    console = Console(stderr=True)
    return console.is_terminal and not console.is_dumb_terminal


@contextmanager
def _shared_display() -> Iterator[Display]:
    """The display of all bars of the process, as a terminal can show only one; gone when its last bar is."""
    global _display, _shown  # noqa: PLW0603
    with _lock:
        if _display is None:
            _display = _new_display()
            # A terminal whose cursor is hidden stays so when a process ends in the middle of a bar.
            atexit.register(_display.stop)
            _display.start()
        display = _display
        _shown += 1
    try:
        yield display
    finally:
        with _lock:
            _shown -= 1
            if not _shown:
                display.stop()
                atexit.unregister(display.stop)
                _display = None


def _new_display() -> Display:
    from rich import progress
    from rich.console import Console
    from rich.table import Column
    from rich.text import Text

    def in_one_line() -> Column:
        return Column(no_wrap=True)

    class Rate(progress.ProgressColumn):
        def render(self, task: progress.Task) -> Text:
            rate = task.finished_speed or task.speed
            return Text("" if rate is None else f"{_rate(rate)} {task.fields['unit']}/s", style="progress.data.speed")

    console = Console(stderr=True)
    # A narrow terminal has room for the numbers only.
    bar = [progress.BarColumn(bar_width=30)] if console.width >= _ROOM_FOR_A_BAR else []
    return progress.Progress(
        progress.TextColumn("{task.description}"),
        *bar,
        progress.MofNCompleteColumn(table_column=in_one_line()),
        Rate(table_column=in_one_line()),
        progress.TimeRemainingColumn(elapsed_when_finished=True, table_column=in_one_line()),
        progress.TextColumn("{task.fields[status]}"),
        console=console,
    )


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}" if rate >= 1 else f"{rate:.2f}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
