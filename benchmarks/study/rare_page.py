"""Fills the tables of docs/rare-shift.md from results/study_*_rare.json, study_*_rare_large.json and the studies of the
tail; --figures also draws its figure.

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
_SHOWN = ("dasa", "uncertainty", "oracle")
# Names of results by `rare.SIZES`.
_SMALL, _LARGE = "rare", "rare_large"
_TITLES = {"forum": "Forum", "shop": "Web to shop"}
_MEASURES = {"OOD/ndcg@10": "nDCG@10", "OOD/qwk": "kappa"}
_DRAWN = {"dasa": "#a40000", "dasa-without-band": "#1f5fa8", "uncertainty": "#2e7d32", "oracle": "#777777"}
_SUFFIXES = {"shipped": "", "base": "_base"}
_MODELS = {"shipped": "the model that ships", "base": "the base model"}


def results(size: str = _SMALL) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Name of the study, kind of features and the result, of what was measured."""
    for kind, suffix in _SUFFIXES.items():
        for name in STUDIES:
            found = page.result(f"study_{name}_{size}{suffix}")
            if found is not None:
                yield name, kind, found


def _title(name: str, kind: str) -> str:
    return _TITLES[name] + ("" if kind == "shipped" else f", {kind}")


def _rows(result: dict[str, Any], kind: str, strategy: str, budget: int) -> list[dict[str, Any]]:
    rows = [row for row in result["rows"][kind] if (row["strategy"], row["budget"]) == (strategy, budget)]
    return sorted(rows, key=lambda row: float(row["share"]))


def _gap(value: dict[str, float]) -> str:
    text = f"{value['value']:+.3f} [{value['low']:+.3f}, {value['high']:+.3f}]"
    return f"**{text}**" if value["low"] > 0 or value["high"] < 0 else text


def _heading(name: str, kind: str, result: dict[str, Any], size: str) -> str:
    title = result["title"].partition(":")[0]
    return f"**{title}**, features of {_MODELS[kind]} {page.source(result, f'study_{name}_{size}{_SUFFIXES[kind]}')}"


def benefit() -> str | None:
    """Benefit over a random choice, by OOD share: DASA, and what a perfect detector would have."""
    return _benefit(_SMALL)


def benefit_of_many() -> str | None:
    """The same with more labels from larger pools."""
    return _benefit(_LARGE)


def _benefit(size: str) -> str | None:
    lines = []
    shown = list(results(size))
    for name, kind, result in shown:
        for key, measure in _MEASURES.items():
            for budget in _budgets(result, kind):
                for strategy in _SHOWN:
                    rows = _rows(result, kind, strategy, budget)
                    where = f"{_title(name, kind)}, {measure}, {budget} labels"
                    lines.append([where, strategy, *(_gap(row["against_random"][key]) for row in rows)])
    if not shown:
        return None
    heads = "; ".join(_heading(name, kind, result, size) for name, kind, result in shown)
    return f"{heads}\n\n{page.table(['OOD', 'strategy', *_share_names(shown[0][2], shown[0][1])], lines)}"


def others() -> str | None:
    """Of every strategy, how many of its comparisons with a random choice are clear of zero, and verdicts that hold."""
    counts: dict[str, list[int]] = {}
    for _, kind, result in (*results(_SMALL), *results(_LARGE)):
        for row in result["rows"][kind]:
            found = counts.setdefault(row["strategy"], [0] * 6)
            for place, key in enumerate(_MEASURES):
                gap = row["against_random"][key]
                found[2 * place] += gap["low"] > 0
                found[2 * place + 1] += gap["high"] < 0
            found[4] += row["verdict"] == "holds"
            found[5] += 1
    head = ["strategy", "order better", "worse", "kappa better", "worse", "all four parts hold", "of"]
    return page.table(head, [[name, *found] for name, found in counts.items()]) if counts else None


def _budgets(result: dict[str, Any], kind: str) -> list[int]:
    return sorted({row["budget"] for row in result["rows"][kind]})


def _share_names(result: dict[str, Any], kind: str) -> list[str]:
    return [f"{share:.0%}" for share in sorted({row["share"] for row in result["rows"][kind]})]


def found() -> str | None:
    """How much of what was chosen was out of distribution, and what can be told of a pool without labels."""
    lines = []
    shown = list(results())
    for name, kind, result in shown:
        title, pools = _title(name, kind), result["pools"][kind]
        first = _rows(result, kind, "dasa", _BUDGET)
        lines.append([title, "random", *(f"{np.mean(row['chosen_ood']['random']):.0%}" for row in first)])
        for strategy in ("dasa", "knn", "oracle"):
            rows = _rows(result, kind, strategy, _BUDGET)
            lines.append([title, strategy, *(f"{np.mean(row['chosen_ood']['strategy']):.0%}" for row in rows)])
        at = {row["share"]: [pool for pool in pools if pool["share"] == row["share"]] for row in first}
        estimated = [f"{np.mean([pool['estimated'] for pool in own]):.0%}" for own in at.values()]
        auroc = [f"{np.mean([pool['auroc']['novelty'] for pool in own]):.2f}" for own in at.values()]
        lines += [[title, "*the share, estimated*", *estimated], [title, "*AUROC of novelty*", *auroc]]
    if not shown:
        return None
    return page.table(["", f"OOD of {_BUDGET} chosen", *_share_names(shown[0][2], shown[0][1])], lines)


