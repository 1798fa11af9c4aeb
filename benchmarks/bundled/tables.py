"""Fills the tables of docs/checkpoint.md from results/bundled*.json and results/cross_encoder_*.json.

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
WEB, SHOP, MEDICAL, CHOOSES = "trec-dl-2019", "icecat", "medquad", "trec-dl-2021"
SHIPS, CALIBRATIONS = "bundled", "bundled_calibrations"
WITH = "bundled_with_msmarco"
WITHOUT, SECOND = "bundled_first_round_without_msmarco", "bundled_second_round_without_msmarco"
THIRD = "bundled_third_round_without_msmarco"
FOURTH = "bundled_fourth_round_without_msmarco"
AGAIN = "bundled_with_msmarco_fifth"
ALONE, CHOICE = "bundled_fifth_round_alone", "bundled_fifth_choice"
BEFORE, PEOPLE = "bundled_mean_as_round_four", "bundled_mean_people_alone"
SIXTH = "bundled_with_msmarco_sixth"
ROUNDS = {
    "bundled_first_training": "a first try: LoRA on 12,782 pairs without MS MARCO",
    "bundled_first_round": "with MS MARCO, round 1: all weights, 15,060 pairs",
    "bundled_third_round": "rounds 2 and 3: all weights, 12,412 pairs; its adapter, 3,394",
    WITH: "round 4: its adapter, 9,437 pairs",
    WITHOUT: "without MS MARCO, round 1: all weights, 13,973 pairs",
    SECOND: "round 2: its adapter, 18,035 pairs",
    THIRD: "round 3: its adapter, 12,317 pairs, a better encoder's labels",
    FOURTH: "round 4: its adapter, 18,759 pairs, as round 3 on further questions",
    AGAIN: "another round 5, with MS MARCO: its adapter, 11,286 pairs, the better encoder's labels",
    ALONE: "round 5: its adapter, 145,597 pairs, mostly of long lists",
    BEFORE: "the mean of rounds 4, 5, and 5 at half the rate, calibrated as round 4",
    PEOPLE: "the same, calibrated on people's grades alone",
    SHIPS: "the same, calibrated on people's grades with a ninth of soft labels (ships)",
    SIXTH: "a round 6 after it, with MS MARCO: people's grades of 40 queries' lists",
}
# What a CrossEncoder is of, and the checkpoint of darl-rerank that had the same pairs to train on.
CROSS_ENCODERS = {
    "cross_encoder_smollm2": ("SmolLM2-135M, the pairs of round 1", WITHOUT),
    "cross_encoder_minilm": ("all-MiniLM-L6-v2, the pairs of rounds 1 and 2", SECOND),
    "cross_encoder_minilm_with_msmarco": ("all-MiniLM-L6-v2, four rounds with MS MARCO", WITH),
}
WITH_AND_WITHOUT = (
    ("round 1", "bundled_first_round", WITHOUT),
    ("four rounds", WITH, FOURTH),
    ("the one without, after a round 5 of 11,286 pairs with it", AGAIN, FOURTH),
    ("the mean of rounds 4 and 5, after a round 6 on people's grades of it", SIXTH, BEFORE),
)
# What choose.py calls a checkpoint, and what it is.
CHOSEN_FROM = {
    "fourth": "round 4",
    "fifth": "round 5",
    "half_rate": "round 5 at half the learning rate",
    "with_msmarco": "the same with lists of MS MARCO among the others",
    "soup": "the mean of the first three (ships)",
}
# Which of them are compared with one another, too.
SIDE_BY_SIDE = (("soup", "fifth"), ("with_msmarco", "half_rate"))
# Below this the checkpoint trained without MS MARCO ships; set before it was trained.
WORTH_THE_LICENCE = 0.03


def size() -> str | None:
    values = result(SHIPS)
    if values is None:
        return None
    mib = sum(values["bytes"].values()) / 2**20
    return f"{mib:.1f} MiB, loaded in {values['load_seconds']:.1f} s {source(values, SHIPS)}."


def rounds() -> str | None:
    found = {name: values for name in ROUNDS if (values := result(name))}
    rows = [
        [
            ROUNDS[name],
            *(cell for part in (WEB, SHOP) for cell in _ranked(values, part)),
            *(_measured(values, measure) for measure in ("qwk", "ece")),
        ]
        for name, values in found.items()
    ]
    head = ["", "nDCG@10, web", "from BM25", "nDCG@10, products", "from BM25", "kappa, web", "ECE, web"]
    files = ", ".join(f"`results/{name}.json`" for name in found)
    if not {SHIPS, FOURTH} <= found.keys():
        return None
    gains = ", ".join(
        f"{name} {_more(*(found[which]['ranking'][part] for which in (SHIPS, FOURTH)))}"
        for name, part in (("web", WEB), ("products", SHOP))
    )
    return f"{table(head, rows)}\n\nThe one that ships from round 4, paired by query: {gains} ({files})."


def _ranked(values: dict[str, Any], part: str) -> tuple[str, str]:
    found = values["ranking"].get(part)
    return ("", "") if found is None else (f"{found['after']:.3f}", _difference(found["difference"]))


def _measured(values: dict[str, Any], measure: str) -> str:
    found = values["pairs"].get(WEB) if "pairs" in values else None
    return "" if found is None else f"{found['measures'][measure]['value']:.3f}"


def instead() -> str | None:
    ships = result(SHIPS)
    if ships is None:
        return None
    ours = ships["ranking"][WEB]
    rows = [
        ["BM25", "", f"{ours['before']:.3f}", _difference(ours["difference"]), ""],
        ["darl-rerank, the checkpoint that ships", "209,888", f"{ours['after']:.3f}", "", ""],
    ]
    if with_it := result(WITH):
        other = with_it["ranking"][WEB]
        cells = ["40,303", f"{other['after']:.3f}", _more(ours, other), ""]
        rows.append(["darl-rerank, four rounds with MS MARCO", *cells])
    for name, (base, rival) in CROSS_ENCODERS.items():
        values, same_pairs = result(name), result(rival)
        if values is None or same_pairs is None:
            rows.append([f"CrossEncoder of {base}", "", "not measured", "", ""])
            continue
        same = same_pairs["ranking"][WEB]
        rows.append([
            f"CrossEncoder of {base}", f"{values['examples']:,}", f"{values['after']:.3f}", _more(ours, values),
            f"{same['after']:.3f}, {_more(same, values)}",
        ])  # fmt: skip
    more = ["the one that ships has more", "darl-rerank with the same pairs, and has more"]
    return table(["", "pairs trained on", "nDCG@10", *more], rows)


def _more(ours: dict[str, Any], other: dict[str, Any]) -> str:
    test = paired_test(np.array(ours["per query"]), np.array(other["per query"]))
    return _difference([test.difference, test.low, test.high])


def choice() -> str | None:
    values = result(CHOICE)
    if values is None:
        return None
    on = {name: values["checkpoints"][name]["sources"][CHOOSES] for name in CHOSEN_FROM}
    rows = []
    for name, label in CHOSEN_FROM.items():
        found = on[name]
        difference = "" if name == "fourth" else _difference(found["difference"])
        rows.append([label, f"{found['nDCG@10']:.3f}", difference, f"{found['rps']:.3f}"])
    more = "; ".join(
        f"{CHOSEN_FROM[one]} less {CHOSEN_FROM[other]}: {_more(on[one], on[other])}" for one, other in SIDE_BY_SIDE
    )
    return f"{table(['', 'nDCG@10', 'difference', 'RPS'], rows)}\n\nPaired: {more} {source(values, CHOICE)}."


def msmarco() -> str | None:
    rows, most = [], -1.0
    for label, *names in WITH_AND_WITHOUT:
        with_it, without = map(result, names)
        if with_it is None or without is None:
            return None
        first, second = with_it["ranking"][WEB], without["ranking"][WEB]
        test = paired_test(np.array(first["per query"]), np.array(second["per query"]))
        most = max(most, test.difference)
        difference = _difference([test.difference, test.low, test.high])
        rows.append([label, f"{first['after']:.3f}", f"{second['after']:.3f}", difference])
    ruling = "One reaches" if most >= WORTH_THE_LICENCE else "All stay below"
    head = ["nDCG@10, web", "with MS MARCO", "without", "difference"]
    files = ", ".join(dict.fromkeys(f"`results/{name}.json`" for _, *names in WITH_AND_WITHOUT for name in names))
    return f"{table(head, rows)}\n\n{ruling} the {WORTH_THE_LICENCE} at which its licence was to be worth it ({files})."


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


def novelty() -> str | None:
    rows = []
    for name, label in ((BEFORE, "known: what was trained on"), (SHIPS, "and half of trec-dl-2021's queries (ships)")):
        values = result(name)
        if values is None or "warned of" not in values:
            return None
        rows.append([
            label, *(_interval(values["novelty"][part]["auroc"]) for part in (SHOP, MEDICAL)),
            *(percent(values["warned of"][part]) for part in (WEB, SHOP, MEDICAL)),
        ])  # fmt: skip
    head = ["", "AUROC, products", "AUROC, medical", "warned of: web", "products", "medical"]
    return f"{table(head, rows)}\n\n(`results/{BEFORE}.json`, `results/{SHIPS}.json`)"


def _interval(value: dict[str, float]) -> str:
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def calibrations() -> str | None:
    values = result(CALIBRATIONS)
    if values is None:
        return None
    measures = ("nll", "rps", "ece", "confidence", "accuracy", "divergence of soft labels")
    rows = [
        [name, *(f"{found[measure]:.3f}" for measure in measures)] for name, found in values["calibrations"].items()
    ]
    head = ["fitted", "NLL", "RPS", "ECE", "mean confidence", "accuracy", "other collections: KL"]
    return f"{table(head, rows)}\n\n{values['pairs']:,} pairs {source(values, CALIBRATIONS)}"


def _difference(values: list[float]) -> str:
    value, low, high = values
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"


TABLES = (size, rounds, novelty, calibrations, choice, instead, msmarco, unjudged)


if __name__ == "__main__":
    command(PAGE, TABLES)()
