"""Claim (b) where shift is rare: is a chosen label worth more than a random one, by the pool's share of OOD pairs?

    python benchmarks/study/rare.py DATA --work WORK --study forum

Both studies of `run.py` have pools of which some 70 % is out of distribution, so that a random draw covers it. Here the
pool has a fixed size and an OOD share of 2, 5, 10, 30 or 70 %. Only the head is trained (screening, see `heads.py`), on
final states of the base model or of the checkpoint that ships; novelty is of the same model's features.

Beside the library's strategies one more is tried: "domain", a classifier between the training set and the pool, whose
surest pairs of the pool are taken (Gissin and Shalev-Shwartz, "Discriminative Active Learning", 2019).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from provenance import write_result

from darl_rerank import Checkpoint, Reranker
from darl_rerank.errors import InputError
from darl_rerank.model.shipped import DEFAULT
from darl_rerank.training.data.features import extract_features
from darl_rerank.training.loop.probe import fit_probe
from darl_rerank.training.model.initial import initial_checkpoint
from darl_rerank.training.selection.coverage import QueryCap, take_in_order
from darl_rerank.training.stages.probe import final_states
from study.chosen import Seed, chosen_rows, prepare_pool, probe_set
from study.claims import Claim, Part, judge
from study.collections_by_role import Collections, Rows, SeedSets, load_collections, seed_sets
from study.heads import head_logits
from study.measured import ID, OOD, Run, difference, measure_run, read_run, tests_of
from study.settings import STUDIES, Study, digest
from study.states import BaseStates, RowEncoder
from study.study_run import with_negatives

SHARES = (0.02, 0.05, 0.10, 0.30, 0.70)
BUDGETS = (100, 250, 1000)
SEEDS = 3
POOL = 2000
STRATEGIES = ("dasa", "dasa-without-band", "uncertainty", "knn", "domain")
MEASURES = ("ndcg@10", "qwk", "mass_above", "rps")
# The parts of claim (b), as `claims.py` states them.
PARTS = (
    Part(OOD, "ndcg@10", "better"), Part(OOD, "qwk", "better"), Part(ID, "ndcg@10", "no worse"),
    Part(ID, "qwk", "no worse"),
)  # fmt: skip


def states_of(kind: str, study: Study, data: Collections, work: Path) -> BaseStates:
    """Features and final states of all pairs, of the base model or of the checkpoint that ships."""
    checkpoint = initial_checkpoint(study.model) if kind == "base" else Checkpoint.load(DEFAULT)
    if study.model.max_length is not None:
        prompt = replace(checkpoint.prompt, max_length=study.model.max_length)
        checkpoint = checkpoint.replace(prompt=prompt)
    folder = work / "features" / f"{study.name}-{kind}"
    saved = work / "models" / f"{study.name}-{kind}"
    checkpoint.save(saved, overwrite=True)
    reranker = Reranker.from_pretrained(saved, engine="torch")
    found = extract_features(reranker, data.pairs, folder, description=f"{study.name}, {kind}")
    finals = final_states(found, checkpoint.head, checkpoint.link)
    return BaseStates(torch.empty(0), RowEncoder(), np.asarray(found.features), finals, 0)


def pool_with(data: Collections, study: Study, number: int, share: float, size: int = POOL) -> SeedSets:
    """A seed's training pairs, and a pool of `size` pairs of which `share` are OOD; both kinds query by query.

    Raises:
        InputError: there are not as many pairs of a kind.
    """
    sets = seed_sets(data, replace(study, pool_home=10**9), number)
    home = np.isin(sets.pool, data.roles["home"])
    rng = np.random.default_rng(number)
    wanted = {True: size - round(share * size), False: round(share * size)}
    parts = []
    for kind, count in wanted.items():
        rows = sets.pool[home == kind]
        queries = rng.permutation(np.unique(data.queries[rows]))
        rank = {query: place for place, query in enumerate(queries.tolist())}
        order = sorted(rows.tolist(), key=lambda row: (rank[int(data.queries[row])], row))
        if len(order) < count:
            raise InputError(
                f"a pool with an OOD share of {share:g} needs {count} pairs of a kind that has {len(order)}"
            )
        parts.append(np.array(order[:count], dtype=np.intp))
    return SeedSets(sets.train, np.sort(np.concatenate(parts)))


def domain_rows(seed: Seed, states: BaseStates, budget: int, per_query: int) -> Rows:
    """The pairs of the pool that a classifier between training set and pool finds least like the training set."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict

    both = np.concatenate([seed.sets.train, seed.sets.pool])
    of_pool = np.arange(len(both)) >= len(seed.sets.train)
    hidden = states.features.shape[1] // 3
    features = np.asarray(states.features[both][:, :hidden], dtype=np.float32)
    # Out of fold, or a wide classifier would know each pair by heart.
    model = LogisticRegression(C=1.0, max_iter=300, class_weight="balanced")
    likely = cross_val_predict(model, features, of_pool, cv=3, method="predict_proba")[of_pool, 1]
    order = np.argsort(-likely, kind="stable")
    return np.sort(seed.sets.pool[take_in_order(order, budget, QueryCap(seed.candidates.queries, per_query))])


