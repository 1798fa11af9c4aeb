"""Tables of docs/ray.md: what was killed on a cluster, and what came of it.

python benchmarks/ray_tables.py
"""

from __future__ import annotations

from typing import Any

from page import DOCS, command, result, source, table

PAGE = DOCS / "ray.md"


def kills() -> str | None:
    found = result("ray_kills")
    if found is None:
        return None
    kinds: dict[str, list[dict[str, Any]]] = {}
    for row in found["kills"]:
        kinds.setdefault(row["killed"], []).append(row)
    lines = [
        [kind, len(of), sum(row["identical"] for row in of), sum(row["command_given_again"] for row in of)]
        for kind, of in kinds.items()
    ]
    head = ["killed", "times", "byte-identical to one machine", "command given again"]
    return f"{table(head, lines)}\n\n{source(found, 'ray_kills')}"


def under_kills() -> str | None:
    found = result("ray_serve")
    if found is None:
        return None
    killed = found["under_kills"]
    latency = killed["latency_s"]
    lines = [
        ["replicas killed", killed["kills"]],
        ["answers", counts(killed)],
        ["wrong", killed["wrong"]],
        ["s to an answer: median, 95%, longest", ", ".join(f"{latency[q]:.2f}" for q in ("p50", "p95", "largest"))],
        ["answers of one replica that may hold 4 and have 8 wait, to 64 clients", counts(found["overload"])],
    ]
    return f"{table(['', ''], lines)}\n\n{source(found, 'ray_serve')}"


def counts(found: dict[str, Any]) -> str:
    """How many answers had which status."""
    return ", ".join(f"{count:,} with {status}" for status, count in sorted(found["statuses"].items()))


def autoscale() -> str | None:
    found = result("ray_serve")
    if found is None:
        return None
    changes: list[list[object]] = []
    for row in found["autoscale"]:
        state = [int(row["replicas"]), "yes" if row["loaded"] else "no"]
        if not changes or changes[-1][1:] != state:
            changes.append([f"{row['second']:.0f}", *state])
    return table(["second", "replicas", "load"], changes)


TABLES = (kills, under_kills, autoscale)


if __name__ == "__main__":
    command(PAGE, TABLES)()
