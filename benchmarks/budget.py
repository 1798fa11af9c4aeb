"""What a time budget and depth="auto" cost, on trec-dl-2019: documents judged, time used, nDCG@10 beside full depth.

    python benchmarks/budget.py fit --work FOLDER [--write MODEL]      # statistics for depth="auto", on trec-dl-2021
    python benchmarks/budget.py auto --work FOLDER
    python benchmarks/budget.py time DATA [--model M] [--engine E] [--queries N]

FOLDER is what scores.py wrote, DATA the folder of trec-dl-2019. Each part is kept in results/budget.json beside the
others. `time` reranks BM25's first 100 of each query, whole and within each budget, one query after the other.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from provenance import RESULTS, provenance, write_result
from scores import Judged, read_scores
from tqdm import tqdm

from darl_rerank import Checkpoint, Ranking, Reranker
from darl_rerank.errors import InputError
from darl_rerank.evaluation.ranking import evaluate_run
from darl_rerank.files import atomic_write
from darl_rerank.model.manifest import MANIFEST
from darl_rerank.model.reach import Reach, fit_reach
from darl_rerank.model.shipped import DEFAULT, checkpoint_folder
from darl_rerank.trec.corpora import load_documents
from darl_rerank.trec.qrels import read_qrels
from darl_rerank.trec.runs import in_given_order, read_run
from darl_rerank.trec.topics import read_topics

DEPTH = 100
BUDGETS = (50, 200, 1000)
DEPTHS = (0, 2, 5, 10, 20, 30, 50, 70, DEPTH)
FITTED = ("bm25", "splade-pp")
SEED = 0


@click.group(help=__doc__)
def main() -> None: ...


@main.command()
@click.option("--work", type=click.Path(path_type=Path), required=True)
@click.option("--write", "target", help="The checkpoint whose manifest gets the statistics.")
def fit(work: Path, target: str | None) -> None:
    gains = Checkpoint.load(target or DEFAULT).scale.gains
    lists = [
        in_list_order(query, stage, gains)[1]
        for query in read_scores(work, "trec-dl-2021")
        for stage in FITTED
        if stage in query.stages
    ]
    reach = fit_reach(lists)
    click.echo(f"{reach}")
    if target is not None:
        path = checkpoint_folder(target) / MANIFEST
        manifest = json.loads(path.read_text("utf-8"))
        manifest["reach"] = {name: round(value, 4) for name, value in reach.to_dict().items()}
        with atomic_write(path) as stream:
            stream.write(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
        Checkpoint.load(target)
    keep("fit", {"collection": "trec-dl-2021", "first stages": FITTED, **reach.to_dict()})


@main.command()
@click.option("--work", type=click.Path(path_type=Path), required=True)
@click.option("--model", default=DEFAULT, show_default=True)
def auto(work: Path, model: str) -> None:
    checkpoint = Checkpoint.load(model)
    reach, gains = checkpoint.reach, checkpoint.scale.gains
    if reach is None:
        raise click.ClickException(f"{model} has no statistics for depth='auto'")
    values: dict[str, Any] = {}
    for collection, stages in (("trec-dl-2021", FITTED), ("trec-dl-2019", ("bm25", "tas-b", "splade-pp", "repllama"))):
        queries = read_scores(work, collection)
        for stage in stages:
            values[f"{collection} {stage}"] = found = auto_of(queries, stage, reach, gains)
            click.echo(f"{collection} {stage}: {found}")
    keep("auto", values)


def auto_of(queries: Sequence[Judged], stage: str, reach: Reach, gains: NDArray[np.float64]) -> dict[str, Any]:
    """depth="auto" beside depth 100, and beside the one depth for all queries that judges as many documents."""
    qrels = {q.qid: {d: int(g) for d, g in zip(q.docids, q.grades, strict=True) if g >= 0} for q in queries}
    lists = {query.qid: in_list_order(query, stage, gains) for query in queries if query.stages.get(stage)}
    stops = {qid: reach.stops_at(scores, 10) for qid, (_, scores) in lists.items()}
    mean = float(np.mean(list(stops.values())))
    ndcg = {
        name: measured(qrels, {qid: reordered(*lists[qid], stop(qid)) for qid in lists})
        for name, stop in {
            "first stage": lambda qid: 0,
            "auto": stops.__getitem__,
            "same depth for all": lambda qid: round(mean),
            "depth 100": lambda qid: DEPTH,
        }.items()
    }
    top = {qid: set(reordered(*lists[qid], DEPTH)[:10]) for qid in lists}
    kept = {qid: len(top[qid] & set(reordered(*lists[qid], stops[qid])[:10])) / len(top[qid]) for qid in lists}
    return {
        "queries": len(lists), "documents judged": mean,
        "judged p10, p50, p90": np.percentile(list(stops.values()), [10, 50, 90]).tolist(),
        "of the full depth's top 10": float(np.mean(list(kept.values()))),
        "nDCG@10": {name: float(scores.mean()) for name, scores in ndcg.items()},
        "nDCG@10 by documents judged": {
            depth: float(measured(qrels, {qid: reordered(*lists[qid], depth) for qid in lists}).mean())
            for depth in DEPTHS
        },
        "auto from depth 100": paired_difference_of(ndcg["auto"], ndcg["depth 100"]),
    }  # fmt: skip


def in_list_order(query: Judged, stage: str, gains: NDArray[np.float64]) -> tuple[list[str], NDArray[np.float64]]:
    """Docids and the model's scores of a first stage's list, its best first."""
    places = query.stages[stage][0][:DEPTH]
    return [query.docids[i] for i in places], query.probabilities[places] @ gains


def reordered(docids: Sequence[str], scores: NDArray[np.float64], depth: int) -> list[str]:
    """The first `depth` documents by score, the rest behind them as it was."""
    order = np.argsort(-scores[:depth], kind="stable")
    return [*(docids[i] for i in order), *docids[depth:]]


def measured(qrels: Mapping[str, Mapping[str, int]], rankings: Mapping[str, Sequence[str]]) -> NDArray[np.float64]:
    """nDCG@10 of each query, shape (q,)."""
    of = {qid: dict(qrels[qid]) for qid in rankings}
    return np.asarray(evaluate_run(of, in_given_order(rankings), ["nDCG@10"]).per_query["nDCG@10"])


def paired_difference_of(new: NDArray[np.float64], old: NDArray[np.float64]) -> list[float]:
    """Mean difference with its 95 % interval, a bootstrap over queries."""
    generator = np.random.default_rng(SEED)
    difference = new - old
    means = difference[generator.integers(0, len(difference), (10_000, len(difference)))].mean(axis=1)
    return [float(difference.mean()), *np.percentile(means, [2.5, 97.5]).tolist()]


@main.command(name="time")
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--model", default=DEFAULT, show_default=True)
@click.option("--engine", default="auto")
@click.option("--precision")
@click.option("--queries", "count", type=int, help="The first so many; all if not given.")
def time_budgets(data: Path, model: str, engine: str, precision: str | None, count: int | None) -> None:
    run, topics = read_run(data / "runs" / "bm25.trec"), read_topics(data / "topics.tsv")
    qrels = read_qrels(data / "qrels.txt")
    lists = {qid: [hit.docid for hit in run[qid][:DEPTH]] for qid in run if qid in qrels}
    lists = dict(list(lists.items())[:count])
    texts = load_documents(data / "corpus.jsonl.gz", {docid for docids in lists.values() for docid in docids})
    reranker = Reranker.from_pretrained(model, engine=engine, device="cpu", precision=precision)
    reranker.warm_up()
    ways: dict[str, Callable[[str, Any], Ranking]] = {
        f"{budget} ms": lambda query, documents, budget=budget: reranker.rerank(query, documents, budget_ms=budget)
        for budget in BUDGETS
    }
    ways["full depth"] = reranker.rerank
    orders: dict[str, dict[str, list[str]]] = {name: {} for name in ways}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    judged: dict[str, list[int]] = {name: [] for name in ways}
    refused = dict.fromkeys(ways, 0)
    load = os.getloadavg()[0]
    # All ways of one query one after the other, so that whatever else the machine does meets them alike.
    for qid, docids in tqdm(lists.items(), unit="query"):
        documents = [texts[docid] for docid in docids]
        for name, way in ways.items():
            started = time.perf_counter()
            try:
                ranking = way(topics[qid], documents)
            except InputError:
                # Not even one document fits: the caller keeps the first stage's order.
                refused[name] += 1
                judged[name].append(0)
                orders[name][qid] = docids
                continue
            seconds[name].append(time.perf_counter() - started)
            judged[name].append(ranking.judged)
            orders[name][qid] = [docids[ranked.index] for ranked in ranking]
    of = {qid: qrels[qid] for qid in lists}
    rows = {}
    for name in ways:
        milliseconds = 1000 * np.array(seconds[name])
        rows[name] = {
            "ms p50, p99, most": [*np.percentile(milliseconds, [50, 99]).tolist(), float(milliseconds.max())]
            if len(milliseconds)
            else None,
            "refused": refused[name],
            "documents judged": float(np.mean(judged[name])),
            "judged least, most": [min(judged[name]), max(judged[name])],
            "nDCG@10": float(measured(of, orders[name]).mean()), "raw ms": np.round(milliseconds, 1).tolist(),
        }  # fmt: skip
        click.echo(f"{name}: { {key: value for key, value in rows[name].items() if key != 'raw ms'} }")
    kept = reranker.engine
    keep(
        f"time {kept.name} {kept.precision}",
        {
            "collection": "trec-dl-2019, BM25's first 100", "queries": len(lists), "load before": load,
            "load after": os.getloadavg()[0], "nDCG@10 of the first stage": float(measured(of, lists).mean()),
            "ways": rows,
        },
    )  # fmt: skip


def keep(part: str, values: Mapping[str, Any]) -> None:
    """Put one part into results/budget.json, with the provenance of its own run."""
    path = RESULTS / "budget.json"
    known = json.loads(path.read_text("utf-8"))["parts"] if path.is_file() else {}
    write_result("budget", {"parts": {**known, part: {"provenance": provenance(), **values}}})


if __name__ == "__main__":
    main()
