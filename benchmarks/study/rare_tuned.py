"""Fine-tuned arms where shift is rare: a few strategies at some shares and budgets.

    python benchmarks/study/rare_tuned.py DATA --work WORK --study shop --shares 0.1 --budgets 100

LoRA of the last layers with cross-entropy, as the study's plain arms (`tuned.py`), on the pools of `rare.py`, from the
model that ships or from its base. Every training is kept in WORK and goes on where it was stopped. Writes
results/study_STUDY_rare_tuned.json, or study_STUDY_rare_tuned_base.json.
"""

from __future__ import annotations

import argparse
import sys
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from provenance import write_result

from study.chosen import Seed, prepare_pool
from study.claims import Claim, judge
from study.collections_by_role import Rows
from study.measured import ID, OOD, Run, difference, tests_of
from study.rare import MEASURES, PARTS, SIZES, load, model_of, pool_with, starting_point, tunable_states
from study.settings import STUDIES
from study.tried import SELECTORS, first_of, pool_of
from study.tuned import Arm, Training, Tuner

STRATEGIES = ("dasa", "uncertainty", "oracle")


class RareTuner(Tuner):
    """`Tuner` that also knows the strategies of `tried.py` which need no head."""

    def _choose(self, strategy: str, budget: int, number: int) -> tuple[Rows, dict[str, Any]]:
        if strategy not in SELECTORS:
            return super()._choose(strategy, budget, number)
        pool = pool_of(self.seed_of(number), self.data, self.states, [])
        rows = first_of(SELECTORS[strategy](pool), pool, budget, self.study)
        home = float(np.isin(rows, self.data.roles["home"]).mean())
        return rows, {"strategy": strategy, "budget": budget, "pairs": len(rows), "home_share": home}


def arm_of(strategy: str) -> Arm:
    return Arm(strategy, (Training("ce", strategy, probe=False),))


def compared(runs: dict[str, dict[int, Run]], budget: int) -> list[dict[str, Any]]:
    """Each strategy against a random choice: differences, the verdict of claim (b), and what was chosen."""
    found = []
    arms = {(name, budget): by_seed for name, by_seed in runs.items()}
    for strategy in runs:
        claim = Claim("b", f"{strategy} against random: better OOD, ID no worse", "random", strategy, PARTS)
        second, first = ([runs[name][seed] for seed in sorted(runs[name])] for name in (strategy, "random"))
        found.append({
            "strategy": strategy, "budget": budget,
            "values": {key: float(np.mean([run.value(key) for run in second])) for key in second[0].draws},
            "chosen_ood": [1 - run.facts["selection"]["home_share"] for run in second],
            "against_random": {
                f"{group}/{name}": difference(second, first, f"{group}/{name}")[0].to_dict()
                for group in (ID, OOD)
                for name in MEASURES
            },
            "verdict": None if strategy == "random" else judge(claim, arms, budget)["verdict"],
        })  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--study", choices=sorted(STUDIES), default="shop")
    parser.add_argument("--start", choices=["shipped", "base"], default="shipped", help="what is fine-tuned")
    parser.add_argument("--size", choices=sorted(SIZES), default="small")
    parser.add_argument("--shares", nargs="+", type=float, default=[0.1])
    parser.add_argument("--budgets", nargs="+", type=int, default=[100])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=STRATEGIES, help="beside random")
    arguments = parser.parse_args()
    size = SIZES[arguments.size]
    study, untrained, data = load(arguments.study, arguments.data, arguments.work, size)
    model = model_of(arguments.start, study)
    states = tunable_states(model, study, data, arguments.work)
    # The study's grades, which may be fewer than those of the model that ships.
    checkpoint = model.replace(scale=untrained.scale, head=starting_point(arguments.start, untrained).head)
    tests = tests_of(data, study)

    def tuner_at(share: float) -> RareTuner:
        @cache
        def seed_of(number: int) -> Seed:
            sets = pool_with(data, study, number, share, size.pool)
            return prepare_pool(sets, data, study, states, checkpoint, number)

        folder = arguments.work / "rare-tuned" / f"{data.digest}-{share:g}"
        return RareTuner(study, data, tests, states, checkpoint, folder, seed_of)

    rows = []
    for share, budget in product(arguments.shares, arguments.budgets):
        tuner = tuner_at(share)
        runs: dict[str, dict[int, Run]] = {strategy: {} for strategy in ("random", *arguments.strategies)}
        for number in range(arguments.seeds):
            for strategy, own in runs.items():
                print(f"{share:.0%}, {budget} labels, {strategy}, seed {number}", file=sys.stderr, flush=True)
                own[number] = tuner.run(arm_of(strategy), budget, number)
        rows += [{"share": share, **row} for row in compared(runs, budget)]
    write_result(
        f"study_{study.name}_rare_tuned" + ("" if arguments.start == "shipped" else "_base"),
        {
            "level": f"LoRA fine-tuning of the last {study.layers} layers", "start": arguments.start,
            "title": study.title, "pool": size.pool, "seeds": arguments.seeds, "settings": study.facts(),
            "data": data.table(), "rows": rows,
        },
        argv=sys.argv,
    )  # fmt: skip


if __name__ == "__main__":
    main()
