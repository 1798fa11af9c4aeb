"""What a label of the tail is worth to the model that ships: probabilities on the tail, by how pairs were chosen.

    python benchmarks/study/tail_calibration.py SCORES

SCORES is benchmarks/scores.py's folder: what the checkpoint says of first stages' lists. A pool of judged pairs is of
web passages (trec-dl-2021) but for a share of 2, 5, 10 or 30 % of products (Icecat) or films (msrd), of half of their
queries. 100 or 250 pairs are labelled, at most ten of a query: at random, the most novel ones (the novelty that
`rerank` gives), those past the 95th percentile at random, the tail's first ("oracle"), or those in DASA's
band at random.

The labels of novel pairs, those past the 95th percentile, then make a calibration of their own for such traffic, as
`darl-rerank calibrate --bias` would, if there are 25 and they determine one. Pairs that are not novel, and all pairs
where there is no such calibration, keep the checkpoint's. Measured on the other half of the tail's queries; nothing
that ships is fitted or chosen by it. Writes results/study_tail_calibration.json.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from provenance import write_result

from darl_rerank import Checkpoint
from darl_rerank.evaluation.bootstrap import draw_values
from darl_rerank.evaluation.pairs import measures_of
from darl_rerank.model.calibration import Calibration
from darl_rerank.model.shipped import DEFAULT
from darl_rerank.training.model.temperature import determined_calibration
from darl_rerank.training.selection.coverage import QueryCap, take_in_order
from study.measured import Run, difference

WEB, TAILS = "trec-dl-2021", {"products": "icecat", "films": "msrd"}
SHARES, BUDGETS, STRATEGIES = (
    (0.02, 0.05, 0.10, 0.30),
    (100, 250),
    ("random", "most novel", "novel, at random", "oracle", "in the band"),
)
POOL, PER_QUERY, SEEDS, NOVEL, FEWEST, RESAMPLES = 2000, 10, 6, 95.0, 25, 300
BAND = (80.0, 99.5)
MEASURES = ("nll", "ece", "rps", "qwk", "ndcg@10")


@dataclass(frozen=True, slots=True)
class Pairs:
    """Judged pairs: logits (n, K), grades (n,), novelty (n,), queries (n,)."""

    logits: NDArray[np.float64]
    grades: NDArray[np.intp]
    novelty: NDArray[np.float64]
    queries: NDArray[np.intp]

    def at(self, rows: NDArray[Any]) -> Pairs:
        return Pairs(self.logits[rows], self.grades[rows], self.novelty[rows], self.queries[rows])


@click.command(help=__doc__)
@click.argument("scores", type=click.Path(exists=True, path_type=Path))
def main(scores: Path) -> None:
    checkpoint = Checkpoint.load(DEFAULT)
    web = read(scores, WEB)
    rows, facts = [], {}
    for tail, name in TAILS.items():
        both = read(scores, name)
        half = np.isin(both.queries, np.random.default_rng(0).permutation(np.unique(both.queries))[::2])
        pool, test = both.at(half), both.at(~half)
        facts[tail] = {
            "pool": len(pool.grades), "test": len(test.grades), "test queries": len(np.unique(test.queries)),
            "novel": {WEB: float((web.novelty >= NOVEL).mean()), name: float((both.novelty >= NOVEL).mean())},
            "above the band": {each: float((p.novelty > BAND[1]).mean()) for each, p in ((WEB, web), (name, both))},
            "grades": {each: np.bincount(p.grades, minlength=4).tolist() for each, p in ((WEB, web), (name, both))},
        }  # fmt: skip
        ships = measured(test, checkpoint.calibration, checkpoint)
        facts[tail]["as it ships"] = ships.facts["values"]
        for share in SHARES:
            for budget in BUDGETS:
                rows.append(compared(tail, share, budget, web, pool, test, checkpoint, ships))
                click.echo(f"{tail} {share:.0%} {budget}: {summary(rows[-1])}")
    write_result(
        "study_tail_calibration",
        {"pool": POOL, "per query": PER_QUERY, "seeds": SEEDS, "novel": NOVEL, "tails": facts, "rows": rows},
    )


def read(scores: Path, name: str) -> Pairs:
    """Judged pairs of a collection; a relevant film counts as relevant."""
    logits, grades, novelty, queries = [], [], [], []
    with (scores / f"{name}.scores.jsonl").open() as stream:
        for number, row in enumerate(map(json.loads, stream)):
            for place, grade in enumerate(row["grades"]):
                if grade is not None and grade >= 0:
                    logits.append(row["logits"][place])
                    grades.append(2 * grade if name == TAILS["films"] else grade)
                    novelty.append(row["novelty"][place])
                    queries.append(number)
    return Pairs(np.array(logits), np.array(grades, np.intp), np.array(novelty), np.array(queries, np.intp))


def compared(
    tail: str, share: float, budget: int, web: Pairs, pool: Pairs, test: Pairs, checkpoint: Checkpoint, ships: Run
) -> dict[str, Any]:
    """Each strategy at a share and a budget: what was found, and the measures less those of a random choice."""
    runs: dict[str, list[Run]] = {strategy: [] for strategy in STRATEGIES}
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        of_tail = rng.permutation(len(pool.grades))[: round(share * POOL)]
        of_web = rng.permutation(len(web.grades))[: POOL - len(of_tail)]
        parts = (pool.at(of_tail), web.at(of_web))
        mixed = Pairs(*(np.concatenate([getattr(p, f) for p in parts]) for f in ("logits", "grades", "novelty")),
                      np.concatenate([parts[0].queries, parts[1].queries + 10**6]))  # fmt: skip
        is_tail = np.arange(POOL) < len(of_tail)
        for strategy in STRATEGIES:
            key = {"random": np.zeros(POOL), "most novel": -mixed.novelty, "novel, at random": mixed.novelty < NOVEL,
                   "in the band": (mixed.novelty < BAND[0]) | (mixed.novelty > BAND[1]),
                   "oracle": ~is_tail}[strategy]  # fmt: skip
            order = rng.permutation(POOL)
            order = order[np.argsort(key[order], kind="stable")]
            chosen = take_in_order(order, budget, QueryCap(mixed.queries, PER_QUERY))
            labels = mixed.at(chosen[mixed.novelty[chosen] >= NOVEL])
            own = fitted(labels, checkpoint)
            run = measured(test, own, checkpoint)
            run.facts.update({"tail": int(is_tail[chosen].sum()), "fitted": own is not checkpoint.calibration})
            runs[strategy].append(run)
    found: dict[str, Any] = {"tail": tail, "share": share, "budget": budget}
    for strategy, own_runs in runs.items():
        found[strategy] = {
            "tail labels": float(np.mean([run.facts["tail"] for run in own_runs])),
            "fitted": float(np.mean([run.facts["fitted"] for run in own_runs])),
            "values": {m: float(np.mean([run.value(m) for run in own_runs])) for m in MEASURES},
            "less random": {m: difference(own_runs, runs["random"], m)[0].to_dict() for m in MEASURES},
            "less as it ships": {m: difference(own_runs, [ships] * SEEDS, m)[0].to_dict() for m in MEASURES},
        }
    return found


def fitted(labels: Pairs, checkpoint: Checkpoint) -> Calibration:
    """Temperature and biases, or as much of them as these labels determine."""
    if len(labels.grades) < FEWEST:
        return checkpoint.calibration
    return determined_calibration(
        labels.logits, labels.grades, labels.novelty, weights=np.ones(len(labels.grades)), with_novelty=False,
        with_bias=True, earlier=checkpoint.calibration,
    ).calibration  # fmt: skip


def measured(test: Pairs, calibration: Calibration, checkpoint: Checkpoint) -> Run:
    own, ships = (c.probabilities(test.logits, test.novelty) for c in (calibration, checkpoint.calibration))
    probabilities = np.where((test.novelty >= NOVEL)[:, None], own, ships)
    all_ = measures_of(test.grades, probabilities, checkpoint.scale.gains, test.queries)
    measures = {name: all_[name] for name in MEASURES}
    once = np.ones((1, len(test.grades)))
    draws = draw_values(measures, test.queries, resamples=RESAMPLES)
    return Run({"values": {name: float(measures[name](once)[0]) for name in MEASURES}}, draws)


def summary(row: dict[str, Any]) -> str:
    return "; ".join(
        f"{name} {row[name]['tail labels']:.0f}, nll {gap['value']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}]"
        for name in STRATEGIES
        for gap in (row[name]["less random"]["nll"],)
    )


if __name__ == "__main__":
    main()
