"""Fills docs/study-tables.md from results/study_*.json. Its figures are drawn by `figures.py`.

    python benchmarks/study/tables.py [--check]

Every word of a verdict comes from the JSON, where `claims.verdict` made it from an interval.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

# The folder that has `provenance` and the package `study`.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import page

from study.figures import figures

PAGE = page.DOCS / "study-tables.md"
NAMES = {
    "ndcg@10": "nDCG@10 ↑", "qwk": "QWK ↑", "macro_f1": "macro F1 ↑", "spearman": "Spearman ↑", "nll": "NLL ↓",
    "rps": "RPS ↓", "ece": "ECE ↓", "ece_before": "ECE unscaled ↓", "mass_above": "mass above ↓", "aurc": "AURC ↓",
}  # fmt: skip
LARGEST_GROUPS = 8
Lines = list[str]


def cell(value: Mapping[str, Any] | None, sign: str = "", digits: int = 3) -> str:
    """A value with its interval."""
    if value is None or value.get("value") is None:
        return "–"
    shown = f"{value['value']:{sign}.{digits}f}"
    if value.get("low") is not None:
        shown += f" [{value['low']:{sign}.{digits}f}, {value['high']:{sign}.{digits}f}]"
    return shown


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Lines:
    return [page.table(header, rows), ""]


def data_section(result: Mapping[str, Any]) -> Lines:
    settings = result["settings"]
    rows = [
        [role, str(v["queries"]), str(v["pairs"]), " / ".join(map(str, v["grades"])), ", ".join(list(v["groups"])[:6])]
        for role, v in result["data"]["roles"].items()
    ]
    text = (
        f"Base {settings['base']}, prompts of at most {settings['max_length']} tokens "
        f"({result['data']['cut_documents']} documents cut). In every arm {settings['home_pairs']} labelled ID pairs "
        f"and the budget's pairs of the pool, at most {settings['per_query']} of a query; the pool is the role's pairs "
        f"and about {settings['pool_home']} ID pairs of other queries."
    )
    elsewhere = {
        role: v["documents_elsewhere"] for role, v in result["data"]["roles"].items() if role.endswith("_test")
    }
    text += (
        f" No query is in two roles. Documents of the tests that also stand elsewhere, with other queries: "
        f"{elsewhere['home_test']} (ID), {elsewhere['away_test']} (OOD)."
    )
    return [text, "", *table(["role", "queries", "pairs", "by grade", "largest groups"], rows)]


def claim_sections(result: Mapping[str, Any]) -> Lines:
    """The verdicts in one table, then one section a claim."""
    claims = [(name, claim) for judged in result["claims"].values() for name, claim in judged.items()]
    overview = [
        [f"({name})", claim["claim"], str(claim["budget"]), str(len(claim["seeds"])), f"**{claim['verdict']}**"]
        for name, claim in sorted(claims, key=lambda item: (item[0], item[1]["budget"]))
    ]
    lines = table(["", "claim", "labels of the pool", "seeds", "verdict"], overview)
    arms = {(arm["arm"], arm["budget"]): arm for arm in result["arms"]}
    for name, claim in sorted(claims, key=lambda item: (item[0], item[1]["budget"])):
        if not claim["parts"]:
            continue
        lines += [f"#### ({name}) with {claim['budget']} labels of the pool", ""]
        pair = [(label, arms[label, claim["budget"]]) for label in (claim["first"], claim["second"])]
        rows = []
        for measure in dict.fromkeys([*(part["measure"] for part in claim["parts"]), "rps", "nll", "ece"]):
            for label, arm in pair:
                shown = [cell(arm["groups"][group][measure]) for group in ("ID", "OOD")]
                rows.append([NAMES[measure], label, *shown, cell(arm["gaps"]["OOD"][measure], "+")])
        lines += table(["measure", "arm", "ID", "OOD", "gap OOD − ID"], rows)
        parts = [
            [
                f"{part['group']} {NAMES[part['measure']]} {part['kind']}", cell(part, "+"), f"{part['p_holm']:.3f}",
                ", ".join("–" if d is None else f"{d:+.3f}" for d in part["each_seed"]), part["verdict"],
            ]
            for part in claim["parts"]
        ]  # fmt: skip
        lines += table(["part", f"{claim['second']} less {claim['first']}", "p (Holm)", "each seed", "verdict"], parts)
    return lines


def arms_section(result: Mapping[str, Any], against: str) -> Lines:
    """All arms side by side, with differences from the base arm where the interval is clear of zero."""
    lines: Lines = []
    shown = ("ndcg@10", "qwk", "rps", "mass_above", "ece")
    for budget in sorted({arm["budget"] for arm in result["arms"]}):
        differences = result[against].get(str(budget), {})
        lines += [
            f"Labels of the pool: {budget}. Bold: the difference from {against.split('_')[1]} is clear of zero.",
            "",
        ]
        rows = []
        for arm in (arm for arm in result["arms"] if arm["budget"] == budget):
            row = [arm["arm"], str(len(arm["seeds"]))]
            for measure in shown:
                for group in ("ID", "OOD"):
                    value = arm["groups"][group][measure]["value"]
                    text = "–" if value is None else f"{value:.3f}"
                    row.append(_bold_if_clear(text, differences, arm["arm"], f"{group}/{measure}"))
            rows.append(row)
        header = [f"{group} {NAMES[measure]}" for measure in shown for group in ("ID", "OOD")]
        lines += table(["arm", "seeds", *header], rows)
    return lines


def _bold_if_clear(text: str, differences: Mapping[str, Any], arm: str, key: str) -> str:
    """`text` in bold if the arm's difference from the base arm is clear of zero in this measure of this group."""
    gap = differences.get(arm, {}).get(key, {})
    return f"**{text}**" if gap.get("low") is not None and gap["low"] * gap["high"] > 0 else text


