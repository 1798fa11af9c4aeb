"""Fills the tables of docs/scores.md from the results that each is named after."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from page import DOCS, command, percent, result, table

PAGE = DOCS / "scores.md"
WAYS = ("first stage", "model", "reciprocal ranks", "auto", "auto, places only")


def _interval(value: Mapping[str, Any], digits: int = 3) -> str:
    return f"{value['value']:.{digits}f} [{value['low']:.{digits}f}, {value['high']:.{digits}f}]"


def _source(name: str, values: Mapping[str, Any]) -> str:
    at = values["provenance"]
    of = f"({at['date'][:10]}, commit {at['commit'][:7]}; `results/{name}.json`)"
    return f"Intervals are of a bootstrap over queries {of}."


def grades() -> str | None:
    values = result("decisions")
    if values is None:
        return None
    rows = []
    for collection, found in values["collections"].items():
        for way, row in found["grades"].items():
            rows.append([
                f"{collection} ({found['role']})", way, _interval(row["kappa"]), _interval(row["macro_f1"]),
                " ".join(map(str, row["shares"])),
            ])  # fmt: skip
    head = ["collection", "grades by", "kappa", "macro-F1", "pairs given each grade, lowest first"]
    return f"{table(head, rows)}\n\n{_source('decisions', values)}"


def confusion() -> str | None:
    values = result("decisions")
    if values is None:
        return None
    names = ("irrelevant", "related", "relevant", "perfect")
    parts = []
    for collection in ("trec-dl-2019", "icecat"):
        ways = values["collections"][collection]["grades"]
        before, after = ways["most probable grade"]["confusion"], ways["cut points (ships)"]["confusion"]
        rows = [
            [f"{collection}: people said {name}", *(f"{b} → {a}" for b, a in zip(before[i], after[i], strict=True))]
            for i, name in enumerate(names)
        ]
        parts += rows
    return table(["most probable grade → cut points", *names], parts)


def cuts() -> str | None:
    values = result("cuts")
    if values is None:
        return None
    rows = []
    for text, row in values["cuts"].items():
        halves = row["halves"]
        elsewhere = [
            f"{_interval(found['risk'])}, kept {percent(found['kept'])}, warns {percent(found['warned'])}"
            for found in row.get("elsewhere", {}).values()
        ]
        rows.append([
            text, f"{row['alpha']:.1f}", f"{halves['mean risk']:.3f}", percent(halves["splits above alpha"]),
            percent(halves["kept"]), *elsewhere,
        ])  # fmt: skip
    head = ["cut", "α", "mean risk", "splits above α", "kept", "trec-dl-2019: risk", "Icecat: risk"]
    return f"{table(head, rows)}\n\n{_source('cuts', values)}"


def fusion() -> str | None:
    values = result("fusion")
    if values is None:
        return None
    rows = []
    for name, row in values["sets"].items():
        measured = row["nDCG@10"]
        changes = [
            "{difference:+.3f} [{low:+.3f}, {high:+.3f}]".format(**row["differences"][f"auto - {other}"])
            for other in ("first stage", "model")
        ]
        rows.append([
            f"{name} ({row['role']})", f"{row['novelty']:.0f}",
            *(f"{measured[way]:.3f}" for way in WAYS),
            *changes,
        ])  # fmt: skip
    head = [
        "collection, first stage", "novelty", *WAYS, "auto − first stage", "auto − model",
    ]  # fmt: skip
    return f"{table(head, rows)}\n\n{_source('fusion', values)}"


def embeddings() -> str | None:
    values = result("embeddings")
    if values is None:
        return None
    ways = ("BM25", "model", "cosine", "cosine and model", "cosine and model, reciprocal ranks")
    rows = []
    for name, row in values["sets"].items():
        changes = [
            "{difference:+.3f} [{low:+.3f}, {high:+.3f}]".format(**row["differences"][f"cosine and model - {other}"])
            for other in ("model", "cosine")
        ]
        rows.append([f"{name} ({row['role']})", *(f"{row['nDCG@10'][way]:.3f}" for way in ways), *changes])
    head = ["collection, embeddings", *ways[:3], "auto", "reciprocal ranks", "auto − model", "auto − cosine"]
    return f"{table(head, rows)}\n\n{_source('embeddings', values)}"


def drift() -> str | None:
    values = result("drift")
    if values is None:
        return None
    rows = [
        [
            f"{name} ({'home' if row['home'] else 'away'})", row["queries"], f"{row['mean_novelty']:.0f}",
            percent(row["above_95"]), f"{row['distance']:.3f}", f"{row['p_value']:.2g}",
            "yes" if row["drifted"] else "no",
        ]
        for name, row in values["collections"].items()
    ]  # fmt: skip
    head = ["collection", "queries", "mean novelty", "above 95", "distance", "p", "drifted"]
    return table(head, rows)


TABLES = (grades, confusion, cuts, fusion, embeddings, drift)


if __name__ == "__main__":
    command(PAGE, TABLES)()