def run_arm(
    job: tuple[str, int, float, int], seed: Seed, study: Study, data: Collections, states: BaseStates,
    checkpoint: Checkpoint, measure: Callable[[Path, Any, dict[str, Any]], Run], folder: Path,
) -> Run:  # fmt: skip
    """Train a head on the training pairs and what a strategy chose, and measure it; kept in `folder`."""
    strategy, budget, share, number = job
    kept = folder / digest([*job, MEASURES, study.resamples])
    if (found := read_run(kept)) is not None:
        return found
    if strategy == "domain":
        more = domain_rows(seed, states, budget, study.per_query)
    else:
        more, _ = chosen_rows(seed, study, strategy, budget, data.roles["home"])
    outcome = fit_probe(
        checkpoint.head, *probe_set(data, states, np.sort(np.concatenate([seed.sets.train, more]))),
        probe_set(data, states, data.roles["home_dev"]), checkpoint.scale.gains, loss="ce", seed=number,
        progress=False,
    )  # fmt: skip
    facts = {
        "arm": strategy, "budget": budget, "seed": number, "share": share, "level": "head",
        "chosen_ood": float(1 - np.isin(more, data.roles["home"]).mean()), "pairs": len(more),
    }  # fmt: skip
    return measure(kept, head_logits(outcome.head, "ce", states, data), facts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--study", choices=sorted(STUDIES), default="forum")
    parser.add_argument("--features", nargs="+", choices=["base", "shipped"], default=["base", "shipped"])
    parser.add_argument("--only-features", action="store_true", help="Compute and keep them, and end.")
    arguments = parser.parse_args()
    study = replace(with_negatives(STUDIES[arguments.study](arguments.data), arguments.work), resamples=300)
    checkpoint = initial_checkpoint(study.model)
    data = load_collections(study, checkpoint.encoder(), len(checkpoint.scale))
    tests = tests_of(data, study)
    states = {kind: states_of(kind, study, data, arguments.work) for kind in arguments.features}
    if arguments.only_features:
        return
    found: dict[str, Any] = {}
    for kind, seen in states.items():
        folder = arguments.work / "rare" / f"{study.name}-{kind}-{data.digest}"

        def measure(kept: Path, logits: Any, facts: dict[str, Any]) -> Run:
            return measure_run(kept, logits, data, tests, checkpoint.scale.gains, facts, study.resamples, MEASURES)

        runs: dict[tuple[str, int, float], dict[int, Run]] = {}
        with tqdm(total=SEEDS * len(SHARES) * len(BUDGETS) * (len(STRATEGIES) + 1), desc=kind, unit="arm") as bar:
            for number in range(SEEDS):
                for share in SHARES:
                    sets = pool_with(data, study, number, share)
                    seed = prepare_pool(sets, data, study, seen, checkpoint, number)
                    for budget in BUDGETS:
                        for strategy in ("random", *STRATEGIES):
                            job = (strategy, budget, share, number)
                            run = run_arm(job, seed, study, data, seen, checkpoint, measure, folder)
                            runs.setdefault((strategy, budget, share), {})[number] = run
                            bar.update()
        found[kind] = [
            comparison(runs, strategy, budget, share) for strategy, budget, share in runs if strategy != "random"
        ]
    write_result(
        f"study_{study.name}_rare",
        {
            "level": "head only, on frozen features", "title": study.title, "pool": POOL, "seeds": SEEDS,
            "home_pairs": study.home_pairs, "resamples": study.resamples, "data": data.table(), "rows": found,
        },
        argv=sys.argv[1:],
    )  # fmt: skip


def comparison(
    runs: dict[tuple[str, int, float], dict[int, Run]], strategy: str, budget: int, share: float
) -> dict[str, Any]:
    """A strategy against a random choice at a budget and a share: differences, verdict, and what was chosen."""
    arms = {(name, own): by_seed for (name, own, at), by_seed in runs.items() if at == share and own == budget}
    second, first = arms[strategy, budget], arms["random", budget]
    claim = Claim("b", f"{strategy} against random: better OOD, ID no worse", "random", strategy, PARTS)
    gaps = {
        f"{group}/{measure}": difference(
            [second[s] for s in sorted(second)], [first[s] for s in sorted(second)], f"{group}/{measure}"
        )[0].to_dict()
        for group in (ID, OOD)
        for measure in MEASURES
    }
    chosen = {name: [float(by[s].facts["chosen_ood"]) for s in sorted(by)] for name, by in
              (("strategy", second), ("random", first))}  # fmt: skip
    return {
        "strategy": strategy, "budget": budget, "share": share, "against_random": gaps, "chosen_ood": chosen,
        "verdict": judge(claim, arms, budget)["verdict"],
    }  # fmt: skip


if __name__ == "__main__":
    main()
