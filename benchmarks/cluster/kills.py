"""Kills workers, nodes and drivers of jobs on a cluster of two nodes, and compares the outputs byte by byte.

    python benchmarks/cluster/kills.py MODEL [--kills 21] [--first 0]

A small MODEL keeps it short; what is tested is the machinery. The nodes are network namespaces (needs root). A killed
worker or node is Ray's to replace (the node comes back after some seconds); after a killed driver the same command is
given again. Writes results/ray_kills.json; --first goes on behind kills that are in it.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
from made import make_job
from nodes import Nodes, cluster

from darl_rerank.cli.texts import open_texts
from darl_rerank.offline import prepare, rerank_run, wanted_documents
from darl_rerank.reranker import Reranker
from darl_rerank.trec.runs import read_run
from darl_rerank.trec.topics import read_topics

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from provenance import RESULTS, write_result

SEED = 0
QUERIES, DEPTH, PART = 60, 20, 60
KINDS = ("worker", "node", "driver")
NODE_BACK_S = 3.0


def outputs(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("out.trec", "out.jsonl")]


def on_one_machine(files: Path, out: Path, model: Path) -> None:
    out.mkdir()
    run = read_run(files / "run.trec")
    texts = open_texts(files / "corpus", None)(wanted_documents(run, 100))
    job = prepare(run, read_topics(files / "topics.tsv"), texts, depth=100)
    reranker = Reranker.from_pretrained(model, precision="float32", device="cpu", batch_tokens=1024)
    rerank_run(reranker, job, out / "out.trec", details=out / "out.jsonl", progress=False)


def start(nodes: Nodes, files: Path, out: Path, model: Path) -> subprocess.Popen[str]:
    driver = str(Path(__file__).with_name("driver.py"))
    words = [sys.executable, driver, nodes.address, str(files), str(out), str(model), "2", str(PART)]
    return nodes.popen(0, words)


def wait_for_parts(out: Path, parts: int, process: subprocess.Popen[str]) -> None:
    """Until so many parts are finished."""
    folder = out / "out.trec.parts"
    end = time.monotonic() + 300
    while time.monotonic() < end and process.poll() is None:
        if len(list(folder.glob("part-*"))) >= parts:
            return
        time.sleep(0.05)
    raise RuntimeError(f"no part came: {process.communicate()[1][-3000:] if process.poll() is not None else 'slow'}")


def kill(kind: str, nodes: Nodes, process: subprocess.Popen[str], generator: random.Random) -> int:
    """Kill one; how many processes that were."""
    if kind == "driver":
        os.kill(process.pid, signal.SIGKILL)
        return 1
    number = generator.choice((1, 2))
    if kind == "node":
        killed = nodes.kill(number)
        time.sleep(NODE_BACK_S)
        nodes.start(number, 1)
        return killed
    workers = nodes.processes(number, "ray::MapWorker")
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    return len(workers)


def one(number: int, nodes: Nodes, files: Path, root: Path, model: Path) -> dict[str, Any]:
    """One job with one kill."""
    generator = random.Random(SEED + number)
    out = root / str(number)
    out.mkdir()
    kind = KINDS[number % len(KINDS)]
    parts = -(-QUERIES * DEPTH // PART)
    at = generator.randrange(0, parts - 3)
    begun = time.monotonic()
    process = start(nodes, files, out, model)
    wait_for_parts(out, at, process)
    killed = kill(kind, nodes, process, generator)
    _, said = process.communicate(timeout=300)
    again = process.returncode != 0
    left = len(list((out / "out.trec.parts").glob("part-*")))
    if again:
        resumed = start(nodes, files, out, model)
        _, said = resumed.communicate(timeout=300)
        if resumed.returncode:
            raise RuntimeError(said[-3000:])
    return {
        "killed": kind, "processes": killed, "parts_when_killed": at, "command_given_again": again,
        "parts_that_were_kept": left if again else None, "seconds": time.monotonic() - begun,
        "identical": outputs(out) == outputs(root / "whole"),
    }  # fmt: skip


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--kills", default=21, show_default=True, help="The number of the last.")
@click.option("--first", default=0, show_default=True)
def main(model: Path, kills: int, first: int) -> None:
    model = model.absolute()
    # What Ray gives a worker of one CPU.
    os.environ["OMP_NUM_THREADS"] = "1"
    rows = json.loads((RESULTS / "ray_kills.json").read_text("utf-8"))["kills"][:first] if first else []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        make_job(root / "job", queries=QUERIES, depth=DEPTH, documents=5000)
        on_one_machine(root / "job", root / "whole", model)
        with cluster([1, 1]) as nodes:
            for number in range(first, kills):
                rows.append(one(number, nodes, root / "job", root, model))
                click.echo(json.dumps(rows[-1]))
                write_result("ray_kills", {
                    "seed": SEED, "queries": QUERIES, "depth": DEPTH, "part_documents": PART, "nodes": 2, "kills": rows,
                })  # fmt: skip
    same = sum(row["identical"] for row in rows)
    click.echo(f"{len(rows)} kills: {same} outputs are byte-identical to one machine's")
    sys.exit(0 if same == len(rows) else 1)


if __name__ == "__main__":
    main()
