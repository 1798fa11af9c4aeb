"""The server under load and abuse, on this machine's loopback address, server and clients in processes of their own.

    python benchmarks/serving/run.py [--parts overhead,load] [--model FOLDER] [--tiny FOLDER] [--seconds 30]

Parts can be run apart; each replaces its own entry in results/serving.json. benchmarks/serving_tables.py makes the
tables of docs/serving.md from it.

    start      seconds from the start of the process to ready, by engine
    overhead   what HTTP and queue cost at full load, beside `rerank_many` on the same lists, in turn
    load       latency and pairs a second at 50, 90 and 200 % of what the server can do, beside LitServe and Starlette
    minute     64 clients for a minute at twice what the tiny model can do: wrong answers, errors, queue, memory
    term       SIGTERM under load, several times: is every accepted request answered?
    hang_up    1,000 clients killed in the middle of a request: does anything stay behind?
    fuzz       10,000 bodies and 1,000 raw requests that hypothesis makes up
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click
import numpy as np
from provenance import RESULTS, provenance, write_result
from speed.contenders import exported_folder, write_classifier
from speed.pairs import grouped, read_pairs

from darl_rerank import Checkpoint, Reranker
from darl_rerank.cache import cache_folder
from darl_rerank.errors import DarlRerankError
from serving import abuse
from serving.load import Load, run_load
from serving.process import Served, darl_rerank, served

PER_QUERY = 10
LEVELS = (0.5, 0.9, 2.0)
CLIENTS = 64
# Of the overhead: lists at once, and how often each side is measured.
LISTS = 8
ROUNDS = 3
STARTS = 2
HERE = Path(__file__).resolve().parent
# Largest difference of a relevance for float32, and for numbers with eight significant bits (docs/reliability.md).
TOLERANCES = {"float32": 1e-4}
WIDE_TOLERANCE = 0.05


@dataclass(frozen=True, slots=True)
class Setting:
    """What a part is given.

    Attributes:
        model: folder or name of the model whose speed is measured.
        tiny: folder of the model where the server is what is measured.
        seconds: of one measurement.
        cache: where exports are kept.
        exported: `model` as int8; exported anew if None.
    """

    model: str
    tiny: Path
    seconds: float
    cache: Path
    exported: Path | None


def bodies(count: int, per_query: int = PER_QUERY) -> list[dict[str, Any]]:
    """Requests of the bundled catalogue, each a query with its first documents."""
    pairs = read_pairs(None, count * per_query, per_query)
    return [{"query": query, "documents": documents} for query, documents in grouped(pairs)]


def expected_answers(reranker: Reranker, asked: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """What the library gives for each request, relevance by document."""
    largest = reranker.scale.gains[-1]
    return [
        {str(r.index): (r.score or 0.0) / float(largest) for r in reranker.rerank(a["query"], a["documents"])}
        for a in asked
    ]


def start(setting: Setting) -> dict[str, Any]:
    rows = []
    commands = {"torch": darl_rerank(setting.model, "--engine", "torch")}
    try:
        exported = setting.exported or exported_folder(Checkpoint.load(setting.model), "int8", setting.cache)
        commands["ONNX Runtime, int8"] = darl_rerank(exported)
    except DarlRerankError as error:
        click.echo(f"int8: {error}", err=True)
    for name, command in commands.items():
        for _ in range(STARTS):
            with served(command) as server:
                rows.append({
                    "engine": name, "seconds": server.wait_until_ready(), "cpu_seconds": server.cpu_seconds(),
                    "memory_mib": server.memory_mib(),
                    "precision": server.call("GET", "/info")[2]["model_dtype"],
                })  # fmt: skip
                click.echo(rows[-1])
    return {"rows": rows}


def overhead(setting: Setting) -> dict[str, Any]:
    """Pairs for a second of the processor's time, which a busy machine leaves as it is, beside pairs a second."""
    asked = bodies(LISTS)
    reranker = Reranker.from_pretrained(setting.model)
    reranker.warm_up()
    rows = []
    with served(darl_rerank(setting.model, "--no-access-log")) as server:
        server.wait_until_ready()
        for _ in range(ROUNDS):
            begun, before, pairs = time.monotonic(), time.process_time(), 0
            while not pairs or time.monotonic() - begun < setting.seconds:
                # As many lists at once as fill the steps of the server's queue.
                rankings = reranker.rerank_many([a["query"] for a in asked], [a["documents"] for a in asked])
                pairs += sum(map(len, rankings))
            direct = {"pairs": pairs, "seconds": time.monotonic() - begun, "cpu": time.process_time() - before}
            before = server.cpu_seconds()
            found = run_load(Load(server.port, "/rerank", asked, LISTS, setting.seconds))
            http = {"pairs": found["pairs"], "seconds": found["seconds"], "cpu": server.cpu_seconds() - before}
            rows.append({"rerank_many": direct, "http": http})
            click.echo(rows[-1])
    each = [{side: row[side]["pairs"] / row[side]["cpu"] for side in row} for row in rows]
    ratio = statistics.median(row["http"] / row["rerank_many"] for row in each)
    return {"rows": rows, "ratio": ratio, "engine": f"{reranker.engine.name}, {reranker.engine.precision}"}


