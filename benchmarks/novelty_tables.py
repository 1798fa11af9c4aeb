"""Fills the table of docs/novelty.md from results/bundled.json.

python benchmarks/novelty_tables.py [--check]
"""

from __future__ import annotations

from page import DOCS, command, percent, result, source, table

PAGE = DOCS / "novelty.md"


def tests() -> str | None:
    values = result("bundled")
    if values is None:
        return None
    rows = []
    for name, what in (("medquad", "medical answers (medquad)"), ("icecat", "products (Icecat)")):
        found = values["novelty"][name]["auroc"]
        rows.append([
            what, f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]",
            percent(values["warned of"][name]),
        ])  # fmt: skip
    web = values["novelty reference"]
    rows.append([f"web passages ({web})", "", percent(values["warned of"][web])])
    return f"{table(['', 'AUROC against web passages', 'above 95'], rows)}\n\n{source(values, 'bundled')}"


TABLES = (tests,)


if __name__ == "__main__":
    command(PAGE, TABLES)()
