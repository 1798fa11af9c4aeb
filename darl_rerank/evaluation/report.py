"""A self-contained HTML report of an evaluation on graded pairs: tables, plots as inline SVG; no script, no link."""

from __future__ import annotations

import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from darl_rerank.errors import MissingDependencyError
from darl_rerank.files import atomic_write

# Measure: its name for people, and whether more is better (None: neither).
MEASURES: dict[str, tuple[str, bool]] = {
    "ndcg@10": ("nDCG@10", True),
    "accuracy": ("accuracy", True),
    "macro_f1": ("macro F1", True),
    "qwk": ("quadratic weighted kappa", True),
    "spearman": ("Spearman of the score", True),
    "nll": ("negative log-likelihood", False),
    "rps": ("ranked probability score", False),
    "ece": ("expected calibration error", False),
    "mass_above": ("mass above the true grade", False),
    "aurc": ("area under risk-coverage", False),
}
_PREFIXES = {"auc": ("AUC, grade ≥ ", True), "f1": ("F1 of ", True), "ece": ("calibration error of ", False)}
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #ccc }
table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .25rem .8rem; text-align: right }
th:first-child, td:first-child { text-align: left } tr:nth-child(even) td { background: #f5f6f8 }
th { border-bottom: 2px solid #888; font-weight: 600 } .interval { color: #666; font-size: .85em }
.worse { color: #a40000 } .better { color: #00693e } figure { margin: 1rem 0 } figcaption { color: #555 }
svg { max-width: 100%; height: auto }
"""


def measure_title(name: str) -> tuple[str, bool]:
    """A measure's name for people, and whether more is better."""
    kind, _, grade = name.partition(":")
    if grade:
        words, better = _PREFIXES[kind]
        return words + grade, better
    return MEASURES.get(name, (name, True))


def write_report(
    path: str | Path,
    result: Mapping[str, Any],
    names: Sequence[str],
    *,
    title: str = "Evaluation on graded pairs",
    facts: Mapping[str, str] | None = None,
    novelty: NDArray[Any] | None = None,
    groups: NDArray[Any] | None = None,
    alpha: Sequence[Mapping[str, float]] | None = None,
) -> None:
    """Write the report, whole or not at all.

    Args:
        path: the HTML file.
        result: from `evaluate_pairs`.
        names: names of the grades, lowest first.
        title: the heading.
        facts: what to say of model and data below the heading.
        novelty, groups: percentile and group of each pair, shape (n,): for the histograms.
        alpha: for each weight of the interpolation a mapping with "alpha" and measures by name, e.g. "ID nDCG@10": the
            curve of the interpolated weights.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise MissingDependencyError("matplotlib", "eval", "to draw the report") from error
    # Text as text, so that the page can be searched; a fixed salt, so that the same data give the same bytes.
    settings = {"svg.fonttype": "none", "svg.hashsalt": "darl-rerank", "font.size": 9, "axes.axisbelow": True}
    with mpl.rc_context(settings):
        parts = [f"<h1>{html.escape(title)}</h1>", _facts({**(facts or {}), **_counts(result)})]
        parts += ["<h2>Measures</h2>", _measures_table(result)]
        if result["gaps"]:
            parts += [f"<h2>Gaps: each group less {html.escape(result['reference'])}</h2>", _gaps_table(result)]
        parts += ["<h2>nDCG@10 by group</h2>", _ndcg(result)]
        parts.append("<h2>Reliability: how often a grade is true against how probable it was said to be</h2>")
        parts += [_reliability(group, values, names) for group, values in result["groups"].items()]
        parts += ["<h2>Confusion: true grade by row, most probable grade by column</h2>", _confusion(result, names)]
        if novelty is not None:
            labels = np.full(len(novelty), "all") if groups is None else np.asarray(groups)
            parts += ["<h2>Novelty</h2>", _novelty(np.asarray(novelty), labels), _novelty_table(result)]
        if alpha:
            parts += ["<h2>Interpolation of weights</h2>", _alpha(alpha)]
    with atomic_write(path) as stream:
        stream.write(
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
            f"<style>{_STYLE}</style></head><body>\n" + "\n".join(part for part in parts if part) + "\n</body></html>\n"
        )


def _counts(result: Mapping[str, Any]) -> dict[str, str]:
    return {
        "pairs": f"{result['pairs']} of {result['queries']} queries",
        "intervals": "95 %, from a bootstrap over queries",
    }


def _facts(facts: Mapping[str, str]) -> str:
    rows = "".join(f"<tr><td>{html.escape(k)}</td><td>{html.escape(str(v))}</td></tr>" for k, v in facts.items())
    return f"<table>{rows}</table>"


def _cell(value: Mapping[str, float | None], *, sign: str = "") -> str:
    if value["value"] is None:
        return "–"
    shown = f"{value['value']:{sign}.3f}"
    if value["low"] is not None:
        shown += f' <span class="interval">[{value["low"]:{sign}.3f}, {value["high"]:{sign}.3f}]</span>'
    return shown


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _measures_table(result: Mapping[str, Any]) -> str:
    groups = result["groups"]
    first = next(iter(groups.values()))["measures"]
    header = ["", *(f"{name} ({v['pairs']} pairs, {v['queries']} queries)" for name, v in groups.items())]
    rows = []
    for name in first:
        title, better = measure_title(name)
        arrow = "↑" if better else "↓"
        rows.append([f"{html.escape(title)} {arrow}", *(_cell(v["measures"][name]) for v in groups.values())])
    return _table(header, rows)


def _gaps_table(result: Mapping[str, Any]) -> str:
    gaps = result["gaps"]
    rows = []
    for name in next(iter(gaps.values())):
        title, better = measure_title(name)
        cells = []
        for values in gaps.values():
            gap = values[name]
            certain = gap["low"] is not None and (gap["low"] > 0 or gap["high"] < 0)
            kind = "" if not certain else "better" if (gap["value"] > 0) == better else "worse"
            cells.append(f'<span class="{kind}">{_cell(gap, sign="+")}</span>')
        rows.append([html.escape(title), *cells])
    note = "<p>Coloured where the interval does not hold 0.</p>"
    return _table(["", *gaps], rows) + note


def _novelty_table(result: Mapping[str, Any]) -> str:
    if not result["novelty"]:
        return ""
    rows = [[html.escape(g), _cell(v["auroc"]), _cell(v["fpr95"])] for g, v in result["novelty"].items()]
    return _table([f"told from {result['reference']}", "AUROC ↑", "FPR95 ↓"], rows)


def _figure(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    # The object-oriented interface: pyplot would keep state and look for a display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def _svg(figure: Any, caption: str) -> str:
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    return f"<figure>{text[text.index('<svg') :]}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _reliability(group: str, values: Mapping[str, Any], names: Sequence[str]) -> str:
    shown = ["top", *names]
    figure, axes = _figure(2.5 * len(shown), 2.7, len(shown))
    for axis, name in zip(axes, shown, strict=True):
        curve = values["reliability"][name]
        sizes = 8 + 120 * np.asarray(curve["count"]) / max(curve["count"], default=1)
        axis.plot([0, 1], [0, 1], color="#999999", linewidth=1, linestyle="--")
        axis.plot(curve["confidence"], curve["frequency"], color="#1f5fa8", linewidth=1)
        axis.scatter(curve["confidence"], curve["frequency"], s=sizes, color="#1f5fa8", alpha=0.6)
        error = values["measures"]["ece" if name == "top" else f"ece:{name}"]["value"]
        axis.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xlabel="probability", aspect="equal")
        axis.set_title(("most probable grade" if name == "top" else name) + f"\nerror {error:.3f}", fontsize=9)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("frequency")
    return _svg(figure, f"{group}: dots on the diagonal are calibrated, below it over-confident; area shows pairs.")


def _confusion(result: Mapping[str, Any], names: Sequence[str]) -> str:
    groups = result["groups"]
    figure, axes = _figure(max(4.0, 3.4 * len(groups)), 3.4, len(groups))
    for axis, (group, values) in zip(axes, groups.items(), strict=True):
        counts = np.asarray(values["confusion"], dtype=float)
        share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for (i, j), part in np.ndenumerate(share):
            colour = "white" if part > 0.55 else "black"
            axis.text(j, i, f"{int(counts[i, j])}\n{part:.0%}", ha="center", va="center", color=colour, fontsize=8)
        axis.set_xticks(range(len(names)), names, rotation=30, ha="right")
        axis.set_yticks(range(len(names)), names)
        axis.set(title=group, xlabel="predicted", ylabel="true")
    return _svg(figure, "Pairs, and their part of the true grade's pairs.")


def _ndcg(result: Mapping[str, Any]) -> str:
    groups = list(result["groups"])
    values = [result["groups"][group]["measures"]["ndcg@10"] for group in groups]
    if all(value["value"] is None for value in values):
        return "<p>No query has a document with any gain.</p>"
    figure, (axis,) = _figure(6.5, 0.9 + 0.42 * len(groups))
    for place, value in enumerate(values):
        if value["value"] is None:
            continue
        axis.barh(place, value["value"], color="#7fa8d1")
        if value["low"] is not None:
            axis.plot([value["low"], value["high"]], [place, place], color="#1a1a1a", linewidth=1.5)
        axis.text(0.01, place, f"{value['value']:.3f}", va="center")
    axis.set_yticks(range(len(groups)), groups)
    axis.invert_yaxis()
    axis.set(xlim=(0, 1), xlabel="nDCG@10")
    return _svg(figure, "Mean over queries that have a document with any gain; lines are 95 % intervals.")


def _novelty(novelty: NDArray[Any], groups: NDArray[Any]) -> str:
    figure, (axis,) = _figure(7, 3)
    order = [str(groups[i]) for i in np.sort(np.unique(groups, return_index=True)[1])]
    edges = np.linspace(0, 100, 41)
    for group in order:
        own = novelty[groups == group]
        weights = np.full(len(own), 1 / len(own))
        axis.hist(own, bins=edges, weights=weights, histtype="stepfilled", alpha=0.35, label=group)
    axis.axhline(1 / 40, color="#999999", linewidth=1, linestyle="--")
    axis.set(xlim=(0, 100), xlabel="novelty (percentile of held-out in-distribution pairs)", ylabel="part of the pairs")
    axis.legend(frameon=False)
    return _svg(figure, "Pairs like the training set's lie along the dashed line; what is new piles up on the right.")


def _alpha(curve: Sequence[Mapping[str, float]]) -> str:
    figure, (axis,) = _figure(6.5, 3.2)
    weights = [point["alpha"] for point in curve]
    for name in (key for key in curve[0] if key != "alpha"):
        axis.plot(weights, [point[name] for point in curve], marker="o", markersize=4, label=name)
    axis.set(xlabel="α: 0 the linear probe, 1 the fine-tuned model", ylabel="measure")
    axis.grid(alpha=0.3)
    # Beside the lines, which may run anywhere within.
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return _svg(figure, "Every point is a model whose weights lie between the two.")
