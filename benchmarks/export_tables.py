"""Fills the tables of docs/export.md from results/export_parity.json, int8_errors.json and serving_footprint.json."""

from __future__ import annotations

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
            f"{m['largest_difference']:.2g}", f"{m['mean_difference']:.2g}", f"{m['grade_agreement']:.1%}",
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


def errors() -> str | None:
    values = result("int8_errors")
    if values is None:
        return None
    ways = values["ways"]
    kinds = next(iter(ways.values()))
    lines = [[kind, *(f"{found[kind]['together']:.3f}" for found in ways.values())] for kind in kinds]
    about = f"{values['model']}, {values['pairs']} pairs; {source(values, 'int8_errors')}"
    return f"{table(['product', *ways], lines)}\n\n{about}"


def ranking() -> str | None:
    values = result("export_parity")
    if values is None or not values["ranking"]:
        return None
    exact = values["ranking"]["torch"]["ndcg10"]
    rows = [
        ["torch float32" if name == "torch" else f"ONNX {name}", f"{r['ndcg10']:.4f}", f"{r['ndcg10'] - exact:+.4f}"]
        for name, r in values["ranking"].items()
    ]
    return table(["", "nDCG@10", "difference"], rows)


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


TABLES = (exports, errors, ranking, prefix, footprint)


if __name__ == "__main__":
    command(PAGE, TABLES)()
