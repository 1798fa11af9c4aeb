"""Fills the tables of docs/serving.md from results/serving.json; see `page`.

python benchmarks/serving_tables.py [--check]
"""

from __future__ import annotations

from collections import Counter
from itertools import groupby
from statistics import median
from typing import Any

from page import DOCS, command, percent, result, source, table

PAGE = DOCS / "serving.md"


def part(name: str) -> dict[str, Any] | None:
    found = result("serving")
    return None if found is None else found["parts"].get(name)


def start() -> str | None:
    values = part("start")
    if values is None:
        return None
    lines = []
    for engine, group in groupby(values["rows"], lambda row: row["engine"]):
        rows = list(group)
        seconds = [row["seconds"] for row in rows]
        memory = median(row["memory_mib"] for row in rows)
        spread = f"{min(seconds):.1f} to {max(seconds):.1f}"
        cpu = median(row["cpu_seconds"] for row in rows)
        lines.append([engine, rows[0]["precision"], f"{median(seconds):.1f}", spread, f"{cpu:.1f}", f"{memory:.0f}"])
    head = [
        "engine", "precision", "seconds to ready, median", f"of {len(rows)} starts", "CPU seconds", "memory then, MiB",
    ]  # fmt: skip
    return table(head, lines) + "\n\n" + source(values, "serving")


def overhead() -> str | None:
    values = part("overhead")
    if values is None:
        return None
    lines = []
    for number, row in enumerate(values["rows"], 1):
        sides = row["rerank_many"], row["http"]
        direct, http = (side["pairs"] / side["cpu"] for side in sides)
        wall = (side["pairs"] / side["seconds"] for side in sides)
        lines.append([number, f"{direct:.2f}", f"{http:.2f}", percent(http / direct, 1), *(f"{w:.1f}" for w in wall)])
    about = (
        f"Full load, measured in turn on the same lists ({values['engine']}, "
        f"OMP_NUM_THREADS={values['provenance']['environment'].get('OMP_NUM_THREADS', 'as it is')}). The first figures "
        f"are pairs for a second of the processor's time, which is the capacity: over HTTP "
        f"{percent(values['ratio'], 1)} in the median."
    )
    head = [
        "round",
        "`rerank_many`, pairs a CPU second",
        "over HTTP",
        "share",
        "`rerank_many`, pairs a second",
        "over HTTP",
    ]
    return "\n\n".join([about, table(head, lines), source(values, "serving")])


def load() -> str | None:
    values = part("load")
    if values is None:
        return None
    lines = []
    for row in values["rows"]:
        refused = sum(count for status, count in row["statuses"].items() if status != "200")
        seconds = ["" if row[p] is None else f"{row[p]:.2f}" for p in ("p50", "p95", "p99")]
        lines.append([
            row["server"], percent(row["level"]), f"{row['pairs_per_second']:.1f}", *seconds,
            row["statuses"].get("200", 0), refused,
        ])  # fmt: skip
    capacities = "; ".join(
        f"{name} {next(iter(rows))['capacity']:.1f}"
        for name, rows in groupby(values["rows"], lambda row: row["server"])
    )
    about = (
        f"The tests' tiny model on one thread. Requests of {values['documents']} documents at random times for "
        f"{values['seconds']:.0f} s, at most {values['clients']} at once; latency in seconds from when a request was "
        f"due, of those answered. Load is a share of what each server does for 16 clients that never pause, in pairs a "
        f"second: {capacities}."
    )
    head = ["server", "load", "pairs a second", "p50", "p95", "p99", "answered", "refused or lost"]
    return "\n\n".join([about, table(head, lines), source(values, "serving")])


def minute() -> str | None:
    values = part("minute")
    if values is None:
        return None
    memory = values["memory_mib"]
    third = len(memory) // 3
    lines = [
        ["answers by status", ", ".join(f"{s}: {n}" for s, n in sorted(values["statuses"].items()))],
        ["of these 5xx", values["errors_5xx"]],
        [
            "answers that differ from `Reranker.rerank`",
            f"{values['wrong']} (largest difference {values['largest_difference']:.1e})",
        ],
        ["latency p50, p95, p99, s", ", ".join(f"{values[p]:.2f}" for p in ("p50", "p95", "p99"))],
        ["most tokens in the queue", f"{values['largest_queue_tokens']:.0f} of {values['max_queue_tokens']}"],
        [
            "memory, median of the second and the last third, MiB",
            f"{median(memory[third : 2 * third]):.0f}, {median(memory[2 * third :]):.0f}",
        ],
        ["threads, open files at most", f"{max(values['threads'])}, {max(values['files'])}"],
    ]
    about = (
        f"{values['clients']} clients, {values['rate']:.0f} requests a second, twice what the tests' tiny model can do "
        f"on one thread; every answer is compared."
    )
    return "\n\n".join([about, table(["", ""], lines), source(values, "serving")])


def abuse() -> str | None:
    term, hang_up, fuzz = (part(name) for name in ("term", "hang_up", "fuzz"))
    lines = []
    if term is not None:
        answered = sum(row["clients"].get("200", 0) for row in term["rows"])
        told = sum(row["clients"].get("503", 0) for row in term["rows"])
        every = "every" if term["every_accepted_request_answered"] else "not every"
        lines.append([
            f"SIGTERM under load, {len(term['rows'])} times",
            f"{every} accepted request answered ({answered} with 200, {told} with 503, "
            f"the rest with 429); exit codes {sorted({row['exit'] for row in term['rows']})}",
        ])  # fmt: skip
    if hang_up is not None:
        memory = hang_up["memory_mib"]
        lines.append([
            f"{hang_up['clients']} clients killed in the middle of a request",
            f"tokens left in the queue {max(hang_up['queue_tokens']):.0f}; open files {hang_up['files'][0]} after 50, "
            f"{hang_up['files'][-1]} at the end, threads {hang_up['threads'][0]} and {hang_up['threads'][-1]}, memory "
            f"{memory[0]:.0f} and {memory[-1]:.0f} MiB",
        ])  # fmt: skip
    if fuzz is not None:
        for name, kind in (
            ("statuses", "requests made up by hypothesis"),
            ("raw_statuses", "requests that are hardly HTTP"),
        ):
            counts: Counter[str] = Counter(fuzz[name])
            shown = ", ".join(f"{status}: {count}" for status, count in sorted(counts.items()))
            lines.append([f"{sum(counts.values())} {kind}", f"{shown}; tracebacks {fuzz['tracebacks']}"])
    return table(["", ""], lines) if lines else None


TABLES = (start, overhead, load)


if __name__ == "__main__":
    command(PAGE, TABLES)()
