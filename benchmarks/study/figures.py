"""Draws docs/figures/study_NAME_{alpha,novelty,reliability}.svg from results/study_NAME.json, and study_claims.svg
of all.

    python benchmarks/study/figures.py

The same results give the same bytes.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The folder that has `page` and the package `study`.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import page

from darl_rerank.files import atomic_write
from study.conclusions import measured_claims
from study.settings import STUDIES

# Text as text, and a fixed salt, without which names inside the file would be drawn at random.
_SETTINGS = {"svg.fonttype": "none", "svg.hashsalt": "darl-rerank", "font.size": 9, "axes.axisbelow": True}
_SETS = {"home_dev": "ID dev", "away_dev": "OOD dev"}
_SHOWN = ("plain", "all three")


@dataclass(frozen=True, slots=True)
class StudyFigure:
    """A figure of a page.

    Attributes:
        file: its name.
        caption: what it shows.
        drawn: of matplotlib.
    """

    file: str
    caption: str
    drawn: Any


def figures(name: str, result: Mapping[str, Any]) -> list[StudyFigure]:
    """What can be drawn of a study's fine-tuned level."""
    import matplotlib as mpl

    with mpl.rc_context(_SETTINGS):
        found = [(kind, caption, draw(result)) for kind, (draw, caption) in _FIGURES.items()]
    return [StudyFigure(f"study_{name}_{kind}.svg", caption, figure) for kind, caption, figure in found if figure]


def save(figure: StudyFigure, folder: Path) -> None:
    """Write it as SVG."""
    import matplotlib as mpl

    stream = io.StringIO()
    with mpl.rc_context(_SETTINGS):
        figure.drawn.savefig(stream, format="svg", metadata={"Date": None})
    with atomic_write(folder / figure.file) as out:
        # The writer of SVG leaves spaces at line ends.
        out.write("\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n")


def _figure(width: float, height: float, columns: int) -> tuple[Any, Any]:
    # The object-oriented interface: pyplot would keep state and look for a display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def _first_budget(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [arm for arm in result["arms"] if arm["budget"] == result["settings"]["budgets"][0]]


def _alpha(result: Mapping[str, Any]) -> Any:
    arms = [(arm["arm"], arm["runs"]) for arm in _first_budget(result) if any(run.get("curve") for run in arm["runs"])]
    if not arms:
        return None
    figure, axes = _figure(3.4 * len(arms), 3, len(arms))
    for axis, (name, runs) in zip(axes, arms, strict=True):
        for run in runs:
            curve = run["curve"]
            for (group, label), colour in zip(_SETS.items(), ("#1f5fa8", "#a40000"), strict=True):
                shown = label if run is runs[0] else None
                axis.plot(
                    curve["alphas"], curve["values"][group]["rps"], color=colour, marker="o", markersize=3, label=shown
                )
        axis.set(title=name, xlabel="α: 0 the start, 1 fine-tuned", ylabel="RPS, less is better")
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False)
    return figure


def _novelty(result: Mapping[str, Any]) -> Any:
    groups = result["novelty"]["groups"]
    figure, (axis,) = _figure(6, 3, 1)
    for name, colour in (("ID", "#1f5fa8"), ("OOD", "#a40000")):
        axis.bar(range(5, 100, 10), groups[name]["share_by_tenth"], width=9.6, alpha=0.4, color=colour, label=name)
    axis.axhline(0.1, color="#999999", linewidth=1, linestyle="--")
    axis.set(xlabel="novelty (percentile of held-out ID pairs)", ylabel="part of the test pairs", xlim=(0, 100))
    axis.legend(frameon=False)
    return figure


def _reliability(result: Mapping[str, Any]) -> Any:
    arms = [arm for arm in _first_budget(result) if arm["arm"] in _SHOWN]
    if not arms:
        return None
    figure, axes = _figure(3 * 2 * len(arms), 3.2, 2 * len(arms))
    panels = [(arm, group) for arm in arms for group in ("ID", "OOD")]
    for axis, (arm, group) in zip(axes, panels, strict=True):
        axis.plot([0, 1], [0, 1], color="#999999", linewidth=1, linestyle="--")
        for when, colour in (("before", "#a40000"), ("after", "#1f5fa8")):
            curve = arm["reliability"][group][when]
            axis.plot(curve["confidence"], curve["frequency"], color=colour, marker="o", markersize=3, label=when)
        axis.set(title=f"{arm['arm']}, {group}", xlabel="probability", xlim=(0, 1), ylim=(0, 1), aspect="equal")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("how often right")
    axes[0].legend(frameon=False)
    return figure


_FIGURES: dict[str, tuple[Callable[[Mapping[str, Any]], Any], str]] = {
    "alpha": (_alpha, "RPS on the development pairs along α, a line a seed"),
    "novelty": (_novelty, "Novelty of the test pairs"),
    "reliability": (
        _reliability,
        "Reliability of the most probable grade before and after temperature scaling, first seed",
    ),
}


def claims_figure() -> StudyFigure:
    """The difference of each claim, out of distribution, in order and in grades, with its interval."""
    import matplotlib as mpl

    claims = measured_claims()
    with mpl.rc_context(_SETTINGS):
        figure, axes = _figure(8, 0.8 + 0.28 * len(claims), 2)
        for axis, (measure, title) in zip(axes, _CLAIM_PANELS, strict=True):
            for row, (letter, *_, claim) in enumerate(claims):
                part = next(p for p in claim["parts"] if (p["group"], p["measure"]) == ("OOD", measure))
                clear = part["low"] > 0 or part["high"] < 0
                error = [[part["value"] - part["low"]], [part["high"] - part["value"]]]
                colour = "#1f5fa8" if clear else "#888888"
                axis.errorbar(part["value"], row, xerr=error, fmt="o", color=colour, markersize=4, capsize=2)
                if row and letter != claims[row - 1][0]:
                    axis.axhline(row - 0.5, color="#dddddd", linewidth=1)
            axis.axvline(0, color="#555555", linewidth=1)
            axis.set(title=title, ylim=(len(claims) - 0.5, -0.5), yticks=range(len(claims)), yticklabels=[])
            axis.grid(axis="x", alpha=0.3)
        axes[0].set_yticklabels([f"({letter}) {setting}, {budget}" for letter, setting, budget, _ in claims])
    return StudyFigure("study_claims.svg", "Differences out of distribution", figure)


_CLAIM_PANELS = (("qwk", "kappa OOD, difference"), ("ndcg@10", "nDCG@10 OOD, difference"))


def main() -> None:
    save(claims_figure(), page.DOCS / "figures")
    for name in STUDIES:
        result = page.result(f"study_{name}")
        for figure in figures(name, result) if result is not None else ():
            save(figure, page.DOCS / "figures")


if __name__ == "__main__":
    main()
