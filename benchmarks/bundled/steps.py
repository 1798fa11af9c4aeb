"""The one command of this folder's Makefile, step by step, with the time that each took.

    python benchmarks/bundled/steps.py WORK DATA=FOLDER ENCODER=FOLDER [QUERIES=3 …]

WORK is a new folder; the rest are variables of the Makefile, which says what they are. Steps run in its order, so that
the whole is what `make` alone would do. As with `make`, the last step writes results/one_recipe.json and
results/successor.json: after a trial, put back what git has of them. Writes results/recipe_steps.json.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from provenance import write_result

HERE = Path(__file__).resolve().parent
# What a step leaves in WORK, and the scripts that make it. Without a file it is a target's name.
STEPS = (
    ("data", "candidates/scores.json", "scores.py"),
    ("data", "texts/films.queries.jsonl.gz", "collect.py"),
    ("labels", "lists/lists.npz", "labels.py"),
    ("train", "trained/train.json", "train.py"),
    ("train", "trained/scores.npz", "score.py"),
    ("train", "mean/train.json", "mean.py"),
    ("train", "graded/checkpoint.json", "pack.py"),
    ("train", "packed/checkpoint.json", "fit_novelty.py"),
    ("evaluate", "", "compare.py, successor.py"),
)


@click.command(help=__doc__)
@click.argument("work", type=click.Path(path_type=Path))
@click.argument("variables", nargs=-1)
def main(work: Path, variables: tuple[str, ...]) -> None:
    if work.exists():
        raise click.UsageError(f"expected a new folder: {work} is there already")
    if odd := [word for word in variables if "=" not in word]:
        raise click.UsageError(f"expected NAME=VALUE: {odd[0]}")
    work = work.resolve()
    given = dict(word.split("=", 1) for word in variables)
    given |= {name: str(Path(value).resolve()) for name, value in given.items() if Path(value).is_dir()}
    steps: list[dict[str, Any]] = []
    for name, file, scripts in STEPS:
        before, began = processor_seconds(), time.monotonic()
        target = str(work / file) if file else name
        arguments = [f"{key}={value}" for key, value in given.items()]
        subprocess.run(["make", "-C", str(HERE), target, f"WORK={work}", *arguments], check=True)
        row = {
            "step": name, "scripts": scripts, "seconds": time.monotonic() - began,
            "processor seconds": processor_seconds() - before,
        }  # fmt: skip
        steps.append(row)
        click.echo(f"{name}, {scripts}: {row['seconds']:.0f} s, {row['processor seconds']:.0f} s of a processor")
    size = sum(path.stat().st_size for path in (work / "packed").rglob("*") if path.is_file())
    variables_shown = {key: value for key, value in given.items() if key not in ("DATA", "ENCODER")}
    click.echo(
        f"written: {write_result('recipe_steps', {'variables': variables_shown, 'steps': steps, 'bytes': size})}"
    )


def processor_seconds() -> float:
    """Of all processes that ended, children of this one."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
