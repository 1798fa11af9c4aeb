"""What an export costs, and how fast each engine starts: seconds, processor seconds, memory, size.

    python benchmarks/export_cost.py [--model FOLDER] [--precisions int8] [--work FOLDER]

Each export and each start is a process of its own, on one thread: where the machine is shared, processor seconds say
more than seconds then (threads that wait for each other count as busy). A start goes from the beginning of the process
to the ranking of ten documents, and comes after one that fills the cache. Writes results/export_cost.json.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
from provenance import write_result

from darl_rerank import Checkpoint
from darl_rerank.model.shipped import DEFAULT

_START = """
import json, sys
from darl_rerank import Reranker
reranker = Reranker.from_pretrained(sys.argv[1], engine=sys.argv[2], device="cpu")
ranking = reranker.rerank("laptop", [f"notebook number {i} with a screen of 13 inch" for i in range(10)])
imported = sorted({"torch", "transformers"} & set(sys.modules))
print(json.dumps({"precision": reranker.engine.precision, "imported": imported}))
"""


def measured(command: list[str]) -> tuple[dict[str, Any], str]:
    """Seconds and processor seconds of a process, and what it printed."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    printed = process.communicate()[0]
    seconds, after = time.monotonic() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        raise RuntimeError(f"{command[:4]} ended with exit code {process.returncode}")
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "processor_seconds": spent}, printed


def peak_of(command: list[str]) -> tuple[dict[str, Any], str]:
    """As `measured`, and peak memory: by a process between, whose only child it is."""
    between = (
        "import json, resource, subprocess, sys; done = subprocess.run(sys.argv[1:], stdout=sys.stderr);"
        "print(json.dumps(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)); sys.exit(done.returncode)"
    )
    found, printed = measured([sys.executable, "-c", between, *command])
    return {**found, "peak_mib": json.loads(printed)}, printed


@click.command(help=__doc__)
@click.option("--model", type=click.Path(path_type=Path), help="a checkpoint folder; the default one if not given")
@click.option("--precisions", default="int8", show_default=True)
@click.option("--work", type=click.Path(path_type=Path), help="where exports go; a temporary folder if not given")
@click.option("--repeats", default=3, show_default=True)
def main(model: Path | None, precisions: str, work: Path | None, repeats: int) -> None:
    checkpoint = Checkpoint.load(DEFAULT if model is None else model)
    assert checkpoint.folder is not None
    exports, starts = {}, {}
    with tempfile.TemporaryDirectory() as scratch:
        folders = {"torch": (checkpoint.folder, "torch")}
        for precision in precisions.split(","):
            target = (work or Path(scratch)) / precision
            words = [str(checkpoint.folder), str(target), "--precision", precision, "--overwrite"]
            found, _ = peak_of([sys.executable, "-m", "darl_rerank.cli", "export", *words])
            record = Checkpoint.load(target).export
            assert record is not None
            exports[precision] = {
                **found, "bytes": sum(path.stat().st_size for path in target.iterdir()),
                "finer_products": len(record.finer_products),
                "measures": json.loads((target / "parity.json").read_text("utf-8"))["measures"],
            }  # fmt: skip
            click.echo(f"{precision}: {exports[precision]}", err=True)
            folders[f"ONNX Runtime, {precision}"] = (target, "onnx")
        for name, (folder, engine) in folders.items():
            runs = []
            for repeat in range(repeats + 1):
                found, printed = measured([sys.executable, "-c", _START, str(folder), engine])
                if repeat:
                    runs.append(found)
            starts[name] = {"runs": runs, **json.loads(printed)}
            click.echo(f"{name}: {starts[name]}", err=True)
    values = {"fingerprint": checkpoint.fingerprint, "exports": exports, "starts": starts}
    click.echo(str(write_result("export_cost", values).name))


if __name__ == "__main__":
    main()
