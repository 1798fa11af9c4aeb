"""Fills the tables of docs/novelty.md from results/bundled.json, drift.json, novelty_layers.json, novelty_trained.json.

python benchmarks/novelty_tables.py [--check]
"""

from __future__ import annotations

from page import DOCS, command, percent, result, source, table

PAGE = DOCS / "novelty.md"
AWAY = {"semeval-cqa-dev": "forum", "product-questions": "products", "msrd": "films"}
NEW = ("msmarco-sample", "natural-questions", "wiki-qa-mix", "selqa")


def tests() -> str | None:
    values, drift = result("bundled"), result("drift")
    if values is None or drift is None:
        return None
    rows = []
    for name, what in (("medquad", "medical answers (medquad)"), ("icecat", "products (Icecat)")):
        lists = drift["collections"][name]["lists from web"]
        rows.append([
            what, _interval(values["novelty"][name]["auroc"]), percent(values["warned of"][name]), _interval(lists),
        ])  # fmt: skip
    web = values["novelty reference"]
    rows.append([f"web passages ({web})", "", percent(values["warned of"][web]), ""])
    head = ["", "AUROC of a pair, against web passages", "above 95", "AUROC of a list's mean"]
    return f"{table(head, rows)}\n\n{source(values, 'bundled')}, lists: `results/drift.json`"


def _interval(found: dict[str, float]) -> str:
    return f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def layers() -> str | None:
    values = result("novelty_layers")
    if values is None:
        return None
    rows = [
        [
            row["way"], row["layer"], *(f"{row['away'][name]['auroc']:.3f}" for name in AWAY),
            *(percent(row["new"][name]["warned"]) for name in NEW),
        ]
        for row in values["rows"]
    ]  # fmt: skip
    head = ["states", "layer", *(f"{name}, AUROC" for name in AWAY.values()), *(f"{name} warned of" for name in NEW)]
    pairs = sum(values["pairs"].values())
    return f"{table(head, rows)}\n\n{pairs:,} pairs {source(values, 'novelty_layers')}."


def trained() -> str | None:
    values = result("novelty_trained")
    if values is None:
        return None
    told = {
        ("forum", "forum/away | home"): "other topics of a forum, from its own",
        ("home", "forum/away | trec-dl-2021"): "forum from web",
        ("wikipedia", "product-questions/train | trec-dl-2021"): "products from web",
        ("wikipedia", "product-questions/train | home"): "products from questions",
    }
    states = {"1/0/0": "mean of both", "0/1/0": "last token", "0.5/1/0": "half the mean, last token"}
    rows = []
    for parts, name in states.items():
        key = f"parts {parts}, 128 dimensions"
        found = [values["tables"][question][key]["novelty"][pair]["auroc"] for question, pair in told]
        rows.append([name, *(f"{value:.3f}" for value in found)])
    pairs = sum(values["pairs"].values())
    head = ["states", *(f"{name}, AUROC" for name in told.values())]
    return f"{table(head, rows)}\n\n{pairs:,} pairs, layer {values['layer']} {source(values, 'novelty_trained')}."


TABLES = (tests, layers, trained)


if __name__ == "__main__":
    command(PAGE, TABLES)()
