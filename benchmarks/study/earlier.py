"""What an earlier result of a study holds and the work folder doesn't: a new file must not lose it.

Work folders are large and stay on one machine; results are kept. A budget's arms are compared with one another alone,
so each budget is taken whole from one of the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def with_earlier(values: Mapping[str, Any], earlier: Mapping[str, Any] | None) -> dict[str, Any]:
    """A result of fine-tuned arms with the budgets of which `earlier`, on equal terms, has more runs.

    Equal terms are the same pairs and the same settings. "earlier" then says, by budget, where those come from: the
    provenance they were written with.
    """
    merged = {**values, "earlier": {}}
    if earlier is None or any(earlier[key] != values[key] for key in ("level", "settings", "data")):
        return merged
    for budget in values["settings"]["budgets"]:
        if _runs(earlier, budget) > _runs(values, budget):
            key = str(budget)
            for part in ("arms", "missing"):
                others = [entry for entry in merged[part] if entry["budget"] != budget]
                merged[part] = [*others, *(entry for entry in earlier[part] if entry["budget"] == budget)]
            for part in ("claims", "against_plain"):
                merged[part] = {**merged[part], key: earlier[part][key]}
            merged["earlier"] = {**merged["earlier"], key: earlier.get("earlier", {}).get(key, earlier["provenance"])}
    merged["arms"] = sorted(merged["arms"], key=lambda arm: values["settings"]["budgets"].index(arm["budget"]))
    return merged


def _runs(result: Mapping[str, Any], budget: int) -> int:
    return sum(len(arm["seeds"]) for arm in result["arms"] if arm["budget"] == budget)