def groups_section(result: Mapping[str, Any], against: str) -> Lines:
    """All arms on each collection of the OOD test by itself; nothing where it is one collection."""
    names = [name for name in result["arms"][0]["groups"] if name.startswith("OOD: ")]
    if not names:
        return []
    shown = [(measure, name) for measure in ("ndcg@10", "qwk") for name in names]
    rows = []
    for arm in result["arms"]:
        differences = result[against].get(str(arm["budget"]), {})
        cells = [
            _bold_if_clear(cell(arm["groups"][name][measure]), differences, arm["arm"], f"{name}/{measure}")
            for measure, name in shown
        ]
        rows.append([arm["arm"], str(arm["budget"]), *cells])
    header = ["arm", "budget", *(f"{NAMES[measure]}, {name.removeprefix('OOD: ')}" for measure, name in shown)]
    text = f"Bold: the difference from {against.split('_')[1]} is clear of zero."
    return ["#### Each collection of the OOD test by itself", "", text, "", *table(header, rows)]


def alpha_section(result: Mapping[str, Any]) -> Lines:
    lines: Lines = []
    for arm in result["arms"]:
        curves = [run for run in arm["runs"] if run.get("curve")]
        if not curves:
            continue
        chosen = ", ".join(f"{run['alpha']:g} (seed {run['seed']})" for run in curves)
        lines += [
            f"{arm['arm']}, {arm['budget']} labels of the pool: α chosen {chosen}; the curve is the first seed's.",
            "",
        ]
        curve = curves[0]["curve"]
        names = [(group, measure) for measure in ("ndcg@10", "qwk", "rps") for group in ("home_dev", "away_dev")]
        rows = [
            [f"{alpha:g}", *(f"{curve['values'][group][measure][i]:.3f}" for group, measure in names)]
            for i, alpha in enumerate(curve["alphas"])
        ]
        where = {"home_dev": "ID dev", "away_dev": "OOD dev"}
        lines += table(["α", *(f"{where[group]} {NAMES[measure]}" for group, measure in names)], rows)
    return lines


def novelty_section(result: Mapping[str, Any]) -> Lines:
    rows = []
    for group, value in result["novelty"]["groups"].items():
        shares = value["share_by_tenth"]
        rows.append([
            group, str(value.get("queries", "")), cell(value.get("auroc")), cell(value.get("fpr95")),
            " ".join(f"{100 * share:.0f}" for share in shares),
        ])  # fmt: skip
    text = (
        f"Novelty is fitted on base features of seed {result['novelty']['seed']}'s labelled ID pairs. The last column "
        "is the histogram: percent of the group's pairs in each tenth of novelty, from 0–10 to 90–100."
    )
    lines = [text, "", *table(["group", "queries", "AUROC against ID ↑", "FPR95 ↓", "histogram"], rows)]
    return [*lines, "", *band_section(result)] if "pool" in result["novelty"] else lines


def band_section(result: Mapping[str, Any]) -> Lines:
    """Which pairs of the pool the band cuts off and which DASA chooses, with the first seed."""
    pool, (low, high) = result["novelty"]["pool"], result["settings"]["band"]
    budgets = result["settings"]["budgets"]
    columns = ["pairs", "below", "above", *(f"chosen of {budget}" for budget in budgets)]
    rows = [[name, *(str(pool[name][key]) for key in columns)] for name in list(pool)[:LARGEST_GROUPS]]
    left = len(pool) - len(rows)
    text = f"The same seed's pool, its largest groups{f' ({left} smaller ones are left out)' if left else ''}:"
    header = ["group", "pairs", f"below {low:g}", f"above {high:g}", *(f"of DASA's {budget}" for budget in budgets)]
    return [text, "", *table(header, rows)]


def reliability_section(result: Mapping[str, Any], names: Sequence[str]) -> Lines:
    rows = []
    for arm in result["arms"]:
        if arm["arm"] not in names or arm["budget"] != result["settings"]["budgets"][0]:
            continue
        for group in ("ID", "OOD"):
            for when in ("before", "after"):
                curve = arm["reliability"][group][when]
                points = [
                    f"{c:.2f}→{f:.2f} ({n:.0f})"
                    for c, f, n in zip(curve["confidence"], curve["frequency"], curve["count"], strict=True)
                ]
                rows.append([arm["arm"], group, when, ", ".join(points)])
    text = "First seed: mean probability of the most probable grade → how often it was right (pairs), by bin."
    return [text, "", *table(["arm", "", "temperature", "bins"], rows)]


