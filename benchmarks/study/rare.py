"""Claim (b) where shift is rare: is a chosen label worth more than a random one, by the pool's share of OOD pairs?

    python benchmarks/study/rare.py DATA --work WORK --study forum
    python benchmarks/study/rare.py DATA --work WORK --study shop --size large --features shipped

Both studies of `run.py` have pools of which some 70 % is out of distribution, so that a random draw covers it. Here
the pool has a fixed size and an OOD share of 2, 5, 10, 30 or 70 %; collections are smaller than there, see `SIZES`.
Only the head is trained (screening, see `heads.py`), on final states of the base model or of the checkpoint that ships;
novelty is of the same model's features.

Beside the library's strategies those of `tried.py` are tried, and "oracle", which sees which pairs are OOD: what no
selector can beat by finding them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from provenance import write_result

from darl_rerank import Checkpoint, Reranker
from darl_rerank.model.head import Head
from darl_rerank.model.shipped import DEFAULT
from darl_rerank.training.data.features import extract_features
from darl_rerank.training.loop.probe import fit_probe
from darl_rerank.training.model.initial import initial_checkpoint
from darl_rerank.training.selection.select import estimated_share
from darl_rerank.training.stages.probe import final_states
from study.chosen import chosen_rows, prepare_pool, probe_set
from study.claims import Claim, Part, judge
from study.collections_by_role import Collections, Rows, SeedSets, load_collections, seed_sets
from study.heads import head_logits
from study.measured import ID, OOD, Run, difference, measure_run, read_run, tests_of
from study.settings import STUDIES, Study, digest
from study.states import BaseStates, RowEncoder, base_states
from study.study_run import with_negatives
from study.tried import SELECTORS, Order, Pool, committee, first_of, likely_new, pool_of

SHARES = (0.02, 0.05, 0.10, 0.30, 0.70)
# Whole queries may be chosen: five of each would be half of the pool, and with 250 labels no choice.
PER_QUERY = 10
# Smaller than in the study, so that one pass of a model over all pairs takes minutes.
HOME_PAIRS = 250
LONGEST_LIST = 10
# Prompts of the shop are cut shorter than in the study; the forum's questions would not fit.
MAX_LENGTH = {"shop": 96}
STRATEGIES = ("dasa", "dasa-without-band", "uncertainty", "knn", *SELECTORS)
MEASURES = ("ndcg@10", "qwk", "mass_above", "rps")
# The parts of claim (b), as `claims.py` states them.
PARTS = (
    Part(OOD, "ndcg@10", "better"), Part(OOD, "qwk", "better"), Part(ID, "ndcg@10", "no worse"),
    Part(ID, "qwk", "no worse"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Size:
    """How large the pools are.

    Attributes:
        suffix: of the result file.
        pool: pairs; fewer at shares for which a kind has too few.
        budgets: labels.
        seeds: how many.
        pairs: of each role, at most.
    """

    suffix: str
    pool: int
    budgets: tuple[int, ...]
    seeds: int
    pairs: Mapping[str, int]


_TESTS = {"home_dev": 120, "home_test": 300, "away_dev": 120, "away_test": 500}
SIZES = {
    "small": Size("rare", 500, (100, 250), 6, {"home": 790, "pool": 370, **_TESTS}),
    # Pools for a budget of 1,000.
    "large": Size("rare_large", 1500, (1000,), 3, {"home": 1730, "pool": 1060, **_TESTS}),
}


def model_of(kind: str, study: Study) -> Checkpoint:
    """The base model, or the checkpoint that ships, with the study's prompt length."""
    # All layers for every pair: what leaves at an exit has no final state.
    checkpoint = initial_checkpoint(study.model) if kind == "base" else Checkpoint.load(DEFAULT).replace(exits=None)
    if study.model.max_length is None:
        return checkpoint
    return checkpoint.replace(prompt=replace(checkpoint.prompt, max_length=study.model.max_length))


