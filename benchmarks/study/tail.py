"""What labels of the tail are worth, and to what: learning curves of a head and of a calibration on OOD labels alone.

    python benchmarks/study/tail.py DATA --work WORK --study shop --features shipped

`rare.py` finds that not even `oracle`, which is told which pairs are OOD, makes a better head. Here every arm has the
same ID pairs, and beside them 0, 5, 10, 25, 50, 100 … labels of the tail and of nothing else, drawn query by query:

- "head": trained on both;  "head, stopped by the tail": the pairs that decide when to stop are of both kinds, too;
- "head, tail weighted": the tail's labels weigh as much as all ID ones, and stopping is by both kinds;
- "calibration": the ID head stays as it is, temperature and biases of the grades are fitted on the tail's labels, as
  `darl-rerank calibrate --bias` does.

In the web-to-shop study also with labels of films alone, which is the one collection that pool and test share. Heads
are calibrated by a temperature on held-out ID pairs, which is what one has who does not look at the tail. Measured on
the tail's test queries, each collection by itself. Writes results/study_STUDY_tail.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from provenance import write_result

from darl_rerank.evaluation.bootstrap import draw_values
from darl_rerank.evaluation.pairs import measures_of
from darl_rerank.model.calibration import Calibration
from darl_rerank.model.checkpoint import Checkpoint
from darl_rerank.model.head import Head
from darl_rerank.training.loop.probe import fit_probe
from darl_rerank.training.model.temperature import determined_calibration, fit_calibration
from study.chosen import probe_set
from study.collections_by_role import Collections, Rows, seed_sets
from study.measured import Run, Tests, difference, tests_of
from study.rare import SIZES, load, starting_point, states_of
from study.settings import STUDIES, Study
from study.states import BaseStates

COUNTS = (10, 25, 50, 100, 250, 1000)
SEEDS = 6
MEASURES = ("ndcg@10", "qwk", "rps", "nll", "ece")
FILMS = "msrd"


@dataclass(frozen=True, slots=True)
class Setting:
    """What all arms share."""

    study: Study
    data: Collections
    states: BaseStates
    checkpoint: Checkpoint
    tests: Tests

    def trained(self, rows: Rows, stop: Rows, seed: int, weights: NDArray[np.float32] | None = None) -> Head:
        return fit_probe(
            self.checkpoint.head, *probe_set(self.data, self.states, rows), probe_set(self.data, self.states, stop),
            self.checkpoint.scale.gains, loss="ce", seed=seed, weights=weights, progress=False,
        ).head  # fmt: skip

    def logits(self, head: Head, rows: Rows) -> NDArray[np.float64]:
        return self.states.finals[rows].astype(np.float64) @ head.weight.T.astype(np.float64) + head.bias


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--study", choices=sorted(STUDIES), default="shop")
    parser.add_argument("--features", nargs="+", choices=["base", "shipped"], default=["shipped"])
    parser.add_argument("--size", choices=sorted(SIZES), default="small")
    arguments = parser.parse_args()
    study, checkpoint, data = load(arguments.study, arguments.data, arguments.work, SIZES[arguments.size])
    found = {}
    for kind in arguments.features:
        setting = Setting(
            study, data, states_of(kind, study, data, arguments.work), starting_point(kind, checkpoint),
            tests_of(data, study),
        )  # fmt: skip
        runs: dict[tuple[str, int], list[Run]] = {}
        for seed in tqdm(range(SEEDS), desc=kind, unit="seed"):
            for name, count, run in arms(setting, seed):
                runs.setdefault((name, count), []).append(run)
        found[kind] = [described(name, count, runs) for name, count in runs]
    write_result(
        f"study_{study.name}_tail",
        {
            "title": study.title, "seeds": SEEDS, "size": arguments.size, "home_pairs": study.home_pairs,
            "data": data.table(), "rows": found,
        },
        argv=sys.argv,
    )  # fmt: skip


def arms(setting: Setting, seed: int) -> Iterator[tuple[str, int, Run]]:
    """Every arm with its number of the tail's labels."""
    data, roles = setting.data, setting.data.roles
    train = seed_sets(data, setting.study, seed).train
    first = setting.trained(train, roles["home_dev"], seed)
    yield "head", 0, measured(setting, first, at_home(setting, first))
    tail = drawn_by_query(data, roles["pool"], seed)
    films = tail[[data.pairs[row].group == FILMS for row in tail.tolist()]]
    for part, of in ((tail, ""), (films, ", films only")):
        for count in (count for count in COUNTS if count <= len(part)):
            more = np.sort(part[:count])
            for name, own in (heads if not of else few_heads)(setting, train, more, seed):
                yield name + of, count, measured(setting, own, at_home(setting, own))
            calibration = determined_calibration(
                setting.logits(first, more), data.targets[more], np.zeros(count), weights=np.ones(count),
                with_novelty=False, with_bias=True, earlier=at_home(setting, first),
            ).calibration  # fmt: skip
            yield "calibration" + of, count, measured(setting, first, calibration)


