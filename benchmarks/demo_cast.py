"""Records a command in a terminal: docs/figures/demo.cast (asciicast v2), and demo.svg with the time of every line.

    python benchmarks/demo_cast.py make demo

Both have the results alone: progress bars redraw themselves thousands of times.
"""

from __future__ import annotations

import io
import json
import os
import pty
import re
import selectors
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from darl_rerank.files import atomic_write

FIGURES = Path(__file__).resolve().parents[1] / "docs" / "figures"
WIDTH, HEIGHT = 112, 40
Event = tuple[float, str]


def record(command: Sequence[str]) -> tuple[list[Event], list[Event], int]:
    """What the command wrote to both streams and what to its output alone, each with its second; and its exit code."""
    environment = {**os.environ, "COLUMNS": str(WIDTH), "LINES": str(HEIGHT), "TERM": "xterm-256color"}
    outputs = [pty.openpty() for _ in range(2)]
    begun = time.monotonic()
    process = subprocess.Popen(command, stdout=outputs[0][1], stderr=outputs[1][1], env=environment)
    for _, theirs in outputs:
        os.close(theirs)
    ours = [mine for mine, _ in outputs]
    selector = selectors.DefaultSelector()
    for stream in ours:
        selector.register(stream, selectors.EVENT_READ)
    both: list[Event] = []
    results: list[Event] = []
    while selector.get_map():
        for key, _ in selector.select():
            try:
                data = os.read(key.fd, 65536)
            except OSError:  # the other end is closed
                data = b""
            if not data:
                selector.unregister(key.fd)
                continue
            event = (round(time.monotonic() - begun, 3), data.decode("utf-8", "replace"))
            both.append(event)
            if key.fd == ours[0]:
                results.append(event)
    return both, results, process.wait()


def timed_lines(events: Sequence[Event]) -> list[tuple[float, Text]]:
    """Each line with the second at which its end was written."""
    lines, kept = [], ""
    for second, data in events:
        kept += data
        *whole, kept = kept.split("\n")
        lines += [(second, Text.from_ansi(line.rstrip("\r"))) for line in whole]
    return lines


def picture(command: Sequence[str], events: Sequence[Event]) -> str:
    console = Console(width=WIDTH + 8, record=True, file=io.StringIO(), force_terminal=True)
    console.print(Text(f"$ {' '.join(command)}", style="bold"))
    shown = None
    for second, line in timed_lines(events):
        stamp = f"{second:5.0f} s " if shown != round(second) and line.plain.strip() else " " * 8
        shown = round(second) if stamp.strip() else shown
        console.print(Text.assemble((stamp, "bright_black"), line), soft_wrap=True, crop=True)
    drawn = console.export_svg(title="darl-rerank")
    # No font from elsewhere: the reader's own monospace does.
    return re.sub(r"@font-face \{.*?\}", "", drawn, flags=re.DOTALL).replace("Fira Code,", "")


def main() -> None:
    command = sys.argv[1:]
    both, results, status = record(command)
    if status != 0:
        sys.exit(f"{' '.join(command)}: exit code {status}\n" + "".join(data for _, data in both)[-2000:])
    head = {"version": 2, "width": WIDTH, "height": HEIGHT, "timestamp": int(time.time()), "title": " ".join(command)}
    with atomic_write(FIGURES / "demo.cast") as stream:
        stream.write(json.dumps(head) + "\n")
        stream.writelines(json.dumps([second, "o", data], ensure_ascii=False) + "\n" for second, data in results)
    with atomic_write(FIGURES / "demo.svg") as stream:
        stream.write(picture(command, results))
    print(f"{' '.join(command)}: {both[-1][0]:.0f} s")


if __name__ == "__main__":
    main()
