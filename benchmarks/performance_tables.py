"""Fills the tables of docs/performance.md from results/*.json; see `page`.

python benchmarks/performance_tables.py [--check]
"""

from __future__ import annotations

from typing import Any

from page import DOCS, command, percent, result, source, table

PAGE = DOCS / "performance.md"
DEPTHS = (10, 50, 100)


def part(name: str, of: str = "throughput") -> dict[str, Any] | None:
    found = result(of)
    return None if found is None else found["parts"].get(name)


def hundred() -> str | None:
    """How long a hundred documents take, the answer that a reader comes for."""
    values = result("hundred_documents")
    if values is None:
        return None
    lines = [
        [row["name"], f"{row['median']:.1f}", f"{row['times the CrossEncoder']:.1f}"]
        for row in sorted(values["rows"], key=lambda row: row["median"])
    ]
    head = ["", "100 documents, s of one core", "times the CrossEncoder as installed"]
    about = (
        f"{len(values['left early'])} queries of {values['collection']}; medians, one thread, processor seconds. "
        f"{percent(sum(values['left early']) / len(values['left early']))} of the pairs left early."
    )
    return "\n\n".join([table(head, lines), about, source(values, "hundred_documents")])


def tokens_about(values: dict[str, Any]) -> str:
    tokens = values["tokens_per_pair"]
    return f"{tokens['whole']:.0f} tokens a pair, of which {tokens['run']:.0f} are run where a query's prefix is shared"


def rows() -> str | None:
    values = part("rows")
    if values is None:
        return None
    slowest = next(r for r in values["rows"] if r["name"] == "sentence-transformers CrossEncoder, float32")
    lines = [
        [
            r["name"], f"{r['pairs_per_second']:.1f}", f"{r['pairs_per_second'] / slowest['pairs_per_second']:.1f}",
            percent(r["share_of_ceiling_tokens_run"]), percent(r["share_of_ceiling_whole_pairs"]),
            f"{r['largest_logit_difference']:.1g}",
        ]
        for r in values["rows"]
    ]  # fmt: skip
    head = [
        "", "pairs a second", "times the CrossEncoder as installed", "share of ceiling, tokens run",
        "share of ceiling, whole pairs", "largest logit difference to torch in float32",
    ]  # fmt: skip
    skipped = [f"- {name}: not measured, {reason}" for name, reason in values["skipped"].items()]
    about = (
        f"{values['pairs']} pairs of {values['collection']}, {values['per_query']} documents a query; "
        f"{tokens_about(values)}; "
        f"{'one core, processor seconds' if values['clock'] == 'processor' else 'all cores'}, "
        f"medians of {values['repeats']} runs in turn."
    )
    return "\n\n".join(
        [about, table(head, lines), *(["\n".join(skipped)] if skipped else []), source(values, "throughput")]
    )


def ceiling() -> str | None:
    values = part("rows")
    if values is None:
        return None
    lines = [
        [number_format, way, f"{rate / 1e12:.3f}"]
        for number_format, ways in values["ceiling"].items()
        for way, rate in ways.items()
        if way != "best"
    ]
    return table(["number format", "product", "10¹² operations a second"], lines)


def latency() -> str | None:
    values = part("latency")
    if values is None:
        return None
    lines = [
        [r["engine"], r["documents"], f"{r['p50']:.2f}", f"{r['p95']:.2f}", len(r["seconds"])] for r in values["rows"]
    ]
    return table(["engine", "documents", "p50, s", "p95, s", "runs"], lines)


def cost() -> str | None:
    """What an export costs, and how fast each engine starts."""
    values = result("export_cost")
    if values is None:
        return None
    exports = [
        [
            name, f"{found['processor_seconds']:.0f}", f"{found['peak_mib'] / 1024:.1f}",
            f"{found['bytes'] / 2**20:.0f}", found["finer_products"], percent(found["measures"]["grade_agreement"], 1),
        ]
        for name, found in values["exports"].items()
    ]  # fmt: skip
    starts = [
        [name, found["precision"], f"{min(run['processor_seconds'] for run in found['runs']):.1f}"]
        for name, found in values["starts"].items()
    ]
    return "\n\n".join([
        table(["export", "processor seconds, one thread", "peak GiB", "MiB", "finer products", "same grade"], exports),
        table(["engine", "precision", "processor seconds to the first result, one thread"], starts),
        source(values, "export_cost"),
    ])  # fmt: skip


