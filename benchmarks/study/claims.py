"""The four claims as comparisons of arms, and the word each comparison earns. No word is written by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from darl_rerank.evaluation.bootstrap import Interval
from darl_rerank.evaluation.significance import holm

from .measured import ID, OOD, Run, better_sign, difference
from .settings import MARGIN

# With fewer, an interval says next to nothing of how much hangs on the seed, and the verdict says so.
_FEW_SEEDS = 3
HOLDS, REFUTED, NOT_MEASURED = "holds", "refuted", "not measured"


@dataclass(frozen=True, slots=True)
class Part:
    """One thing a claim says.

    Attributes:
        group: "ID" or "OOD".
        measure: a name of `measures_of`.
        kind: "better", or "no worse" (by at most `MARGIN`).
    """

    group: str
    measure: str
    kind: str


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim of the method: `second` against `first` at an equal label budget."""

    name: str
    text: str
    first: str
    second: str
    parts: tuple[Part, ...]


_OCC = (
    Part(ID, "qwk", "better"),
    Part(OOD, "qwk", "better"),
    Part(ID, "mass_above", "better"),
    Part(OOD, "mass_above", "better"),
    Part(ID, "ndcg@10", "no worse"),
    Part(OOD, "ndcg@10", "no worse"),
)
_ROBUST = (
    Part(OOD, "ndcg@10", "better"),
    Part(OOD, "qwk", "better"),
    Part(ID, "ndcg@10", "no worse"),
    Part(ID, "qwk", "no worse"),
)
TUNED_CLAIMS = (
    Claim("a", "OCC against CE: better QWK, less mass above the true grade, nDCG no worse", "plain", "OCC", _OCC),
    Claim("b", "DASA selection against random selection: better OOD, ID no worse", "plain", "DASA", _ROBUST),
    Claim(
        "c", "LPFT with interpolation against plain fine-tuning: better OOD, ID no worse",
        "plain", "LPFT + interpolation", _ROBUST,
    ),
    Claim(
        "d", "all three against plain fine-tuning on randomly chosen labels: better OOD, ID no worse",
        "plain", "all three", _ROBUST,
    ),
)  # fmt: skip
HEAD_CLAIMS = (
    Claim("a", "OCC against CE, head only", "CE", "OCC", _OCC),
    Claim("b", "DASA selection against random selection, head only", "CE", "CE, dasa", _ROBUST),
    Claim("d", "OCC with DASA against CE with random selection, head only", "CE", "OCC, dasa", _ROBUST),
)


def verdict(part: Part, found: Interval) -> str:
    """What the interval of `second` less `first` says of a part."""
    if not (found.low == found.low and found.high == found.high):
        return NOT_MEASURED
    low, high = sorted(better_sign(part.measure) * end for end in (found.low, found.high))
    if part.kind == "better":
        if low > 0:
            return HOLDS
        return REFUTED if high < 0 else "not shown: interval covers zero"
    if low >= -MARGIN:
        return HOLDS
    return REFUTED if high < 0 else f"not shown: interval reaches beyond −{MARGIN}"


def overall(verdicts: Sequence[str]) -> str:
    """One word for a claim from those of its parts: it holds if all do, and is refuted if one is."""
    held = sum(found == HOLDS for found in verdicts)
    if not verdicts or NOT_MEASURED in verdicts:
        return NOT_MEASURED
    if held == len(verdicts):
        return HOLDS
    if REFUTED in verdicts:
        return f"{REFUTED} ({verdicts.count(REFUTED)} of {len(verdicts)} parts; {held} hold)"
    return f"not shown ({held} of {len(verdicts)} parts hold)"


def judge(claim: Claim, arms: Mapping[tuple[str, int], Mapping[int, Run]], budget: int) -> dict[str, Any]:
    """The claim at a budget, from all seeds that both of its arms have; JSON types."""
    first, second = (arms.get((name, budget), {}) for name in (claim.first, claim.second))
    seeds = sorted(first.keys() & second.keys())
    result: dict[str, Any] = {
        "claim": claim.text, "first": claim.first, "second": claim.second, "budget": budget, "seeds": seeds, "parts": []
    }  # fmt: skip
    for part in claim.parts if seeds else ():
        found, p_value, each = difference(
            [second[s] for s in seeds], [first[s] for s in seeds], f"{part.group}/{part.measure}"
        )
        result["parts"].append({
            "group": part.group, "measure": part.measure, "kind": part.kind, **found.to_dict(), "p": p_value,
            "each_seed": each, "verdict": verdict(part, found),
        })  # fmt: skip
    for part, corrected in zip(result["parts"], holm([p["p"] for p in result["parts"]]), strict=True):
        part["p_holm"] = corrected
    result["verdict"] = overall([part["verdict"] for part in result["parts"]])
    if seeds and len(seeds) < _FEW_SEEDS:
        result["verdict"] += f", {len(seeds)} seed{'s' if len(seeds) > 1 else ''} only"
    return result


def compare_all(
    arms: Mapping[tuple[str, int], Mapping[int, Run]], base: str, budget: int, measures: Sequence[str]
) -> dict[str, Any]:
    """Every arm of a budget less `base`, on ID, OOD and each part of OOD, with intervals; JSON types."""
    first = arms.get((base, budget), {})
    groups = dict.fromkeys(key.partition("/")[0] for run in first.values() for key in run.draws)
    found: dict[str, Any] = {}
    for (name, own), second in arms.items():
        seeds = sorted(first.keys() & second.keys())
        if own != budget or name == base or not seeds:
            continue
        found[name] = {
            f"{group}/{measure}": {**gap.to_dict(), "p": p_value}
            for group in groups
            for measure in measures
            for gap, p_value, _ in [
                difference([second[s] for s in seeds], [first[s] for s in seeds], f"{group}/{measure}")
            ]
        }
    return found
