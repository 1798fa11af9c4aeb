"""Fills the tables of docs/checkpoint.md from results: bundled, successor, one_recipe, model_history,
cross_encoder, recipe_steps.

    python benchmarks/bundled/tables.py [--check]

Differences are paired by query.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from page import DOCS, command, percent, result, source, table

from darl_rerank.evaluation.significance import paired_test

PAGE = DOCS / "checkpoint.md"
WEB, SHOP, MEDICAL = "trec-dl-2019", "icecat", "medquad"
SHIPS, HISTORY, RECIPE, SUCCESSOR = "bundled", "model_history", "one_recipe", "successor"
CROSS_ENCODER, STEPS = "cross_encoder", "recipe_steps"
# The training of ours on the fewest pairs, 13,973, that is any good: beside a CrossEncoder of a sample.
FIRST = "bundled_first_round_without_msmarco.json"
NAMES = {WEB: "web passages (trec-dl-2019)", SHOP: "products (Icecat)", MEDICAL: "medical answers (medquad)"}


def worth() -> str | None:
    values, successor = result(SHIPS), result(SUCCESSOR)
    if values is None or successor is None:
        return None
    rows = []
    for part in (WEB, SHOP):
        found, measured = values["ranking"][part], values["pairs"][part]["measures"]
        rows.append([
            NAMES[part], f"{found['before']:.3f}", f"{found['after']:.3f}", _difference(found["difference"]),
            f"{measured['ece']['value']:.3f}",
            "" if part == WEB else _interval(values["novelty"][part]["auroc"]), percent(values["warned of"][part]),
        ])  # fmt: skip
    found = successor["collections"].get(MEDICAL)
    order = ["", "", ""] if found is None else [
        f"{found['first stage']:.3f}", f"{found['with exits']:.3f}", _difference(found["with exits - first stage"]),
    ]  # fmt: skip
    rows.append([
        NAMES[MEDICAL], *order, "",
        _interval(values["novelty"][MEDICAL]["auroc"]), percent(values["warned of"][MEDICAL]),
    ])  # fmt: skip
    head = [
        "never trained on, never chosen by", "BM25, nDCG@10", "reranked", "difference", "ECE",
        "novelty against web, AUROC", "warned of at 95",
    ]  # fmt: skip
    mib = sum(values["bytes"].values()) / 2**20
    also = "" if found is None else f"; medquad's order: `results/{SUCCESSOR}.json`"
    return f"{table(head, rows)}\n\n{mib:.1f} MiB {source(values, SHIPS)}{also}."


def instead() -> str | None:
    ships, history = result(SHIPS), result(HISTORY)
    if ships is None or history is None:
        return None
    ours = ships["ranking"][WEB]
    by_file = {each["result file"]: each for each in history["trained"]}
    rows = [
        ["BM25", "", f"{ours['before']:.3f}", _difference(ours["difference"]), ""],
        ["darl-rerank, the model that ships", "517,240", f"{ours['after']:.3f}", "", ""],
    ]
    for other in history["cross-encoders"]:
        same = by_file[other["same pairs"]][WEB]
        rows.append([
            f"CrossEncoder of {other['what']}", f"{other['pairs']:,}", f"{other['nDCG@10']:.3f}",
            _more(ours, other), f"{same['nDCG@10']:.3f}, {_more(same, other)}",
        ])  # fmt: skip
    files, also = [SHIPS, HISTORY], ""
    if (sample := result(CROSS_ENCODER)) is not None:
        other, first = sample["collections"][WEB], by_file[FIRST][WEB]
        rows.append([
            f"CrossEncoder of {sample['base']}, from the one recipe's lists, float32", f"{sample['pairs']:,}",
            f"{other['cross-encoder']:.3f}", _more(ours, other),
            f"none; of 13,973 others {first['nDCG@10']:.3f}, {_more(first, other)}; the one recipe alone, of "
            f"{sample['pairs of the one recipe']:,}, {other['one recipe']:.3f}, "
            + _difference(other["one recipe less cross-encoder"]),
        ])  # fmt: skip
        files.append(CROSS_ENCODER)
        for name, found in sample["collections"].items():
            if name != WEB:
                also += (
                    f" On {name}, {found['queries']} queries, BM25 has {found['first stage']:.3f}, this CrossEncoder "
                    f"{found['cross-encoder']:.3f}, the one recipe alone {found['one recipe']:.3f} "
                    f"({_difference(found['one recipe less cross-encoder'])}), the one that ships {found['ships']:.3f} "
                    f"({_difference(found['ships less cross-encoder'])})."
                )
    more = ["the one that ships has more", "darl-rerank with the same pairs, and has more"]
    said = ", ".join(f"`results/{name}.json`" for name in files)
    return f"{table(['', 'pairs trained on', 'nDCG@10', *more], rows)}\n\n({said}){also}"


def tried() -> str | None:
    history, ships = result(HISTORY), result(SHIPS)
    if history is None:
        return None
    rows = []
    for each in history["trained"]:
        web, shop = each[WEB], each.get(SHOP)
        rows.append([
            each["what"], f"{web['nDCG@10']:.3f}", _difference(web["difference"]),
            "" if shop is None else f"{shop['nDCG@10']:.3f}", "" if shop is None else _difference(shop["difference"]),
        ])  # fmt: skip
    if ships is not None:
        web, shop = (ships["ranking"][part] for part in (WEB, SHOP))
        rows.append([
            "**mean of the last but one and of the one recipe, 22 layers: ships**", f"{web['after']:.3f}",
            _difference(web["difference"]), f"{shop['after']:.3f}", _difference(shop["difference"]),
        ])  # fmt: skip
    head = ["", "nDCG@10, web", "from BM25", "nDCG@10, products", "from BM25"]
    said = f"(`results/{SHIPS}.json`; `results/{HISTORY}.json`, where recipes and full results are named by commit)"
    return f"{table(head, rows)}\n\n{said}"


def teachers() -> str | None:
    history = result(HISTORY)
    if history is None:
        return None
    found = history["teachers"]
    rows = [[each["what"], f"{each['nDCG@10']:.3f}"] for each in found["views"]]
    said = f"{found['pairs']:,} graded pairs of {found['collection']} (`results/{HISTORY}.json`)"
    return f"{table(['', 'nDCG@10'], rows)}\n\n{said}"


def recipe() -> str | None:
    values = result(RECIPE)
    if values is None:
        return None
    shown = [
        "first stage",
        "ships",
        *(f"layer {layer}" for layer in values["training"]["exits"]),
        "whole",
        "scores added",
    ]
    rows = [
        [f"{name}{', test' if found['test'] else ''}", *(f"{found[key]:.3f}" for key in shown)]
        for name, found in values["collections"].items()
    ]
    facts = values["training"]
    said = f"{facts['pairs']:,} pairs in {facts['seconds']:.0f} s on one {facts['device']} (`results/{RECIPE}.json`)"
    return f"{table(['nDCG@10', *shown], rows)}\n\n{said}"


def steps() -> str | None:
    values = result(STEPS)
    if values is None:
        return None
    rows = [
        [each["step"], f"`{'`, `'.join(each['scripts'].split(', '))}`", f"{each['processor seconds']:.0f} s"]
        for each in values["steps"]
    ]
    rows.append(["", "all", f"{sum(each['processor seconds'] for each in values['steps']):.0f} s"])
    trial = " ".join(f"{name}={value}" for name, value in values["variables"].items())
    return f"{table(['step', 'script', 'of one processor'], rows)}\n\n{trial} {source(values, STEPS)}"


def successor() -> str | None:
    values = result(SUCCESSOR)
    if values is None:
        return None
    rows = [
        [
            f"{name}{', test' if found['test'] else ''}", f"{found['first stage']:.3f}", f"{found['before']:.3f}",
            f"{found['whole']:.3f}", f"{found['with exits']:.3f}", percent(found["layers run"]),
            f"{found['missed']} of {found['relevant']:,}", _difference(found["with exits - before"]),
        ]
        for name, found in values["collections"].items()
    ]  # fmt: skip
    head = [
        "nDCG@10", "BM25", "the model of 0.3", "this, no exits", "this", "layers run", "relevant documents that left",
        "this less that of 0.3",
    ]  # fmt: skip
    return f"{table(head, rows)}\n\n{source(values, SUCCESSOR)}"


def unjudged() -> str | None:
    values = result(SHIPS)
    if values is None or "judged" not in values["ranking"][WEB]:
        return None
    rows = []
    for name, found in values["ranking"].items():
        share, alone, fused = found["judged"], found["judged only"], found["fused"]
        rows.append([
            name, percent(share["before"]), percent(share["after"]), f"{alone['before']:.3f}", f"{alone['after']:.3f}",
            _difference(alone["difference"]), f"{fused['after']:.3f}", _difference(fused["difference"]),
        ])  # fmt: skip
    head = [
        "", "first ten judged: BM25", "reranked", "judged alone, nDCG@10: BM25", "reranked", "difference",
        "both fused, nDCG@10", "from BM25",
    ]  # fmt: skip
    return f"{table(head, rows)}\n\n{source(values, SHIPS)}"


def _more(ours: dict[str, Any], other: dict[str, Any]) -> str:
    test = paired_test(np.array(ours["per query"]), np.array(other["per query"]))
    return _difference([test.difference, test.low, test.high])


def _interval(value: dict[str, float]) -> str:
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def _difference(values: list[float]) -> str:
    value, low, high = values
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"


TABLES = (worth, instead, tried, teachers, recipe, steps, successor, unjudged)


if __name__ == "__main__":
    command(PAGE, TABLES)()
