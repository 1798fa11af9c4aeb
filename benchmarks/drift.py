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
from provenance import write_result
from scores import COLLECTIONS, read_scores

from darl_rerank import Checkpoint
from darl_rerank.evaluation.drift import measure_drift
from darl_rerank.model.shipped import DEFAULT

DEPTH = 10


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
    for collection in COLLECTIONS:
        novelty, queries = [], []
        for query in read_scores(work, collection.name):
            places = query.stages["bm25"][0][:DEPTH]
            novelty.append(query.novelty[places])
            queries += [query.qid] * len(places)
        found = measure_drift(np.concatenate(novelty), np.array(queries), held_out)
        row = {**found.to_dict(), "home": collection.home}
        del row["strangest"]
        values["collections"][collection.name] = row
        click.echo(
            f"{collection.name:18s} {'home' if collection.home else 'away'}: mean {found.mean:3.0f}, above 95 "
            f"{found.above:4.0%}, distance {found.distance:.3f}, p {found.p_value:.2g}, drifted {found.drifted}"
        )
    click.echo(f"written: {write_result(name, values)}", err=True)


if __name__ == "__main__":
    main()
