"""A process that is asked to stop stops, wherever it is asked."""

from __future__ import annotations

import os
import signal
import time

import pytest

from darl_rerank import cli


class Dying:
    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_in_a_destructor_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_AGAIN", 0.2)
    before = signal.signal(signal.SIGTERM, cli.interrupt)
    try:
        dying = [Dying()]
        dying.clear()
        # The signal that the test waits for is to be the last.
        monkeypatch.setattr(cli, "_AGAIN", 3600.0)
        with pytest.raises(KeyboardInterrupt):
            time.sleep(20)
    finally:
        signal.signal(signal.SIGTERM, before)