def load(setting: Setting) -> dict[str, Any]:
    """On the tiny model: it answers often enough for percentiles, and hides little of what a server costs."""
    asked = bodies(40)
    checkpoint = Checkpoint.load(setting.tiny)
    classifier = write_classifier(checkpoint, setting.cache / f"classifier-{checkpoint.fingerprint[:12]}")
    litserve = [sys.executable, str(HERE / "litserve_server.py"), str(setting.tiny)]
    commands = {
        "darl-rerank serve": darl_rerank(setting.tiny, "--no-access-log"),
        "LitServe, our Reranker, one request at a time": litserve,
        "LitServe, our Reranker, batches of 8": [*litserve, "8"],
        "Starlette, sentence-transformers CrossEncoder": [
            sys.executable,
            str(HERE / "plain_server.py"),
            str(classifier),
            str(setting.tiny),
        ],
    }
    rows = []
    for name, command in commands.items():
        with served(command, abuse.ONE_THREAD) as server:
            wait_for_answer(server, asked[0])
            full = run_load(Load(server.port, "/rerank", asked, 16, setting.seconds / 2))
            capacity = full["pairs"] / full["seconds"]
            for level in LEVELS:
                rate = level * capacity / PER_QUERY
                found = run_load(Load(server.port, "/rerank", asked, CLIENTS, setting.seconds, rate))
                rows.append({"server": name, "capacity": capacity, "level": level, "rate": rate, **summary(found)})
                rows[-1]["memory_mib"] = server.memory_mib()
                click.echo({k: v for k, v in rows[-1].items() if k != "latencies"})
    return {"rows": rows, "documents": PER_QUERY, "clients": CLIENTS, "seconds": setting.seconds}


def wait_for_answer(server: Served, body: dict[str, Any]) -> None:
    for _ in range(1200):
        try:
            if server.post("/rerank", body)[0] == 200:
                return
        except OSError:
            pass
        if server.process.poll() is not None:
            break
        time.sleep(0.1)
    raise RuntimeError(server.log.read_text()[-3000:])


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """Percentiles of the latencies beside what came back."""
    latencies = found.pop("latencies")
    percentiles = np.percentile(latencies, (50, 95, 99)).tolist() if latencies else [None] * 3
    values = dict(zip(("p50", "p95", "p99"), percentiles, strict=True))
    return {**found, **values, "pairs_per_second": found["pairs"] / found["seconds"]}


def minute(setting: Setting) -> dict[str, Any]:
    asked = bodies(60)
    reranker = Reranker.from_pretrained(setting.tiny, engine="torch", device="cpu", precision="float32")
    expected = expected_answers(reranker, asked)
    most = 20_000
    command = darl_rerank(setting.tiny, *abuse.TINY, "--max-queue-tokens", str(most))
    with served(command, abuse.ONE_THREAD) as server:
        server.wait_until_ready()
        full = run_load(Load(server.port, "/rerank", asked, 32, 15))
        rate = 2 * full["pairs"] / full["seconds"] / PER_QUERY
        watch = abuse.Watch(server)
        with watch:
            found = run_load(Load(server.port, "/rerank", asked, CLIENTS, 60, rate, expected, TOLERANCES["float32"]))
        served_5xx = sum(line.get("status", 0) >= 500 for line in server.log_lines())
    return {
        **summary(found), "capacity": full["pairs"] / full["seconds"], "rate": rate, "clients": CLIENTS,
        "errors_5xx": served_5xx, "max_queue_tokens": most, "largest_queue_tokens": max(watch.queue_tokens),
        "memory_mib": watch.memory_mib, "files": watch.files, "threads": watch.threads,
    }  # fmt: skip


PARTS: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "start": start,
    "overhead": overhead,
    "load": load,
    "minute": minute,
    "term": lambda setting: abuse.term(setting.tiny, bodies(60)),
    "hang_up": lambda setting: abuse.hang_up(setting.tiny, bodies(10)),
    "fuzz": lambda setting: abuse.fuzz(setting.tiny),
}


@click.command(help=__doc__)
@click.option("--parts", default=",".join(PARTS), show_default=True, help="comma-separated")
@click.option("--model", default="smollm2-darl", show_default=True, help="folder, or the name of one that ships")
@click.option(
    "--tiny",
    type=click.Path(path_type=Path, exists=True),
    default=RESULTS.parent / "tests" / "tiny_model",
    help="where the server is measured and not the model",
)
@click.option("--exported", type=click.Path(path_type=Path, exists=True), help="the model as int8, if it is at hand")
@click.option("--seconds", default=30.0, show_default=True, help="of one measurement")
def main(parts: str, model: str, tiny: Path, exported: Path | None, seconds: float) -> None:
    setting = Setting(model, tiny, seconds, cache_folder() / "benchmarks", exported)
    for name in parts.split(","):
        if name not in PARTS:
            raise click.BadParameter(f"unknown part {name!r}; known: {', '.join(PARTS)}")
        click.echo(f"== {name}", err=True)
        values = PARTS[name](setting)
        path = RESULTS / "serving.json"
        known = json.loads(path.read_text("utf-8")).get("parts", {}) if path.is_file() else {}
        click.echo(
            f"written: {write_result('serving', {'parts': {**known, name: {'provenance': provenance(), **values}}})}"
        )


if __name__ == "__main__":
    main()
