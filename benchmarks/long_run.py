"""Whether memory stays flat over 100,000 pairs: `darl-rerank rerank` of the product catalogue, watched from outside.

    OMP_NUM_THREADS=1 python benchmarks/long_run.py EXPORT WORK [--pairs 100000]

Every query of the bundled catalogue with as many product titles as it takes, judged by EXPORT, an int8 export of
SmolLM2. It takes an hour of one core or more. Interrupted, it goes on when the same command is given again: the job by
its journal in WORK, the samples by a file there. Each call is a process of its own, so memory is to be compared within
one call ("start" of a sample). Writes results/long_run.json, after an interrupt too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import click
from provenance import provenance, write_result

from darl_rerank import icecat

EVERY = 20  # seconds
FIELDS = {"VmRSS": "resident_mib", "VmHWM": "peak_mib"}


def write_inputs(work: Path, pairs: int) -> int:
    """Run, topics and corpus of titles; returns how many documents a query has."""
    queries = icecat.queries()
    depth = -(-pairs // len(queries))
    products = list(islice(icecat.read_products(), depth))
    corpus = "".join(json.dumps({"id": p.docid, "text": p.title}, ensure_ascii=False) + "\n" for p in products)
    (work / "corpus.jsonl").write_text(corpus, "utf-8")
    (work / "topics.tsv").write_text("".join(f"{qid}\t{query}\n" for qid, query in queries.items()), "utf-8")
    lines = (f"{qid} Q0 {p.docid} {i} {-i} catalogue\n" for qid in queries for i, p in enumerate(products, 1))
    (work / "run.trec").write_text("".join(lines), "utf-8")
    return depth


def sample(pid: int) -> dict[str, float] | None:
    """Memory in MiB and processor seconds of a process; None if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text("ascii")
        # Behind the name, which may hold spaces: field 14 and 15 of the whole line are user and system time.
        times = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[11:13]
    except OSError:
        return None
    lines = (line.partition(":")[::2] for line in status.splitlines())
    found = {FIELDS[name]: round(int(value.split()[0]) / 1024, 1) for name, value in lines if name in FIELDS}
    if len(found) < len(FIELDS):
        return None
    return {**found, "processor_seconds": round(sum(map(int, times)) / os.sysconf("SC_CLK_TCK"), 1)}


def finished_queries(work: Path) -> int:
    """Of the journal, whose first line is the job's identity; all queries have their line in the output at the end."""
    journal = work / "out.trec.journal"
    return max(0, sum(1 for _ in journal.open("rb")) - 1) if journal.exists() else 0


def watch(process: subprocess.Popen[bytes], work: Path, depth: int, start: int) -> None:
    """Append samples until the process ends."""
    begun = time.monotonic()
    with (work / "samples.jsonl").open("a", encoding="utf-8") as stream:
        while True:
            try:
                process.wait(EVERY)
            except subprocess.TimeoutExpired:
                found = sample(process.pid)
            else:
                return
            if found is not None:
                pairs = finished_queries(work) * depth
                line = {"start": start, "seconds": round(time.monotonic() - begun, 1), "pairs": pairs, **found}
                stream.write(json.dumps(line) + "\n")
                stream.flush()


def result(work: Path, depth: int, wanted: int) -> dict[str, Any]:
    samples = [json.loads(line) for line in (work / "samples.jsonl").read_text("utf-8").splitlines()]
    output = work / "out.trec"
    done = sum(1 for _ in output.open("rb")) if output.exists() else finished_queries(work) * depth
    return {"pairs_wanted": wanted, "pairs_done": done, "documents_per_query": depth, "whole": output.exists(),
            "samples": samples}  # fmt: skip


@click.command(help=__doc__)
@click.argument("export", type=click.Path(path_type=Path, exists=True))
@click.argument("work", type=click.Path(path_type=Path))
@click.option("--pairs", default=100_000, show_default=True)
def main(export: Path, work: Path, pairs: int) -> None:
    work.mkdir(parents=True, exist_ok=True)
    depth = write_inputs(work, pairs)
    words = ["rerank", work / "run.trec", work / "topics.tsv", work / "out.trec", "--corpus", work / "corpus.jsonl"]
    words += ["--model", export, "--depth", depth]
    known = work / "samples.jsonl"
    start = len({json.loads(line)["start"] for line in known.open()}) if known.exists() else 0
    commit = provenance()["commit"]  # of the code that runs; HEAD may have moved when it ends
    process = subprocess.Popen([sys.executable, "-m", "darl_rerank.cli", *map(str, words)])
    try:
        watch(process, work, depth, start)
    except KeyboardInterrupt:
        process.wait()
    found = result(work, depth, depth * len(icecat.queries()))
    write_result("long_run", {"code": commit, **found})
    click.echo(f"{found['pairs_done']} of {found['pairs_wanted']} pairs done", err=True)
    sys.exit(process.returncode)


if __name__ == "__main__":
    main()