def few_heads(setting: Setting, train: Rows, more: Rows, seed: int) -> Iterator[tuple[str, Head]]:
    yield "head", setting.trained(np.concatenate([train, more]), setting.data.roles["home_dev"], seed)


def heads(setting: Setting, train: Rows, more: Rows, seed: int) -> Iterator[tuple[str, Head]]:
    yield from few_heads(setting, train, more, seed)
    rows, roles = np.concatenate([train, more]), setting.data.roles
    both = np.concatenate([roles["home_dev"], roles["away_dev"]])
    weights = np.r_[np.ones(len(train)), np.full(len(more), len(train) / len(more))].astype(np.float32)
    yield "head, stopped by the tail", setting.trained(rows, both, seed)
    yield "head, tail weighted", setting.trained(rows, both, seed, weights / weights.mean())


def drawn_by_query(data: Collections, rows: Rows, seed: int) -> Rows:
    """All rows, query by query in a random order."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(np.unique(data.queries[rows]))
    place = {query: i for i, query in enumerate(order.tolist())}
    return np.array(sorted(rows.tolist(), key=lambda row: (place[int(data.queries[row])], row)), dtype=np.intp)


def at_home(setting: Setting, head: Head) -> Calibration:
    """A temperature on held-out ID pairs."""
    home = setting.data.roles["home_dev"]
    return fit_calibration(setting.logits(head, home), setting.data.targets[home]).calibration


def measured(setting: Setting, head: Head, calibration: Calibration) -> Run:
    tests, gains = setting.tests, setting.checkpoint.scale.gains
    probabilities = calibration.probabilities(setting.logits(head, tests.rows))
    measures = {}
    for group, mask in tests.groups.items():
        own = measures_of(tests.labels[mask], probabilities[mask], gains, tests.queries[mask])
        for name in MEASURES:
            measures[f"{group}/{name}"] = lambda w, measure=own[name], mask=mask: measure(w[..., mask])
    once = np.ones((1, len(tests.rows)))
    values = {key: float(measure(once)[0]) for key, measure in measures.items()}
    draws = draw_values(measures, tests.queries, resamples=setting.study.resamples)
    return Run({"values": values}, {key: found.astype(np.float32) for key, found in draws.items()})


def described(name: str, count: int, runs: dict[tuple[str, int], list[Run]]) -> dict[str, Any]:
    """An arm's means over seeds, and what it has more than the ID head and than the ID head's temperature."""
    own, first = runs[name, count], runs["head", 0]
    keys = list(own[0].draws)
    return {
        "arm": name, "tail labels": count,
        "values": {key: float(np.mean([run.value(key) for run in own])) for key in keys},
        "against no label of the tail": {key: difference(own, first, key)[0].to_dict() for key in keys},
    }  # fmt: skip


if __name__ == "__main__":
    main()
