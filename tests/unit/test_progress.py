"""Progress on a terminal, in a log and for a function of the caller's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time

import pytest

from darl_rerank.progress import progress_bar, silence


def test_a_function_is_called_with_how_far_it_is() -> None:
    calls: list[tuple[str, int, int | None]] = []
    with progress_bar("judging", 10, unit="pair", done=4, progress=lambda *call: calls.append(call)) as bar:
        bar.update(3)
        bar.update()
    assert calls == [("judging", 4, 10), ("judging", 7, 10), ("judging", 8, 10)]


def test_a_log_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with progress_bar("judging", 2000, unit="pair", done=1000) as bar:
        for _ in range(100):
            now += 1
            bar.update(10, "loss 0.5")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "judging: 1,050 of 2,000 pair (52%), 10.0 pair/s, 1:35 left, loss 0.5"
    assert lines[-1] == "judging: 1,000 pair in 1:40, 10.0 pair/s"
    assert len(lines) == 5, "after 5 s, then 10, 20 and 40 s more, and the end"


def test_nothing_is_shown_when_nothing_is_wanted_or_done(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("judging", 5, unit="pair", progress=False) as bar:
        bar.update(5)
    with progress_bar("judging", 0, unit="pair"):
        pass
    silence(True)
    try:
        with progress_bar("judging", 5, unit="pair") as bar:
            bar.update(5)
    finally:
        silence(False)
    assert capsys.readouterr().err == ""


_BARS = """
import sys
from darl_rerank.progress import progress_bar
with progress_bar("outer", 2, unit="step") as outer:
    for _ in range(2):
        with progress_bar("inner", 3, unit="pair") as inner:
            inner.update(3)
        print("a note", file=sys.stderr)
        outer.update(status="loss 0.25")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize(("plain", "columns"), [(False, 100), (True, 100), (True, 40)])
def test_a_terminal_gets_bars_one_in_another_and_colour_only_if_wanted(plain: bool, columns: int) -> None:
    import pty

    main, other = pty.openpty()
    environment = {
        **os.environ,
        "TERM": "xterm-256color",
        "COLUMNS": str(columns),
        **({"NO_COLOR": "1"} if plain else {}),
    }
    process = subprocess.Popen([sys.executable, "-c", _BARS], stderr=other, env=environment)
    os.close(other)
    shown = b""
    while True:
        try:
            part = os.read(main, 65536)
        except OSError:
            break
        shown += part
        if not part:
            break
    os.close(main)
    assert process.wait() == 0
    text = shown.decode()
    assert text.count("a note") == 2
    assert "2/2" in text
    assert "3/3" in text
    assert "loss 0.25" in text or columns == 40
    lines = [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line) for line in re.split("[\r\n]+", text)]
    # A bar that went on in a second line would leave lines behind.
    assert all(line.startswith(("outer", "inner", "a note")) for line in lines if line.strip()), lines
    assert max(map(len, lines)) <= columns
    coloured = any(f"\x1b[{code}" in text for code in ("31", "32", "33", "34", "35", "36", "38;"))
    assert coloured != plain