def start() -> str | None:
    values = part("start")
    if values is None:
        return None
    lines = [
        [r["engine"], f"{r['cold_start_seconds']:.1f}", r["cold_start_peak_mib"], r["peak_mib"]] for r in values["rows"]
    ]
    head = ["engine", "start of process to first result, s", "peak memory then, MiB", "after 50 pairs more, MiB"]
    return table(head, lines)


def scaling() -> str | None:
    lines = []
    for model, file in (
        ("SmolLM2-135M", "throughput"), ("SmolLM2-135M", "throughput_short"), ("tiny, of the tests", "throughput_tiny"),
    ):  # fmt: skip
        values = part("scaling", file)
        for r in () if values is None else values["rows"]:
            words = values.get("words") if values else None
            named = f"{model}, documents cut to {words} words" if words else model
            # After the first twentieth of the pairs, and after all.
            memory = [mib for _, mib in r.get("resident_mib", ())]
            spread = f"{memory[0]} to {memory[-1]}" if memory else "-"
            lines.append([named, r["engine"], r["pairs"], f"{r['pairs_per_second']:.1f}", spread, r["peak_mib"]])
    if (values := result("long_run")) is not None:
        first, last = values["samples"][0], values["samples"][-1]
        lines.append([
            "SmolLM2-135M, product titles", "ONNX Runtime, int8", values["pairs_done"],
            f"{last['pairs'] / last['seconds']:.1f}", f"{first['resident_mib']:.0f} to {last['resident_mib']:.0f}",
            f"{last['peak_mib']:.0f}",
        ])  # fmt: skip
    head = ["model", "engine", "pairs", "pairs a second", "memory from first to last sample, MiB", "peak, MiB"]
    return table(head, lines) if lines else None


def int8_engines() -> str | None:
    """int8 by other libraries' kernels."""
    values = result("int8_engines")
    if values is None:
        return None
    ways = list(dict.fromkeys(row["way"] for row in values["products"]))
    shapes = list(dict.fromkeys((row["inputs"], row["outputs"]) for row in values["products"]))
    rates = {(r["way"], r["inputs"], r["outputs"]): r["operations_per_second"] / 1e12 for r in values["products"]}
    products = table(
        ["10¹² operations a second", *(f"{i} × {o}" for i, o in shapes)],
        [[way, *(f"{rates[way, *shape]:.2f}" for shape in shapes)] for way in ways],
    )
    parts = [products]
    model = values["model"]
    parts.append(
        table(
            ["engine", "pairs a second", "time, ours being 1", "largest logit difference to torch in float32"],
            [
                [r["engine"], f"{r['pairs_per_second']:.1f}", f"{r['times_ours']:.2f}",
                 f"{r['largest_logit_difference']:.1g}"]
                for r in model["rows"]
            ],
        )
    )  # fmt: skip
    parts += [f"- {name}: not measured, {reason}" for name, reason in model["skipped"].items()]
    if "prompt" in values:
        rows = [[r["engine"], f"{r['tokens_per_second']:.0f}"] for r in values["prompt"]["rows"]]
        parts.append(table([f"a prompt of {values['prompt']['tokens']} tokens", "tokens a second"], rows))
    about = (
        f"One core, processor seconds; {model['pairs']} pairs of {values['collection']}, {values['per_query']} "
        "documents a query."
    )
    return "\n\n".join([*parts, about, source(values, "int8_engines")])


def int8_profile() -> str | None:
    """Where an int8 export's time goes."""
    values = result("int8_profile")
    if values is None:
        return None
    shares = list(values["shares"].items())
    lines = [[name, percent(share)] for name, share in shares if share >= 0.01]
    lines.append(["others", percent(sum(share for _, share in shares if share < 0.01))])
    about = f"{values['rows']} rows of {values['tokens']} tokens behind a prefix of {values['prefix']}, one thread."
    return "\n\n".join([table(["operator", "share of time"], lines), about, source(values, "int8_profile")])


def length() -> str | None:
    values = part("length")
    if values is None:
        return None
    lines = [
        [
            r["engine"], r["document_tokens"], f"{r['pairs_per_second']:.1f}",
            f"{r['pairs_per_second'] * r['document_tokens']:.0f}",
        ]
        for r in values["rows"]
    ]  # fmt: skip
    return table(["engine", "tokens a document", "pairs a second", "document tokens a second"], lines)


