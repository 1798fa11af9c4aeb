"""64 clients of the server on Ray Serve while a replica of the model is killed every 10 s; replicas by load.

    python benchmarks/cluster/serve.py MODEL [--seconds 60] [--clients 64]

Every answer is compared with what one process says of the same request. In the second part the load comes and goes, and
the number of replicas is read off /metrics every second; in the third one replica gets more than it
may hold. Writes results/ray_serve.json.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from provenance import write_result  # noqa: E402
from serving.load import Load, run_load  # noqa: E402
from serving.process import free_port  # noqa: E402

from darl_rerank.reranker import Reranker  # noqa: E402

KILL_EVERY_S = 10.0
BODIES, DOCUMENTS = 20, 10


@contextmanager
def served(model: Path, **settings: Any) -> Iterator[int]:
    """The port of an application."""
    import ray
    from ray import serve

    from darl_rerank.distributed.serving import Settings, app

    port = free_port()
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(app(Settings(model=str(model), precision="float32", cpus=0.25, **settings)), name="darl")
        while metric(port, "darl_ready") != 1:
            time.sleep(0.2)
        yield port
    finally:
        serve.shutdown()
        ray.shutdown()


def metric(port: int, name: str) -> float | None:
    """The sum of a metric over its labels; None if it is not there."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    values = [float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name}{{", f"{name} "))]
    return sum(values) if values else None


def replicas() -> list[int]:
    """Process ids of the replicas of the model that run; those that still load it have another title."""
    parents, names = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
                names[int(folder.name)] = (folder / "cmdline").read_bytes()
            except OSError:
                continue

    def below(process: int) -> bool:
        return process == os.getpid() or (process in parents and below(parents[process]))

    found = [p for p, name in names.items() if name.startswith(b"ray::ServeReplica:darl:Judging") and below(p)]
    return [p for p in found if b"init" not in names[p]]


def requests(model: Path) -> tuple[list[dict[str, Any]], list[dict[str, float]]]:
    """Bodies, and for each the relevance that one process gives each document."""
    reranker = Reranker.from_pretrained(model, precision="float32", device="cpu")
    bodies = [
        {"query": f"toner cartridge {i}", "documents": [f"a cartridge of kind {i * j}" for j in range(DOCUMENTS)]}
        for i in range(BODIES)
    ]
    largest = float(reranker.scale.gains[-1])
    expected = [
        {str(r.index): float(r.score or 0) / largest for r in reranker.rerank(body["query"], body["documents"])}
        for body in bodies
    ]
    return bodies, expected


def under_kills(model: Path, seconds: float, clients: int) -> dict[str, Any]:
    """The load while replicas are killed."""
    bodies, expected = requests(model)
    with served(model, min_replicas=3, max_replicas=3) as port:
        end = time.monotonic() + seconds
        kills: list[float] = []

        def kill() -> None:
            while time.monotonic() + KILL_EVERY_S < end:
                time.sleep(KILL_EVERY_S)
                if running := replicas():
                    os.kill(running[len(kills) % len(running)], signal.SIGKILL)
                    kills.append(time.monotonic())

        killer = threading.Thread(target=kill)
        killer.start()
        found = run_load(Load(port, "/v1/rerank", bodies, clients, seconds, expected=expected))
        killer.join()
    latencies = sorted(found.pop("latencies"))
    quantiles = {f"p{q}": latencies[int(len(latencies) * q / 100)] for q in (50, 95, 99)}
    return {"clients": clients, "kills": len(kills), **found, "latency_s": {**quantiles, "largest": latencies[-1]}}


def overload(model: Path, seconds: float, clients: int) -> dict[str, Any]:
    """Far more clients than one replica may hold and have wait."""
    bodies, expected = requests(model)
    with served(model, max_requests=4, max_waiting=8) as port:
        found = run_load(Load(port, "/v1/rerank", bodies, clients, seconds, expected=expected))
    del found["latencies"]
    return found


def coming_and_going(model: Path, seconds: float, clients: int) -> list[dict[str, float]]:
    """The number of replicas while nothing, much and again nothing is asked."""
    bodies, _ = requests(model)
    rows: list[dict[str, float]] = []
    with served(model, min_replicas=1, max_replicas=3, upscale_delay_s=2, downscale_delay_s=5) as port:
        begun = time.monotonic()
        load = threading.Thread(
            target=run_load, args=(Load(port, "/v1/rerank", bodies, clients, seconds),), daemon=True
        )  # fmt: skip
        while (now := time.monotonic() - begun) < 5 + seconds + 90:
            if now > 5 and load.ident is None:
                load.start()
            rows.append({
                "second": round(now, 1), "loaded": float(load.is_alive()),
                "replicas": metric(port, "darl_replicas") or 0.0, "requests": metric(port, "darl_queue_size") or 0.0,
            })  # fmt: skip
            if load.ident is not None and not load.is_alive() and rows[-1]["replicas"] == 1:
                break
            time.sleep(1)
    return rows


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--seconds", default=60.0, show_default=True)
@click.option("--clients", default=64, show_default=True)
def main(model: Path, seconds: float, clients: int) -> None:
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    model = model.absolute()
    killed = under_kills(model, seconds, clients)
    click.echo(killed)
    scaled = coming_and_going(model, seconds, clients)
    click.echo(f"replicas: {[int(row['replicas']) for row in scaled]}")
    shed = overload(model, seconds / 6, clients)
    click.echo(shed)
    found = {"kill_every_s": KILL_EVERY_S, "under_kills": killed, "autoscale": scaled, "overload": shed}
    write_result("ray_serve", found)
    good = set(killed["statuses"]) == {"200"} and not killed["wrong"] and set(shed["statuses"]) <= {"200", "429"}
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
