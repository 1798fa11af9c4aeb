"""Fills the tables of docs/other_models.md from results/reranker_families.json and second_family.json."""

from __future__ import annotations

from typing import Any

import numpy as np
from page import DOCS, command, result, source, table

PAGE = DOCS / "other_models.md"
RANKINGS = {
    "bm25": "BM25",
    "zero-shot": "Qwen2.5-Coder-0.5B-Instruct, zero-shot",
    "trained": "the same, trained",
    "int8 ranking": "the same, exported in int8",
    "smollm2-darl": "the checkpoint that ships",
}


def equality() -> str | None:
    values = result("reranker_families")
    if values is None:
        return None
    head = ["family", "pairs", "with other token ids", "largest difference of scores: float32", "bfloat16", "exports"]
    rows = [
        [
            f"`{name}`", found["pairs"], found["other token ids"], f"{found['float32, fused']:.1g}",
            f"{found['bfloat16, fused']:.2g}", exported(found["exports"]),
        ]
        for name, found in values["families"].items()
    ]  # fmt: skip
    return f"{table(head, rows)}\n\n{source(values, 'reranker_families')}"


def exported(found: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {'failed' if 'failed' in measures else format(measures['largest_difference'], '.2g')}"
        for name, measures in found.items()
    )


def rankings() -> str | None:
    values = result("second_family")
    if values is None:
        return None
    rows = []
    for name, shown in RANKINGS.items():
        if name in values:
            cells = []
            for cut in ("10", "20"):
                per_query = values[name]["per query"].get(cut)
                difference = values["differences"].get(f"{name} less bm25, first {cut}")
                cells.append("" if per_query is None else f"{np.mean(per_query):.3f}" + interval(difference))
            rows.append([shown, *cells])
    head = ["nDCG@10", "BM25's first 10 reranked", "first 20"]
    return f"{table(head, rows)}\n\n{source(values, 'second_family')}"


def interval(difference: list[float] | None) -> str:
    return "" if difference is None else " ({:+.3f} [{:+.3f}, {:+.3f}])".format(*difference)


def exports() -> str | None:
    values = result("second_family")
    if values is None or not values.keys() & {"int8", "int4"}:
        return None
    rows = []
    for name in ("int8", "int4"):
        found = values.get(name)
        if found is not None and "failed" in found:
            rows.append([name, found["failed"], "", "", ""])
        elif found is not None:
            m = found["measures"]
            rows.append([
                name, f"{found['bytes'] / 2**20:.0f}", f"{m['largest_difference']:.2g}", f"{m['mean_difference']:.2g}",
                f"{m['grade_agreement']:.1%}",
            ])  # fmt: skip
    return table(["", "MiB", "largest difference of a probability", "mean", "same grade"], rows)


TABLES = (equality, rankings, exports)


if __name__ == "__main__":
    command(PAGE, TABLES)()
