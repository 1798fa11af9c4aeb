"""Fills the tables of docs/rare-shift.md from results/study_*_rare.json; --figures also draws its figure.

python benchmarks/study/rare_page.py
python benchmarks/study/rare_page.py --figures
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# The folder that has `page` and the package `study`.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import page

from study.figures import StudyFigure, save
from study.settings import STUDIES

PAGE = page.DOCS / "rare-shift.md"
FIGURE = "rare_shift.svg"
_BUDGET = 100
_MEASURES = {"OOD/ndcg@10": "nDCG@10", "OOD/qwk": "kappa"}
_DRAWN = {"dasa": "#a40000", "dasa-without-band": "#1f5fa8", "oracle": "#777777"}
_MODELS = {"shipped": "the model that ships", "base": "the base model"}


def results() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Name of the study, kind of features and the result, of what was measured."""
    for name in STUDIES:
        found = page.result(f"study_{name}_rare")
        for kind in found["rows"] if found is not None else ():
            yield name, kind, found  # type: ignore[misc]


def _rows(result: dict[str, Any], kind: str, strategy: str, budget: int) -> list[dict[str, Any]]:
    rows = [row for row in result["rows"][kind] if (row["strategy"], row["budget"]) == (strategy, budget)]
    return sorted(rows, key=lambda row: float(row["share"]))


def _strategies(result: dict[str, Any], kind: str) -> list[str]:
    return list(dict.fromkeys(row["strategy"] for row in result["rows"][kind]))


def _gap(value: dict[str, float]) -> str:
    text = f"{value['value']:+.3f} [{value['low']:+.3f}, {value['high']:+.3f}]"
    return f"**{text}**" if value["low"] > 0 or value["high"] < 0 else text


def _heading(name: str, kind: str, result: dict[str, Any]) -> str:
    title = result["title"].partition(":")[0]
    return f"**{title}**, features of {_MODELS[kind]} {page.source(result, f'study_{name}_rare')}"


def benefit() -> str | None:
    """Benefit of each strategy over a random choice, by OOD share."""
    parts = []
    for name, kind, result in results():
        for key, measure in _MEASURES.items():
            lines = [
                [strategy, *(_gap(row["against_random"][key]) for row in _rows(result, kind, strategy, _BUDGET))]
                for strategy in _strategies(result, kind)
            ]
            parts.append(
                f"{_heading(name, kind, result)}: OOD {measure} less that of a random choice, {_BUDGET} labels."
            )
            parts.append(page.table(["strategy", *_share_names(result, kind)], lines))
    return "\n\n".join(parts) or None


def _share_names(result: dict[str, Any], kind: str) -> list[str]:
    return [f"{share:.0%}" for share in sorted({row["share"] for row in result["rows"][kind]})]


def verdicts() -> str | None:
    """Claim (b) for every study, budget and share; strategies that no share speaks for are left out."""
    parts = []
    for name, kind, result in results():
        lines = []
        for strategy in _strategies(result, kind):
            for budget in sorted({row["budget"] for row in result["rows"][kind]}):
                found = [row["verdict"] for row in _rows(result, kind, strategy, budget)]
                if strategy == "dasa" or any(verdict == "holds" for verdict in found):
                    lines.append([strategy, budget, *found])
        parts.append(f"{_heading(name, kind, result)}.")
        parts.append(page.table(["strategy", "labels", *_share_names(result, kind)], lines))
    return "\n\n".join(parts) or None


def found() -> str | None:
    """How much of what each strategy chose was out of distribution."""
    parts = []
    for name, kind, result in results():
        first = _strategies(result, kind)[0]
        of_random = [f"{np.mean(row['chosen_ood']['random']):.0%}" for row in _rows(result, kind, first, _BUDGET)]
        lines = [["random", *of_random]]
        lines += [
            [s, *(f"{np.mean(row['chosen_ood']['strategy']):.0%}" for row in _rows(result, kind, s, _BUDGET))]
            for s in _strategies(result, kind)
        ]
        pools = result["pools"][kind]
        for key, label in (
            ("estimated", "the share, estimated"),
            ("novelty", "AUROC of novelty"),
            ("domain", "AUROC of the classifier"),
        ):
            cells = []
            for share in sorted({pool["share"] for pool in pools}):
                own = [
                    pool[key] if key == "estimated" else pool["auroc"][key] for pool in pools if pool["share"] == share
                ]
                cells.append(f"{np.mean(own):.0%}" if key == "estimated" else f"{np.mean(own):.2f}")
            lines.append([f"*{label}*", *cells])
        parts.append(f"{_heading(name, kind, result)}.")
        parts.append(page.table([f"OOD among {_BUDGET} chosen", *_share_names(result, kind)], lines))
    return "\n\n".join(parts) or None


def figure() -> StudyFigure | None:
    """Benefit over random against the OOD share, a column a study."""
    from matplotlib.figure import Figure

    shown = list(results())
    if not shown:
        return None
    drawn = Figure(figsize=(3.4 * len(shown), 5.2), layout="constrained")
    axes = drawn.subplots(len(_MEASURES), len(shown), squeeze=False, sharex=True)
    for column, (name, kind, result) in enumerate(shown):
        shares = _share_names(result, kind)
        for axis, (key, measure) in zip(axes[:, column], _MEASURES.items(), strict=True):
            axis.axhline(0, color="#999999", linewidth=1, linestyle="--")
            for place, (strategy, colour) in enumerate(_DRAWN.items()):
                gaps = [row["against_random"][key] for row in _rows(result, kind, strategy, _BUDGET)]
                values = np.array([gap["value"] for gap in gaps])
                ends = np.array([[gap["value"] - gap["low"], gap["high"] - gap["value"]] for gap in gaps]).T
                at = np.arange(len(shares)) + (place - 1) * 0.12
                axis.errorbar(
                    at, values, ends.clip(0), color=colour, marker="o", markersize=3, linewidth=1, label=strategy
                )
            axis.set(xticks=range(len(shares)), xticklabels=shares)
            axis.grid(alpha=0.3)
            if not column:
                axis.set_ylabel(f"OOD {measure} less random's")
        axes[0, column].set_title(f"{name}, {_MODELS[kind]}")
        axes[-1, column].set_xlabel("OOD share of the pool")
    axes[0, 0].legend(frameon=False)
    caption = f"Benefit over a random choice against the pool's OOD share, {_BUDGET} labels, 95 % intervals"
    return StudyFigure(FIGURE, caption, drawn)


TABLES = (benefit, verdicts, found)

if __name__ == "__main__":
    if "--figures" in sys.argv:
        sys.argv.remove("--figures")
        if (made := figure()) is not None:
            save(made, page.DOCS / "figures")
    page.command(PAGE, TABLES)()