def selection_section(result: Mapping[str, Any]) -> Lines:
    """What each strategy chose with the first seed."""
    rows: dict[tuple[int, str], Lines] = {}
    for arm in result["arms"]:
        for run in arm["runs"][:1]:
            found = run.get("selection")
            if found is not None:
                novelty = "–" if found["mean_novelty"] is None else f"{found['mean_novelty']:.0f}"
                rows.setdefault((found["budget"], found["strategy"]), [
                    found["strategy"], str(found["budget"]), str(found["queries"]), novelty,
                    f"{100 * found['home_share']:.0f} %", str(found["filled_at_random"]),
                ])  # fmt: skip
    header = ["strategy", "budget", "queries", "mean novelty", "ID pairs among them", "filled at random"]
    return table(header, [rows[key] for key in sorted(rows)])


def refuted_section(results: Mapping[str, Mapping[str, Any]], absent: Sequence[str] = ()) -> Lines:
    """Every part of a claim that was refuted or not shown, and what was planned and has not run.

    `absent` are the studies' levels that have no result at all.
    """
    refuted, open_parts, missing = [], [], [f"- {name}: nothing of it" for name in absent]
    for name, result in results.items():
        for judged in result["claims"].values():
            for letter, claim in judged.items():
                where = f"{name}, ({letter}), {claim['budget']} labels"
                if not claim["parts"]:
                    missing.append(f"- {where}: {claim['verdict']}")
                for part in claim["parts"]:
                    line = f"- {where}: {part['group']} {NAMES[part['measure']]} {part['kind']}: {cell(part, '+')}"
                    if part["verdict"] == "refuted":
                        refuted.append(line)
                    elif part["verdict"] != "holds":
                        open_parts.append(f"{line}, {part['verdict']}")
        counts: dict[str, Lines] = {}
        for item in result.get("missing", ()):
            counts.setdefault(f"{item['arm']}, {item['budget']} labels", []).append(str(item["seed"]))
        missing += [f"- {name}: {key}, seed {', '.join(seeds)}" for key, seeds in counts.items()]
    found: Lines = []
    for title, lines in (("Refuted", refuted), ("Not shown", open_parts), ("Not measured", missing)):
        found += [f"### {title}", "", *(lines or ["Nothing."]), ""]
    return found


def study_section(name: str) -> str | None:
    """Everything of one study, both levels; None if neither has run."""
    tuned, heads = page.result(f"study_{name}"), page.result(f"study_{name}_head")
    some = tuned or heads
    if some is None:
        return None
    lines = data_section(some)
    if tuned is not None:
        lines += [
            f"### Fine-tuned: {tuned['level']}",
            "",
            "; ".join([_written(tuned["provenance"]), *_earlier(tuned)]) + ".",
            "",
        ]
        lines += [*claim_sections(tuned), "#### All arms", "", *arms_section(tuned, "against_plain")]
        lines += groups_section(tuned, "against_plain")
        lines += [
            "#### Interpolation",
            "",
            *alpha_section(tuned),
            "#### What was chosen",
            "",
            *selection_section(tuned),
        ]
        lines += ["#### Reliability", "", *reliability_section(tuned, ("plain", "all three"))]
        lines += [line for f in figures(name, tuned) for line in (f"![{f.caption}](figures/{f.file})", "")]
    if heads is not None:
        lines += [f"### Screening: {heads['level']}", "", f"{_written(heads['provenance'])}.", ""]
        lines += [*claim_sections(heads), "#### All arms, head only", "", *arms_section(heads, "against_CE")]
        lines += ["#### What was chosen, all strategies", "", *selection_section(heads)]
    return "\n".join([*lines, "### Novelty", "", *novelty_section(some)]).rstrip()


def _written(found: Mapping[str, Any]) -> str:
    """Command, date and machine."""
    return f"`{found['command']}`, {found['date'][:10]}, {found['machine']['cpu']}, {found['machine']['cores']} cores"


def _earlier(tuned: Mapping[str, Any]) -> Lines:
    """Where budgets come from that an earlier run wrote."""
    return [f"with {budget} labels {_written(found)}" for budget, found in tuned.get("earlier", {}).items()]


def forum() -> str | None:
    return study_section("forum")


def shop() -> str | None:
    return study_section("shop")


def refuted() -> str | None:
    levels = {"": "fine-tuned", "_head": "head only"}
    found = {
        f"{n}, {word}": page.result(f"study_{n}{level}") for n in ("forum", "shop") for level, word in levels.items()
    }
    results = {name: result for name, result in found.items() if result is not None}
    absent = [name for name in found if name not in results]
    return "\n".join(refuted_section(results, absent)).rstrip() if results else None


TABLES = (forum, shop, refuted)
main = page.command(PAGE, TABLES)

if __name__ == "__main__":
    main()