def states_of(kind: str, study: Study, data: Collections, work: Path) -> BaseStates:
    """Features and final states of all pairs, of the base model or of the checkpoint that ships."""
    checkpoint = model_of(kind, study)
    if kind == "base":
        # With the states below the last layers, from which `rare_tuned.py` trains.
        return tunable_states(checkpoint, study, data, work)
    folder = work / "features" / f"{study.name}-{data.digest}"
    saved = work / "models" / f"{study.name}-{kind}"
    checkpoint.save(saved, overwrite=True)
    reranker = Reranker.from_pretrained(saved, engine="torch")
    found = extract_features(reranker, data.pairs, folder, description=f"{study.name}, {kind}")
    finals = final_states(found, checkpoint.head, checkpoint.link)
    return BaseStates(torch.empty(0), RowEncoder(), np.asarray(found.features), finals, 0)


def tunable_states(checkpoint: Checkpoint, study: Study, data: Collections, work: Path) -> BaseStates:
    """The same with the states below the last layers, which take 200 MiB for a thousand pairs."""
    folder = work / "states" / f"{checkpoint.fingerprint[:12]}-{data.digest}-{study.layers}"
    return base_states(checkpoint, study.layers, data.pairs, folder)


def smaller_study(study: Study) -> Study:
    """The study with fewer labelled pairs, and with shorter lists where its tests have long ones."""
    tests = {
        role: tuple(
            source if (source.max_documents or 0) <= LONGEST_LIST else replace(source, max_documents=LONGEST_LIST)
            for source in study.roles[role]
        )
        for role in ("home_test", "away_test")
    }
    model = replace(study.model, max_length=MAX_LENGTH.get(study.name, study.model.max_length))
    return replace(
        study, model=model, roles={**study.roles, **tests}, home_pairs=HOME_PAIRS, per_query=PER_QUERY, resamples=300
    )


def smaller(data: Collections, most: Mapping[str, int]) -> Collections:
    """Whole queries of each role, drawn at random, of at most so many pairs."""
    roles: dict[str, Rows] = {}
    rows: list[int] = []
    for role, own in data.roles.items():
        queries = data.queries[own]
        order = np.random.default_rng(0).permutation(np.unique(queries))
        taken = order[np.cumsum([np.sum(queries == query) for query in order]) <= most[role]]
        kept = own[np.isin(queries, taken)].tolist()
        roles[role] = np.arange(len(rows), len(rows) + len(kept))
        rows += kept
    return replace(
        data, pairs=data.of(np.array(rows)), roles=roles, labels=data.labels[rows], targets=data.targets[rows],
        queries=data.queries[rows], digest=digest([data.digest, rows]),
    )  # fmt: skip


def pool_with(data: Collections, study: Study, number: int, share: float, size: int) -> SeedSets:
    """A seed's training pairs, and a pool of `size` pairs of which `share` are OOD; both kinds query by query.

    It is smaller where there are not as many pairs of a kind.
    """
    sets = seed_sets(data, replace(study, pool_home=10**9), number)
    home = np.isin(sets.pool, data.roles["home"])
    rng = np.random.default_rng(number)
    size = min(size, int(home.sum() / (1 - share)), int((~home).sum() / share))
    wanted = {True: size - round(share * size), False: round(share * size)}
    parts = []
    for kind, count in wanted.items():
        rows = sets.pool[home == kind]
        queries = rng.permutation(np.unique(data.queries[rows]))
        rank = {query: place for place, query in enumerate(queries.tolist())}
        order = sorted(rows.tolist(), key=lambda row: (rank[int(data.queries[row])], row))
        parts.append(np.array(order[:count], dtype=np.intp))
    return SeedSets(sets.train, np.sort(np.concatenate(parts)))


def run_arm(
    job: tuple[str, int, float, int], pool: Pool, orders: dict[str, Order], study: Study, data: Collections,
    states: BaseStates, checkpoint: Checkpoint, measure: Callable[[Path, Any, dict[str, Any]], Run], folder: Path,
) -> Run:  # fmt: skip
    """Train a head on the training pairs and what a strategy chose, and measure it; kept in `folder`.

    `orders` keeps what selectors found of this pool, for the next budget.
    """
    seed = pool.seed
    strategy, budget, share, number = job
    kept = folder / digest([*job, MEASURES, study.resamples])
    if (found := read_run(kept)) is not None:
        return found
    if strategy in SELECTORS:
        if strategy not in orders:
            orders[strategy] = SELECTORS[strategy](pool)
        more = first_of(orders[strategy], pool, budget, study)
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


