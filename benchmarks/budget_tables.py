"""Fills the tables of docs/budgets.md from results/budget.json."""

from __future__ import annotations

from page import DOCS, command, result, source, table

PAGE = DOCS / "budgets.md"
TOP = "of the full depth's top 10"


def budgets() -> str | None:
    values = result("budget")
    parts = {} if values is None else values["parts"]
    timed = {name.removeprefix("time "): part for name, part in parts.items() if name.startswith("time ")}
    if not timed:
        return None
    rows, notes = [], []
    for name, part in timed.items():
        for way, found in part["ways"].items():
            times = found["ms p50, p99, most"]
            told = ["refused: below one document"] + ["-"] * 2 if times is None else [f"{ms:.0f}" for ms in times]
            least, largest = found["judged least, most"]
            rows.append([
                name, way, *told,
                f"{found['documents judged']:.1f} ({least} to {largest})", f"{found['nDCG@10']:.3f}",
            ])  # fmt: skip
        notes.append(
            f"{name}: {part['queries']} queries; first stage {part['nDCG@10 of the first stage']:.3f}; load average "
            f"{part['load before']:.0f} before, {part['load after']:.0f} after {source(part, 'budget')}"
        )
    head = ["engine", "budget", "ms, median", "p99", "longest", "documents judged", "nDCG@10"]
    return "\n".join([table(head, rows), "", *(f"- {note}" for note in notes)])


def depths() -> str | None:
    values = result("budget")
    if values is None or "auto" not in values["parts"]:
        return None
    part = values["parts"]["auto"]
    rows = []
    for name, found in part.items():
        if name == "provenance":
            continue
        ndcg = found["nDCG@10"]
        low, middle, high = found["judged p10, p50, p90"]
        mean, below, above = found["auto from depth 100"]
        rows.append([
            name, f"{found['documents judged']:.0f} ({low:.0f}, {middle:.0f}, {high:.0f})",
            f"{found[TOP]:.0%}", f"{ndcg['first stage']:.3f}", f"{ndcg['auto']:.3f}",
            f"{ndcg['same depth for all']:.3f}", f"{ndcg['depth 100']:.3f}",
            f"{mean:+.3f} [{below:+.3f}, {above:+.3f}]",
        ])  # fmt: skip
    head = [
        "", "documents judged (p10, p50, p90)", "of the whole list's top 10", "first stage", "auto",
        "same depth for all", "depth 100", "auto from depth 100",
    ]  # fmt: skip
    return "\n".join([table(head, rows), "", source(part, "budget")])


def documents() -> str | None:
    values = result("budget")
    if values is None or "auto" not in values["parts"]:
        return None
    part = {name: found for name, found in values["parts"]["auto"].items() if name != "provenance"}
    depths = list(next(iter(part.values()))["nDCG@10 by documents judged"])
    rows = [
        [name, *(f"{found['nDCG@10 by documents judged'][depth]:.3f}" for depth in depths)]
        for name, found in part.items()
    ]
    return table(["documents judged", *depths], rows)


TABLES = (budgets, documents, depths)


if __name__ == "__main__":
    command(PAGE, TABLES)()
