"""Runs a study, or goes on with it, and writes results/study_NAME_head.json and results/study_NAME.json as arms finish.

    python benchmarks/study/run.py forum COLLECTIONS WORK [--minutes 40] [--level head|tuned|all]

COLLECTIONS holds one folder a collection, WORK what is kept between runs: states of the base model, trainings and
measured arms, each by a digest of its settings. The command may be interrupted at any time and given again; with
`--minutes` it stops by itself after so long. The order: the pass over all pairs; fine-tuned arms for the first seed,
those that decide claims (d) and (a) first; the screening of heads; fine-tuned arms for further seeds; then the next
budget. What an earlier result has of a budget stays where WORK has less of it.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

# The folder that has `provenance` and the package `study`.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from study.settings import STUDIES
from study.study_run import StudyRun


class TimeIsUpError(BaseException):
    """The minutes are over, or somebody asked to stop. Not an Exception: nothing may take it for a failure."""


@contextlib.contextmanager
def stopping_after(minutes: float | None) -> Iterator[None]:
    """Ends the block early, and well, after so many minutes, at SIGTERM and at Ctrl-C."""

    def stop(*_: Any) -> None:
        raise TimeIsUpError

    before = {number: signal.signal(number, stop) for number in (signal.SIGALRM, signal.SIGTERM)}
    begun = time.monotonic()
    try:
        if minutes is not None:
            signal.setitimer(signal.ITIMER_REAL, 60 * minutes)
        yield
        print("all arms are done", file=sys.stderr)
    except (TimeIsUpError, KeyboardInterrupt):
        spent = (time.monotonic() - begun) / 60
        print(f"\nstopped after {spent:.1f} minutes; the same command goes on from here", file=sys.stderr)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=sorted(STUDIES))
    parser.add_argument("collections", type=Path, help="folder with one folder a collection")
    parser.add_argument("work", type=Path, help="folder for what is kept between runs")
    parser.add_argument("--level", choices=["head", "tuned", "all"], default="all")
    parser.add_argument("--minutes", type=float, help="stop after so many; what is finished is kept and written")
    parser.add_argument("--seeds", type=int, help="of the fine-tuned arms")
    parser.add_argument("--head-seeds", type=int, help="of the screening level")
    parser.add_argument("--budgets", type=int, nargs="+", help="of the fine-tuned arms; all of the study's if left out")
    arguments = parser.parse_args()
    study = STUDIES[arguments.study](arguments.collections)
    changes = {name: getattr(arguments, name) for name in ("seeds", "head_seeds") if getattr(arguments, name)}
    study = replace(study, **changes)
    budgets = tuple(arguments.budgets or study.budgets)
    if unknown := set(budgets) - set(study.budgets):
        parser.error(f"--budgets {min(unknown)} is none of the study's: {', '.join(map(str, study.budgets))}")
    with stopping_after(arguments.minutes):
        run = StudyRun(study, arguments.work, sys.argv)
        if arguments.level == "all":
            run.tune(budgets, first_seed_only=True)
        if arguments.level in ("head", "all"):
            run.heads()
        if arguments.level in ("tuned", "all"):
            run.tune(budgets)
            run.write_tuned()


if __name__ == "__main__":
    main()
