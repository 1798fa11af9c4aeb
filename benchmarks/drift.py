"""What `darl-rerank drift` says of collections at home and away: the first ten documents of BM25's lists.

    python benchmarks/drift.py --work FOLDER

FOLDER is scores.py's. Writes results/drift.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from provenance import write_result
from scores import COLLECTIONS, read_scores

from darl_rerank import Checkpoint
from darl_rerank.evaluation.bootstrap import bootstrap
from darl_rerank.evaluation.detection import auroc
from darl_rerank.evaluation.drift import measure_drift
from darl_rerank.model.shipped import DEFAULT

DEPTH, WEB = 10, "trec-dl-2019"


@click.command(help=__doc__)
@click.option("--work", type=click.Path(path_type=Path), required=True)
@click.option("--name", default="drift", show_default=True)
def main(work: Path, name: str) -> None:
    statistics = Checkpoint.load(DEFAULT).novelty
    assert statistics is not None
    held_out = int(statistics.settings["held_out_pairs"])
    values: dict[str, Any] = {
        "scores": json.loads((work / "scores.json").read_text("utf-8")), "seed": 0, "depth": DEPTH,
        "held_out_pairs": held_out, "collections": {},
    }  # fmt: skip
    lists = {}
    for collection in COLLECTIONS:
        novelty, queries = [], []
        for query in read_scores(work, collection.name):
            places = query.stages["bm25"][0][:DEPTH]
            novelty.append(query.novelty[places])
            queries += [query.qid] * len(places)
        found = measure_drift(np.concatenate(novelty), np.array(queries), held_out)
        row = {**found.to_dict(), "home": collection.home}
        del row["strangest"]
        lists[collection.name] = np.array([one.mean() for one in novelty if len(one)])
        values["collections"][collection.name] = row
        click.echo(
            f"{collection.name:18s} {'home' if collection.home else 'away'}: mean {found.mean:3.0f}, above 95 "
            f"{found.above:4.0%}, distance {found.distance:.3f}, p {found.p_value:.2g}, drifted {found.drifted}"
        )
    for collection in COLLECTIONS:
        if collection.role == "test" and not collection.home:
            told = told_apart(lists[collection.name], lists[WEB])
            values["collections"][collection.name]["lists from web"] = told
            click.echo(f"{collection.name}: lists from those of {WEB}, AUROC {told['value']:.3f}")
    click.echo(f"written: {write_result(name, values)}", err=True)


def told_apart(away: NDArray[np.float64], web: NDArray[np.float64]) -> dict[str, Any]:
    """AUROC of whole lists' mean novelty, with a bootstrap over queries."""
    outside = np.repeat([True, False], [len(away), len(web)])
    novelty = np.concatenate([away, web])
    found = bootstrap({"auroc": lambda weights: auroc(outside, novelty, weights)}, np.arange(len(novelty)))
    return found["auroc"].to_dict()


if __name__ == "__main__":
    main()
