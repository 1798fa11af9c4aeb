"""How memory and speed went over a long training: from the log of its fine-tuning stage, minute by minute.

    python benchmarks/training_memory.py LOG

LOG is OUTPUT.work/finetune-SEED/log.jsonl. Prints every tenth minute and writes results/training_memory.json.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
from provenance import write_result


@click.command(help=__doc__)
@click.argument("log", type=click.Path(path_type=Path, exists=True))
def main(log: Path) -> None:
    steps = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    minutes: dict[int, dict[str, float]] = {}
    for step in steps:
        minutes[int(step["seconds"] // 60)] = {"examples": step["examples"], "mib": step["mib"], "loss": step["loss"]}
    last = steps[-1]
    for minute, at in minutes.items():
        if minute % 10 == 0 or minute == max(minutes):
            click.echo(f"minute {minute}: {at['examples']} examples, {at['mib']} MiB, loss {at['loss']:.2f}")
    values = {
        "seconds": last["seconds"], "examples": last["examples"],
        "examples_per_second": last["examples"] / last["seconds"], "minutes": minutes,
    }  # fmt: skip
    click.echo(f"written: {write_result('training_memory', values)}", err=True)


if __name__ == "__main__":
    main()
