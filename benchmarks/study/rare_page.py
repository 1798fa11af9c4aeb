"""Fills the tables of docs/rare-shift.md from results/study_*_rare*.json and the studies of the tail; --figures also
draws its figure.

python benchmarks/study/rare_page.py
python benchmarks/study/rare_page.py --figures
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# The folder that has `page` and the package `study`.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import page

from study.claims import HOLDS
from study.figures import StudyFigure, save
from study.settings import STUDIES

PAGE = page.DOCS / "rare-shift.md"
FIGURE = "rare_shift.svg"
_BUDGET = 100
_SHOWN = ("dasa", "uncertainty", "oracle")
# Names of results by `rare.SIZES`.
_SMALL, _LARGE = "rare", "rare_large"
_TITLES = {"forum": "Forum", "shop": "Web to shop"}
_ORDER = "OOD/ndcg@10"
_MEASURES = {_ORDER: "nDCG@10", "OOD/qwk": "kappa"}
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


def _every() -> Iterator[tuple[str, str, dict[str, Any], dict[str, Any]]]:
    """Name of the study, kind of features, result and comparison, of all that was screened."""
    for name, kind, result in (*results(_SMALL), *results(_LARGE)):
        for row in result["rows"][kind]:
            yield name, kind, result, row


def _clear(rows: Sequence[dict[str, Any]], key: str) -> tuple[int, int]:
    """How many differences from a random choice are clear of zero: above it, below it."""
    gaps = [row["against_random"][key] for row in rows]
    return sum(gap["low"] > 0 for gap in gaps), sum(gap["high"] < 0 for gap in gaps)


def counted() -> str | None:
    """What screening shows, in counts."""
    every = list(_every())
    if not every:
        return None
    strategies = list(dict.fromkeys(row["strategy"] for *_, row in every))
    held = [
        f"`{row['strategy']}` ({_title(name, kind).lower()}, {row['share']:.0%}, {row['budget']:,} labels)"
        for name, kind, _, row in every
        if row["verdict"] == HOLDS
    ]
    lines = [
        f"Of {len(every)} comparisons of {len(strategies)} ways to choose with a random draw {len(held)} hold in all "
        f"four parts" + (f": {', '.join(held)}." if held else ".")
    ]
    for strategy in _SHOWN:
        rows = [row for *_, row in every if row["strategy"] == strategy]
        order, kappa = (_clear(rows, key) for key in _MEASURES)
        lines.append(
            f"`{strategy}`, of {len(rows)}: the tail's order is better in {order[0]}, worse in {order[1]}; its kappa "
            f"better in {kappa[0]}, worse in {kappa[1]}."
        )
    return "\n".join(f"- {line}" for line in lines)


def benefit() -> str | None:
    """The tail's order less a random choice's, by OOD share."""
    sizes = [(size, *found) for size in (_SMALL, _LARGE) for found in results(size)]
    lines = []
    for name, kind in dict.fromkeys((name, kind) for _, name, kind, _ in sizes):
        for result in (result for _, *own, result in sizes if own == [name, kind]):
            for budget in _budgets(result, kind):
                for strategy in _SHOWN:
                    gaps = [_gap(row["against_random"][_ORDER]) for row in _rows(result, kind, strategy, budget)]
                    lines.append([_title(name, kind), f"{budget:,}", strategy, *gaps])
    if not sizes:
        return None
    heads = "; ".join(_heading(name, kind, result, size) for size, name, kind, result in sizes)
    return f"{heads}\n\n{page.table(['', 'labels', 'strategy', *_share_names(sizes[0][3], sizes[0][2])], lines)}"


def others() -> str | None:
    """Of every strategy, how many of its comparisons with a random choice are clear of zero, and verdicts that hold."""
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for _, kind, _, row in _every():
        rows.setdefault((kind, row["strategy"]), []).append(row)
    lines = []
    for (kind, name), own in rows.items():
        clear = [count for key in _MEASURES for count in _clear(own, key)]
        lines.append([_MODELS[kind], name, *clear, sum(row["verdict"] == HOLDS for row in own), len(own)])
    head = ["features of", "strategy", "order better", "worse", "kappa better", "worse", "all four parts hold", "of"]
    return page.table(head, lines) if lines else None


def tuned() -> str | None:
    """Fine-tuned arms: a random choice's values, and what others differ from them by."""
    shown = [
        (name, kind, file, found)
        for kind, suffix in _SUFFIXES.items()
        for name in STUDIES
        if (found := page.result(file := f"study_{name}_rare_tuned{suffix}")) is not None
    ]
    keys = [f"{group}/{measure}" for group in ("OOD", "ID") for measure in ("ndcg@10", "qwk")]
    lines = []
    for name, kind, _, result in shown:
        for row in result["rows"]:
            first = row["strategy"] == "random"
            values = [f"{row['values'][key]:.3f}" if first else _gap(row["against_random"][key]) for key in keys]
            where = [_title(name, kind), f"{row['share']:.0%}", row["budget"]]
            lines.append([*where, row["strategy"], f"{np.mean(row['chosen_ood']):.0%}", *values, row["verdict"] or ""])
    if not shown:
        return None
    head = ["", "share", "labels", "strategy", "of the tail", "OOD nDCG@10", "OOD kappa", "ID nDCG@10", "ID kappa"]
    heads = "; ".join(page.source(result, file) for _, _, file, result in shown)
    return f"{heads}\n\n{page.table([*head, 'claim (b)'], lines)}"


