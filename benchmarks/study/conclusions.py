"""Fills the verdicts of docs/study.md from results/study_*.json; the tables behind them are `tables.py`'s.

python benchmarks/study/conclusions.py [--check]
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# The folder that has `page` and the package `study`.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import page

from study.claims import HOLDS, REFUTED

PAGE = page.DOCS / "study.md"
SETTINGS = {"forum": "forum", "shop": "web to shop"}
_NAMES = {"ndcg@10": "nDCG@10", "qwk": "kappa", "mass_above": "probability above the true grade"}


def measured_claims() -> list[tuple[str, str, int, Mapping[str, Any]]]:
    """Letter, setting, labels of the pool and claim, of all that was measured with fine-tuning."""
    found = []
    for name, setting in SETTINGS.items():
        result = page.result(f"study_{name}") or {"claims": {}}
        for budget, claims in result["claims"].items():
            found += [(letter, setting, int(budget), claim) for letter, claim in claims.items() if claim["parts"]]
    return sorted(found, key=lambda item: (item[0], list(SETTINGS.values()).index(item[1]), item[2]))


def verdicts() -> str | None:
    rows = []
    for letter, setting, budget, claim in measured_claims():
        by_verdict: dict[str, list[str]] = {HOLDS: [], REFUTED: []}
        open_parts = []
        for part in claim["parts"]:
            label = f"{part['group']} {_NAMES[part['measure']]}"
            by_verdict.get(part["verdict"], open_parts).append(label)
        holds, refuted = (", ".join(parts) or "–" for parts in by_verdict.values())
        rows.append([f"({letter})", setting, str(budget), holds, ", ".join(open_parts) or "–", refuted])
    head = ["", "setting", "labels of the pool", "holds", "not shown", "refuted"]
    return page.table(head, rows) if rows else None


TABLES = (verdicts,)
main = page.command(PAGE, TABLES)

if __name__ == "__main__":
    main()