def load(name: str, data: Path, work: Path, size: Size) -> tuple[Study, Checkpoint, Collections]:
    """The study, the untrained checkpoint, and the pairs."""
    study = with_negatives(smaller_study(STUDIES[name](data)), work)
    checkpoint = initial_checkpoint(study.model)
    pairs = load_collections(study, checkpoint.encoder(), len(checkpoint.scale))
    return study, checkpoint, smaller(pairs, size.pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--study", choices=sorted(STUDIES), default="forum")
    parser.add_argument("--features", nargs="+", choices=["base", "shipped"], default=["base", "shipped"])
    parser.add_argument("--size", choices=sorted(SIZES), default="small")
    parser.add_argument("--only-features", action="store_true", help="Compute and keep them, and end.")
    arguments = parser.parse_args()
    size = SIZES[arguments.size]
    study, checkpoint, data = load(arguments.study, arguments.data, arguments.work, size)
    tests = tests_of(data, study)
    states = {kind: states_of(kind, study, data, arguments.work) for kind in arguments.features}
    if arguments.only_features:
        return
    for kind, seen in states.items():
        own, pools = starting_point(kind, checkpoint), list[dict[str, Any]]()
        # The model that ships changes, and arms of another one must not be taken for its own.
        folder = arguments.work / "rare" / f"{study.name}-{kind}-{data.digest}-{own.fingerprint[:12]}"

        def measure(kept: Path, logits: Any, facts: dict[str, Any]) -> Run:
            return measure_run(kept, logits, data, tests, checkpoint.scale.gains, facts, study.resamples, MEASURES)

        runs: dict[tuple[str, int, float], dict[int, Run]] = {}
        with tqdm(
            total=size.seeds * len(SHARES) * len(size.budgets) * (len(STRATEGIES) + 1), desc=kind, unit="arm"
        ) as bar:
            for number in range(size.seeds):
                for share in SHARES:
                    sets = pool_with(data, study, number, share, size.pool)
                    seed = prepare_pool(sets, data, study, seen, own, number)
                    if share == SHARES[0]:
                        heads = committee(data, seen, own, sets.train, number)
                    pool, orders = pool_of(seed, data, seen, heads), dict[str, Order]()
                    pools.append(described_pool(pool, share))
                    for budget in size.budgets:
                        for strategy in ("random", *STRATEGIES):
                            job = (strategy, budget, share, number)
                            run = run_arm(job, pool, orders, study, data, seen, own, measure, folder)
                            runs.setdefault((strategy, budget, share), {})[number] = run
                            bar.update()
        rows = [comparison(runs, strategy, budget, share) for strategy, budget, share in runs if strategy != "random"]
        write_result(
            f"study_{study.name}_{size.suffix}" + ("" if kind == "shipped" else f"_{kind}"),
            {
                "level": "head only, on frozen features", "title": study.title, "pool": size.pool, "seeds": size.seeds,
                "home_pairs": study.home_pairs,
                "max_length": study.model.max_length, "resamples": study.resamples, "data": data.table(),
                "pools": {kind: pools}, "rows": {kind: rows},
            },
            argv=sys.argv,
        )  # fmt: skip


def starting_point(kind: str, checkpoint: Checkpoint) -> Checkpoint:
    """`checkpoint` with the head that training begins with: on three grades, "strong" is the mean of the upper two."""
    if kind == "base":
        return checkpoint
    head = Checkpoint.load(DEFAULT).head
    groups = np.array_split(np.arange(len(head.bias)), [1, 2]) if len(checkpoint.scale) == 3 else None
    if groups is not None:
        head = Head(*(np.stack([part[rows].mean(axis=0) for rows in groups]) for part in (head.weight, head.bias)))
    return checkpoint.replace(head=head)


def described_pool(pool: Pool, share: float) -> dict[str, Any]:
    """What can be read off a pool without its labels, beside its true share."""
    from darl_rerank.evaluation.detection import auroc

    novelty = pool.seed.candidates.novelty
    return {
        "share": share, "pairs": len(novelty), "seed": pool.seed.number, "estimated": estimated_share(novelty),
        "auroc": {
            name: float(auroc(pool.ood, np.asarray(score, dtype=np.float64), np.ones((1, len(novelty))))[0])
            for name, score in (("novelty", novelty), ("domain", likely_new(pool)))
        },
    }  # fmt: skip


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
