"""How far a training is: the bar on stderr, the log file, the clock that survives a resume, and when to save."""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from darl_rerank.progress import Bar, Progress, progress_bar

if TYPE_CHECKING:
    from ..recipe.settings import FinetuneSettings

LOG = "log.jsonl"


def resident_mib() -> int:
    """Memory of this process that is in RAM, in MiB; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") >> 20


class ProgressLog(TrainerCallback):  # type: ignore[misc]
    """One line a step in log.jsonl: step, examples, loss and its terms, learning rate, examples/s, seconds, MiB.

    Args:
        folder: where the log is.
        sizes: number of examples of each step.
        settings: for time limit and how often to save.
        write: write the log; False in all processes but the first.
        show: show the bar on stderr.
    """

    def __init__(
        self, folder: Path, sizes: Sequence[int], settings: FinetuneSettings, *, write: bool, show: Progress
    ) -> None:
        self._path, self._sizes, self._settings = folder / LOG, sizes, settings
        self._write, self._show = write, show
        self.step = self.examples = 0
        self._before = 0.0
        self._started: float | None = None
        self._saved = self._last = time.monotonic()
        self._losses: deque[float] = deque(maxlen=max(1, len(sizes) // 10))
        self._bars = ExitStack()
        self._bar: Bar | None = None

    @property
    def elapsed(self) -> float:
        """Seconds of training, those before a resume included."""
        return self._before + (0.0 if self._started is None else time.monotonic() - self._started)

    def recent_loss(self) -> float:
        return sum(self._losses) / len(self._losses) if self._losses else float("nan")

    def share_of_time_used(self) -> float:
        limit = self._settings.max_minutes
        return 0.0 if limit is None else self.elapsed / (60 * limit)

    def time_is_up(self) -> bool:
        return self.share_of_time_used() >= 1

    def state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "examples": self.examples,
            "seconds": self.elapsed,
            "losses": list(self._losses),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`; log lines of steps after it, which a kill has undone, are taken out."""
        self.step, self.examples = int(state["step"]), int(state["examples"])
        self._before = float(state["seconds"])
        self._losses.extend(state["losses"])
        if self._write and self._path.is_file():
            lines = [line for line in self._path.read_text("utf-8").splitlines() if _step_of(line) <= self.step]
            self._path.write_text("".join(f"{line}\n" for line in lines), "utf-8")

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._started = self._last = self._saved = time.monotonic()
        if self._write:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if not self.step:
                self._path.write_text("", "utf-8")
        if self._show:
            shown = progress_bar(
                "fine-tuning", sum(self._sizes), unit="example", done=self.examples, progress=self._show
            )
            self._bar = self._bars.enter_context(shown)

    def finish_step(self, terms: Mapping[str, float], learning_rate: float, groups: Sequence[float] | None) -> None:
        now = time.monotonic()
        size = self._sizes[self.step]
        self.step += 1
        self.examples += size
        loss = sum(terms.values())
        self._losses.append(loss)
        if self._write:
            line: dict[str, Any] = {
                "step": self.step,
                "examples": self.examples,
                "loss": loss,
                **terms,
                "learning_rate": learning_rate,
            }
            line |= {"examples_per_second": size / (now - self._last), "seconds": self.elapsed, "mib": resident_mib()}
            if groups is not None:
                line["group_weights"] = list(groups)
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")
        self._last = now
        if self._bar is not None:
            self._bar.update(size, f"loss {self.recent_loss():.3f}, {resident_mib():,} MiB")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # Saving is each process's own business except for the folder's name, so the clocks need not agree: only the
        # first process writes.
        due = time.monotonic() - self._saved >= 60 * self._settings.save_minutes
        if args.world_size == 1:
            control.should_save = due
        else:
            # A save has barriers: all processes must take part, so it goes by steps, not by a clock of each one's own.
            control.should_save = self.step % 50 == 0
        if control.should_save:
            self._saved = time.monotonic()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar away; does nothing the second time."""
        self._bars.close()


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return 1 << 62