def calibrated() -> str | None:
    """The tail's own calibration, by how its labels were chosen."""
    result = page.result("study_tail_calibration")
    if result is None:
        return None
    tail = "products"
    lines = []
    for row in (row for row in result["rows"] if row["tail"] == tail):
        for strategy in ("random", "in the band", "most novel", "novel, at random", "oracle"):
            own = row[strategy]
            gap = [_gap(own["less random"][name]) if strategy != "random" else "" for name in ("rps", "nll", "qwk")]
            lines.append([f"{row['share']:.0%}", row["budget"], strategy, f"{own['tail labels']:.0f}", *(
                f"{own['values'][name]:.3f}" for name in ("rps", "nll", "ece", "qwk")), *gap])  # fmt: skip
    ships = result["tails"][tail]["as it ships"]
    lines.insert(
        0, ["", "", "*as it ships*", "", *(f"{ships[name]:.3f}" for name in ("rps", "nll", "ece", "qwk")), "", "", ""]
    )
    head = ["share", "labels", "chosen", "of the tail", "RPS", "NLL", "ECE", "kappa"]
    head += ["RPS less random's", "NLL less random's", "kappa less random's"]
    return f"{page.source(result, 'study_tail_calibration')}\n\n{page.table(head, lines)}"


def learned() -> str | None:
    """What a head and a calibration learn from labels of the tail alone, each test collection by itself."""
    result = page.result("study_shop_tail")
    if result is None:
        return None
    (kind,) = result["rows"]
    lines = []
    for group, title in (("OOD: icecat", "products"), ("OOD: msrd", "films")):
        for row in result["rows"][kind]:
            if row["tail labels"] in (0, _BUDGET) and (group == "OOD: msrd" or "only" not in row["arm"]):
                keys = [f"{group}/{name}" for name in ("ndcg@10", "qwk", "rps")]
                gaps = [_gap(row["against no label of the tail"][key]) for key in keys]
                first = [f"{row['values'][key]:.3f}" for key in keys]
                lines.append([title, row["arm"], row["tail labels"], *(gaps if row["tail labels"] else first)])
    head = ["test", "trained", "labels of the tail", "nDCG@10", "kappa", "RPS"]
    return f"{page.source(result, 'study_shop_tail')}\n\n{page.table(head, lines)}"


def figure() -> StudyFigure | None:
    """Benefit over random against the OOD share, a column a study."""
    from matplotlib.figure import Figure

    shown = list(results())
    if not shown:
        return None
    drawn = Figure(figsize=(3.0 * len(shown), 5.6), layout="constrained")
    # One scale a row, so that the columns can be compared.
    axes = drawn.subplots(len(_MEASURES), len(shown), squeeze=False, sharex=True, sharey="row")
    for column, (name, kind, result) in enumerate(shown):
        shares = _share_names(result, kind)
        for axis, (key, measure) in zip(axes[:, column], _MEASURES.items(), strict=True):
            axis.axhline(0, color="#777777", linewidth=1, linestyle="--")
            for place, (strategy, colour) in enumerate(_DRAWN.items()):
                gaps = [row["against_random"][key] for row in _rows(result, kind, strategy, _BUDGET)]
                values = np.array([gap["value"] for gap in gaps])
                ends = np.array([[gap["value"] - gap["low"], gap["high"] - gap["value"]] for gap in gaps]).T
                at = np.arange(len(shares)) + (place - 1.5) * 0.16
                # Shares are not evenly spaced, so no line joins them.
                axis.errorbar(
                    at, values, ends.clip(0), color=colour, marker="o", markersize=4, linewidth=1.2, linestyle="none",
                    label=strategy,
                )  # fmt: skip
            axis.set(xticks=range(len(shares)), xticklabels=shares)
            axis.grid(alpha=0.3, axis="y")
            if not column:
                axis.set_ylabel(f"OOD {measure} less random's")
        axes[0, column].set_title(_title(name, kind))
        axes[-1, column].set_xlabel("OOD share of the pool")
    drawn.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(_DRAWN), frameon=False)
    caption = f"Benefit over a random choice against the pool's OOD share, {_BUDGET} labels, 95 % intervals"
    return StudyFigure(FIGURE, caption, drawn)


TABLES = (benefit, benefit_of_many, others, found, calibrated, learned)

if __name__ == "__main__":
    if "--figures" in sys.argv:
        sys.argv.remove("--figures")
        if (made := figure()) is not None:
            save(made, page.DOCS / "figures")
    page.command(PAGE, TABLES)()