def _budgets(result: dict[str, Any], kind: str) -> list[int]:
    return sorted({row["budget"] for row in result["rows"][kind]})


def _share_names(result: dict[str, Any], kind: str) -> list[str]:
    return [f"{share:.0%}" for share in sorted({row["share"] for row in result["rows"][kind]})]


def found() -> str | None:
    """How much of what was chosen was out of distribution, and what can be told of a pool without labels."""
    lines = []
    shown = list(results())
    for name, kind, result in shown:
        title = _title(name, kind)
        rows = {strategy: _rows(result, kind, strategy, _BUDGET) for strategy in ("dasa", "knn")}
        chosen = {"random": [row["chosen_ood"]["random"] for row in rows["dasa"]]}
        chosen |= {strategy: [row["chosen_ood"]["strategy"] for row in own] for strategy, own in rows.items()}
        for strategy, shares in chosen.items():
            lines.append([title, strategy, *(f"{np.mean(share):.0%}" for share in shares)])
        lines.append([title, "*the share, estimated*", *_estimated(result, kind)])
        large = page.result(f"study_{name}_{_LARGE}{_SUFFIXES[kind]}")
        if large is not None:
            lines.append([title, "*the same, pools for 1,000 labels*", *_estimated(large, kind)])
        auroc = [[pool["auroc"]["novelty"] for pool in own] for own in _pools(result, kind)]
        lines.append([title, "*AUROC of novelty*", *(f"{np.mean(own):.2f}" for own in auroc)])
    if not shown:
        return None
    return page.table(["", f"OOD of {_BUDGET} chosen", *_share_names(shown[0][2], shown[0][1])], lines)


def _pools(result: dict[str, Any], kind: str) -> list[list[dict[str, Any]]]:
    """What is known of the pools of all seeds, by share."""
    pools = result["pools"][kind]
    return [[pool for pool in pools if pool["share"] == share] for share in sorted({pool["share"] for pool in pools})]


def _estimated(result: dict[str, Any], kind: str) -> list[str]:
    """The least and the most that any seed's pool is estimated at."""
    found = [[pool["estimated"] for pool in own] for own in _pools(result, kind)]
    return [f"{min(own):.0%} to {max(own):.0%}" for own in found]


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


TABLES = (counted, tuned, others, benefit, found, calibrated, learned)

if __name__ == "__main__":
    if "--figures" in sys.argv:
        sys.argv.remove("--figures")
        if (made := figure()) is not None:
            save(made, page.DOCS / "figures")
    page.command(PAGE, TABLES)()
