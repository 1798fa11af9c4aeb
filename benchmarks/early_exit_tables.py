"""Fills the table of docs/early-exit.md from results/early_exit.json.

python benchmarks/early_exit_tables.py [--check]
"""

from __future__ import annotations

from page import DOCS, command, percent, result, source, table

PAGE = DOCS / "early-exit.md"


def saved() -> str | None:
    values = result("early_exit")
    if values is None:
        return None
    lines = [
        [
            name, row["queries"], percent(row["left"]), f"{row['relevant that left']} of {row['relevant']}",
            percent(row["share of layers"]),
            f"{row['processor seconds a query']:.1f} ({row['processor seconds a query, whole']:.1f})",
            f"{row['ndcg@10 with exits']:.3f} ({row['ndcg@10 whole']:.3f})",
        ]
        for name, row in values["rows"].items()
    ]  # fmt: skip
    head = [
        "", "queries", "left", "relevant documents that left", "layers run", "processor s a query (without exits)",
        "nDCG@10 (without exits)",
    ]  # fmt: skip
    about = f"{values['model']}, {values['engine']}, BM25's first documents. {source(values, 'early_exit')}"
    return f"{table(head, lines)}\n\n{about}"


TABLES = (saved,)


if __name__ == "__main__":
    command(PAGE, TABLES)()