def threads() -> str | None:
    values = part("threads")
    if values is None:
        return None
    return table(
        ["engine", "cores", "pairs a second"],
        [[r["engine"], r["cores"], f"{r['pairs_per_second']:.1f}"] for r in values["rows"]],
    )


def steps() -> str | None:
    values = result("torch_steps")
    if values is None:
        return None
    precisions = values["precisions"]
    names = [r["variant"] for r in next(iter(precisions.values()))["rows"]]
    ratios = {p: {r["variant"]: r["ratio"] for r in v["rows"]} for p, v in precisions.items()}
    lines = [[name, *(f"{ratios[p][name]:.2f}" for p in precisions)] for name in names]
    kept = [v["memory_kept"] for v in precisions.values()]
    lines.append(["memory given back after each use", *(f"{k['seconds_without'] / k['seconds']:.2f}" for k in kept)])
    shares = [
        f"{precision}: tokenising takes {percent(v['tokenising_share'], 2)} of the time; profile "
        + "; ".join(
            f"{name}: products {percent(p['products'])}, attention {percent(p['attention'])}, rest {percent(p['rest'])}"
            for name, p in v["profile"].items()
        )
        + f"; page faults a run {v['memory_kept']['page_faults_without']} without and "
        f"{v['memory_kept']['page_faults']} with memory kept."
        for precision, v in precisions.items()
    ]
    first = next(iter(precisions.values()))
    return "\n\n".join(
        [
            table(["variant", *(f"time, {p}" for p in precisions)], lines),
            "\n".join(f"- {share}" for share in shares),
            source(first, "torch_steps"),
        ]
    )


def operators() -> str | None:
    values = result("torch_steps")
    if values is None:
        return None
    lines = [
        [precision, name, f"{milliseconds:.2f}"]
        for precision, v in values["precisions"].items()
        for name, milliseconds in v["operators_ms"].items()
    ]
    left = next(iter(values["precisions"].values()))["mib_of_100_shapes"]
    memory = "; ".join(f"{precision} {mib} MiB" for precision, mib in left.items())
    about = f"A hundred batched products of different shapes leave behind: {memory}."
    return table(["states in", "operator", "ms"], lines) + "\n\n" + about


def sizing() -> str | None:
    """Cores for one query a second, from the speed of one core, or of all this machine's where rows ran on all."""
    values = part("rows")
    if values is None:
        return None
    cores = 1 if values["clock"] == "processor" else values["provenance"]["machine"]["cores"]
    lines = []
    for r in values["rows"]:
        if r["name"].startswith("darl-rerank"):
            each = r["pairs_per_second"] / cores
            lines.append([r["name"], f"{each:.1f}", *(f"{depth / each:.1f}" for depth in DEPTHS)])
    return table(["engine", "pairs a second and core", *(f"cores at depth {d}" for d in DEPTHS)], lines)


def gpu() -> str | None:
    values = result("gpu")
    if values is None:
        return None
    lines = [
        [r["model"], r["tokens"], r["name"], f"{r['pairs_per_second']:.0f}", percent(r["share_of_ceiling"])]
        for r in values["rows"]
    ]
    skipped = [f"- {s['model']}, {s['name']}: not measured, {s['reason']}" for s in values["skipped"]]
    return "\n\n".join([
        table(["model", "tokens a pair", "", "pairs a second", "share of ceiling"], lines),
        *(["\n".join(skipped)] if skipped else []), f"({values['gpu']})",
    ])  # fmt: skip


def invariance() -> str | None:
    values = result("batch_invariance")
    if values is None:
        return None
    lines = [
        [
            engine, name, f"{r['largest_difference']:.1e}", percent(r["same_order"], 2),
            f"{r['widest_swapped_gap']:.2g}",
        ]
        for engine, named in values["rows"].items()
        for name, r in named.items()
    ]  # fmt: skip
    return table(
        ["engine", "pairs scored", "largest probability difference", "pairs of one query ordered alike",
         "widest swapped gap"], lines,
    )  # fmt: skip


TABLES = (
    hundred,
    rows,
    ceiling,
    latency,
    start,
    cost,
    scaling,
    int8_engines,
    int8_profile,
    length,
    threads,
    steps,
    operators,
    sizing,
    gpu,
)


if __name__ == "__main__":
    command(PAGE, TABLES)()
