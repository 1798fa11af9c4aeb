"""Tables of docs/scale-out.md: machines from measured paces, and what the machinery of a cluster costs.

python benchmarks/capacity_tables.py
"""

from __future__ import annotations

from page import DOCS, command, result, source, table

PAGE = DOCS / "scale-out.md"
PASSAGES = 138_364_198
LIVE_PAIRS = 1000 * 100
JOB_PAIRS = 10**9
LOAD = 0.7
# Assumptions, in dollars an hour: a core of a rented machine, a large GPU with its machine.
CORE_PRICE, GPU_PRICE = 0.04, 3.0


def _paces() -> list[tuple[str, str, float, float, str]]:
    """What is measured: name, unit of hardware, pairs a second, price of an hour, file."""
    rows: list[tuple[str, str, float, float, str]] = []
    if (cores := result("hundred_documents")) is not None:
        rows += [
            (row["name"], "core", 100 / row["median"], CORE_PRICE, "hundred_documents")
            for row in cores["rows"]
            if row["name"].startswith("smollm2-darl") and "float32" not in row["name"] and "off" not in row["name"]
        ]
    if (gpu := result("gpu")) is not None:
        rows += [
            (f"{row['name']}, {gpu['gpu']}", "GPU", row["pairs_per_second"], GPU_PRICE, "gpu")
            for row in gpu["rows"]
            if row["model"] == "SmolLM2-135M" and row["tokens"] == 128
        ]
    return rows


def paces() -> str | None:
    rows = _paces()
    lines = [[name, f"{pace:.1f} a {unit}", f"`results/{file}.json`"] for name, unit, pace, _, file in rows]
    about = ""
    if not any(name.startswith("darl-rerank") and unit == "GPU" for name, unit, *_ in rows):
        about = (
            "\n\nOur own engine has no measured pace on a GPU yet: the CrossEncoder with the same weights stands in."
        )
    return table(["SmolLM2-135M", "pairs a second", "from"], lines) + about if rows else None


def machines() -> str | None:
    lines = []
    for name, unit, pace, price, _ in _paces():
        live = LIVE_PAIRS / pace / LOAD
        hours = JOB_PAIRS / pace / 3600
        lines.append([
            name, f"{live:,.0f} {unit}s", f"${live * price:,.0f} an hour", f"{hours:,.0f} {unit} hours",
            f"${hours * price:,.0f}",
        ])  # fmt: skip
    head = ["", "100,000 pairs a second", "at the assumed price", "10^9 pairs", "at the assumed price"]
    return (
        f"{table(head, lines)}\n\nAssumed: ${CORE_PRICE:g} a core hour, ${GPU_PRICE:g} a GPU hour." if lines else None
    )


def shallower() -> str | None:
    budget = result("budget")
    if budget is None:
        return None
    lines = []
    for name, found in budget["parts"]["auto"].items():
        if "nDCG@10 by documents judged" not in found:
            continue
        by_depth = found["nDCG@10 by documents judged"]
        whole = found["nDCG@10"]["depth 100"]
        lines.append([
            name, f"{whole:.3f}", f"{by_depth['50']:.3f}", f"{by_depth['20']:.3f}",
            f"{found['nDCG@10']['auto']:.3f} at {found['documents judged']:.0f} documents",
        ])  # fmt: skip
    head = ["nDCG@10", "depth 100", "depth 50: half the machines", "depth 20: a fifth", '`depth="auto"`']
    return f"{table(head, lines)}\n\n{source(budget, 'budget')}"


def exits() -> str | None:
    successor = result("successor")
    if successor is None:
        return None
    lines = [
        [name, f"{found['before']:.3f}", f"{found['with exits']:.3f}", f"{found['layers run']:.0%}",
         f"{1 / found['layers run']:.1f}"]
        for name, found in successor["collections"].items()
        if "layers run" in found
    ]  # fmt: skip
    head = ["nDCG@10", "30 layers, the model of 0.3", "smollm2-darl", "layers run", "pairs for the same work"]
    return f"{table(head, lines)}\n\n{source(successor, 'successor')}"


def machinery() -> str | None:
    jobs = result("ray_jobs")
    if jobs is None:
        return None
    lookup = jobs["lookup"]
    groups = PASSAGES / lookup["row_group_documents"]
    fastest = max(row["pairs_per_second"] for row in jobs["rows"])
    lines = [
        ["text lookup at random, Parquet, one core", f"{1000 / lookup['cpu_milliseconds']:,.0f} documents a second"],
        ["plan, parts and outputs without a model, two workers", f"{fastest:,.0f} queries of one document a second"],
        [
            "footers of MS MARCO v2 in memory of each worker",
            f"{groups * lookup['footer_bytes_per_row_group'] / 2**20:,.0f} MiB as stored, {groups:,.0f} row groups",
        ],
    ]
    return f"{table(['', 'measured'], lines)}\n\n{source(jobs, 'ray_jobs')}"


def rows() -> str | None:
    jobs = result("ray_jobs")
    if jobs is None:
        return None
    lines = [
        [f"{row['rows']:,}", f"{row['driver_peak_mib']:.0f} MiB", f"{row['seconds']:.0f} s"] for row in jobs["rows"]
    ]
    about = "A model that costs nothing, one document a query, two workers; peak memory of the driver process."
    return f"{about}\n\n{table(['rows', 'driver, at most', 'whole job'], lines)}\n\n{source(jobs, 'ray_jobs')}"


def workers() -> str | None:
    jobs = result("ray_jobs")
    if jobs is None:
        return None
    stub = {row["workers"]: row for row in jobs["stub"]}
    lines = [
        [row["workers"], f"{row['pairs_per_second']:,.0f}", f"{stub[row['workers']]['pairs_per_second']:,.0f}",
         f"{stub[row['workers']]['pairs_per_second'] / stub[1]['pairs_per_second']:.1f}", f"{row['load']:.0f}"]
        for row in jobs["small_model"]
    ]  # fmt: skip
    about = (
        "Pairs a second from the first part on. One process without Ray: "
        f"{jobs['one_process_pairs_per_second']:,.0f} with the small model. The machine has two cores and was shared "
        "(its load average is the last column), so the small model, which needs a core, can't scale here; a model that "
        f"waits {jobs['stub_seconds'] * 1000:.0f} ms a document, as for a GPU, shows what the machinery allows."
    )
    head = ["workers", "small model", "waiting model", "times one worker", "load average"]
    return f"{about}\n\n{table(head, lines)}\n\n{source(jobs, 'ray_jobs')}"


TABLES = (paces, machines, shallower, exits, machinery, rows, workers)


if __name__ == "__main__":
    command(PAGE, TABLES)()
