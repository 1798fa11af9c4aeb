"""Kills a reranking job with SIGKILL at random moments and compares what the resumed job writes, byte by byte.

    python benchmarks/kill_resume.py MODEL RUN TOPICS CORPUS [--kills 20] [--depth 20]

A small MODEL keeps it short; what is tested is the journal, not the model. Writes results/kill_resume.json.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
from provenance import write_result
from tqdm import tqdm

SEED = 0
FILES = ("out.trec", "out.jsonl")


def command(folder: Path, model: Path, run: Path, topics: Path, corpus: Path, depth: int) -> list[str]:
    words = ["rerank", run, topics, folder / FILES[0], "--corpus", corpus, "--details", folder / FILES[1]]
    words += ["--model", model, "--depth", depth, "--precision", "float32"]
    return [sys.executable, "-m", "darl_rerank.cli", *map(str, words)]


def outputs(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in FILES]


@click.command()
@click.argument("files", nargs=4, type=click.Path(path_type=Path))
@click.option("--kills", default=20, show_default=True)
@click.option("--depth", default=20, show_default=True)
def main(files: tuple[Path, Path, Path, Path], kills: int, depth: int) -> None:
    generator = random.Random(SEED)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        whole = root / "whole"
        whole.mkdir()
        start = time.monotonic()
        subprocess.run(command(whole, *files, depth), check=True, capture_output=True)
        length = time.monotonic() - start
        expected = outputs(whole)
        rows = []
        for number in tqdm(range(kills), desc="kills"):
            folder = root / str(number)
            folder.mkdir()
            moment = generator.uniform(0, length)
            process = subprocess.Popen(
                command(folder, *files, depth), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            try:
                process.wait(moment)
            except subprocess.TimeoutExpired:
                process.kill()
            code = process.wait()
            journal = folder / f"{FILES[0]}.journal"
            done = len(journal.read_bytes().splitlines()) - 1 if journal.exists() else None
            subprocess.run(command(folder, *files, depth), check=True, capture_output=True)
            rows.append({
                "seconds": moment,
                "killed": code == -9,
                "queries_in_journal": done,
                "identical": outputs(folder) == expected,
            })  # fmt: skip
    same = sum(row["identical"] for row in rows)
    click.echo(f"{kills} kills in a job of {length:.1f} s: {same} of {kills} resumed outputs are byte-identical")
    write_result("kill_resume", {"seed": SEED, "uninterrupted_seconds": length, "kills": rows})
    sys.exit(0 if same == kills else 1)


if __name__ == "__main__":
    main()
