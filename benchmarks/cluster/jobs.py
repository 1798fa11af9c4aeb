"""What the machinery of a cluster job costs: pairs a second by workers, the driver's memory by rows, text lookup.

    python benchmarks/cluster/jobs.py MODEL [--largest 1000000]

Two nodes in network namespaces (needs root). Workers run MODEL, which should be small, and a stub that waits 2 ms for a
document as for a GPU, so that more workers than processors gain something. Writes results/ray_jobs.json.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import pyarrow.parquet as pq
from made import make_job
from nodes import Nodes, cluster

from darl_rerank.cli.texts import open_texts
from darl_rerank.offline import prepare, rerank_run, wanted_documents
from darl_rerank.reranker import Reranker
from darl_rerank.trec.parquet_corpus import ParquetDocuments
from darl_rerank.trec.runs import read_run
from darl_rerank.trec.topics import read_topics

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from provenance import write_result  # noqa: E402

WAIT_S = 0.002
WORKERS = (1, 2, 4)


def one_process(files: Path, model: Path, root: Path) -> float:
    """Pairs a second of `rerank_run`, all texts at hand."""
    run = read_run(files / "run.trec")
    texts = open_texts(files / "corpus", None)(wanted_documents(run, 100))
    job = prepare(run, read_topics(files / "topics.tsv"), texts, depth=100)
    reranker = Reranker.from_pretrained(model, precision="float32", device="cpu", batch_tokens=1024)
    reranker.warm_up()
    begun = time.monotonic()
    report = rerank_run(reranker, job, root / "one.trec", progress=False)
    return report.documents / (time.monotonic() - begun)


def on_cluster(nodes: Nodes, files: Path, model: Path, workers: int, part: int, *stub: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=files.parent) as out:
        words = [sys.executable, HERE / "driver.py", nodes.address, files, out, model, workers, part, *stub]
        said = nodes.run(0, [str(word) for word in words])
    return {"workers": workers, "load": os.getloadavg()[0], **json.loads(said.splitlines()[-1])}


def lookup(files: Path) -> dict[str, float]:
    """What it costs to find a document at random, cold files aside."""
    store = ParquetDocuments(files / "corpus")
    docids = [f"d{number:07}" for number in random.Random(1).sample(range(len(store)), 2000)]
    store.load(docids[:1000])
    begun = time.process_time()
    for start in range(1000, 2000, 100):
        store.load(docids[start : start + 100])
    milliseconds = time.process_time() - begun
    footer = pq.read_metadata(files / "corpus" / "part-00000.parquet")
    return {
        "documents": len(store),
        "cpu_milliseconds": milliseconds,
        "row_group_documents": footer.row_group(0).num_rows,
        "footer_bytes_per_row_group": footer.serialized_size / footer.num_row_groups,
    }


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--largest", default=1_000_000, show_default=True, help="Rows of the largest job.")
def main(model: Path, largest: int) -> None:
    model = model.absolute()
    # What Ray gives a worker of one CPU.
    os.environ["OMP_NUM_THREADS"] = "1"
    found: dict[str, Any] = {"stub_seconds": WAIT_S, "small_model": [], "stub": [], "rows": []}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        make_job(root / "job", queries=200, depth=20, documents=200_000)
        found["one_process_pairs_per_second"] = one_process(root / "job", model, root)
        found["lookup"] = lookup(root / "job")
        click.echo(json.dumps(found))
        with cluster([2, 2], {"PYTHONPATH": str(HERE)}) as nodes:
            for workers in WORKERS:
                for kind, stub in (("small_model", ()), ("stub", (WAIT_S,))):
                    found[kind].append(on_cluster(nodes, root / "job", model, workers, 60, *stub))
                    click.echo(json.dumps(found[kind][-1]))
            rows = 10_000
            while rows <= largest:
                make_job(root / f"rows{rows}", queries=rows, depth=1, documents=20_000)
                found["rows"].append({"rows": rows, **on_cluster(nodes, root / f"rows{rows}", model, 2, 1000, 0.0)})
                click.echo(json.dumps(found["rows"][-1]))
                write_result("ray_jobs", found)
                rows *= 10


if __name__ == "__main__":
    main()
