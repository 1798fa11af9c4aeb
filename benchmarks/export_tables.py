"""Fills the tables of docs/export.md from results/export_parity.json, int8_errors.json and serving_footprint.json."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from darl_rerank.export.agreement import Agreement
from page import DOCS, command, result, source, table

PAGE = DOCS / "export.md"
# Measures that a sample or a model may lack.
OPTIONAL = ("kendall_tau", "ndcg_difference", "novelty_difference")


def exports() -> str | None:
    values = result("export_parity")
    if values is None:
        return None
    rows, failed = [], []
    for name, found in values["exports"].items():
        if "failed" in found:
            failed.append(f"- {name}: {found['failed']}")
            continue
        m = found["measures"]
        rows.append([
            name, f"{found['bytes'] / 2**20:.0f}", f"{found['seconds']:.0f}", len(found.get("finer products", ())),
            f"{m['largest_difference']:.2g}", f"{m['mean_difference']:.2g}", agreement(m),
            *("-" if m[key] is None else f"{m[key]:.3g}" for key in OPTIONAL),
        ])  # fmt: skip
    head = [
        "", "MiB", "export, s", "finer products", "largest difference", "mean", "same grade", "Kendall's tau",
        "nDCG@10", "novelty, most points",
    ]  # fmt: skip
    about = (
        f"{values['model']} ({'trained' if values['trained'] else 'untrained'}), {values['pairs']} judged pairs of "
        f"{values['collection']}, each against torch in float32, on the CPU"
    )
    return "\n".join(
        [f"{about} {source(values, 'export_parity')}.", "", table(head, rows), *([""] if failed else []), *failed]
    )


def agreement(measures: dict[str, Any]) -> str:
    """The share of pairs with the same grade, and its interval of 95 %."""
    pairs = measures["pairs"]
    found = Agreement(round(measures["grade_agreement"] * pairs), pairs)
    low, high = found.interval
    return f"{found.share:.1%} [{100 * low:.1f}, {100 * high:.1f}]"


def errors() -> str | None:
    values = result("int8_errors")
    if values is None:
        return None
    ways = values["ways"]
    kinds = next(iter(ways.values()))
    lines = [[kind, *(f"{found[kind]['together']:.3f}" for found in ways.values())] for kind in kinds]
    about = f"{values['model']}, {values['pairs']} pairs; {source(values, 'int8_errors')}"
    return f"{table(['product', *ways], lines)}\n\n{about}"


def lists() -> str | None:
    values = result("export_parity")
    if values is None or not (found := values["lists"])["exports"]:
        return None
    rows = []
    for name, each in found["exports"].items():
        of_queries, m = list(each["queries"].values()), each["measures"]
        exact, own = (fmean(q[key] for q in of_queries) for key in ("ndcg10, torch", "ndcg10"))
        rows.append([
            name, f"{m['kendall_tau']:.3f}", f"{min(q['kendall_tau'] for q in of_queries):.3f}",
            f"{fmean(q['shared of the top'] for q in of_queries):.1f}", f"{exact:.4f}", f"{own:.4f}",
            f"{max(abs(q['ndcg10'] - q['ndcg10, torch']) for q in of_queries):.3f}", agreement(m),
            f"{m['largest_difference']:.2g}",
        ])  # fmt: skip
    head = [
        "", "Kendall's tau, mean", "least", "of the top ten the same", "nDCG@10, torch", "export",
        "largest difference of a query", "same grade", "largest difference of a probability",
    ]  # fmt: skip
    return f"{table(head, rows)}\n\n{found['queries']} queries, {found['pairs']:,} documents, {values['collection']}."


def prefix() -> str | None:
    values = result("export_parity")
    if values is None or not values["prefix"]:
        return None
    rows = [
        [
            f"ONNX {name}",
            f"{r['times as fast']:.2f}",
            f"{r['largest difference']:.2g}",
            "yes" if r["same order"] else "no",
        ]
        for name, r in values["prefix"].items()
    ]
    return table(["", "times as fast", "largest probability difference", "same order"], rows)


def footprint() -> str | None:
    values = result("serving_footprint")
    if values is None:
        return None
    rows = [
        [f"`darl-rerank[{name}]`", f"{values[name]['installed_mib']:.0f}", f"{values[name]['seconds']:.1f}",
         f"{values[name]['peak_mib']:.0f}"]
        for name in ("onnx", "torch")
    ]  # fmt: skip
    return "\n".join([
        table(["", "installed, MiB", "process start to first result, s", "peak memory, MiB"], rows), "",
        source(values, "serving_footprint"),
    ])  # fmt: skip


TABLES = (exports, errors, lists, prefix, footprint)


if __name__ == "__main__":
    command(PAGE, TABLES)()
