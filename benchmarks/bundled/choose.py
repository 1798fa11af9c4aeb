"""Which of several checkpoints may ship: all of them on the development pairs of a recipe, side by side.

    python benchmarks/bundled/choose.py RECIPE CHECKPOINT... [--name bundled_choice]

The pairs are those that the recipe holds out: `dev_queries` of its training sources and the sources for "ood_dev". None
is of a collection that evaluate.py measures on. Differences are to the first checkpoint, paired by query. A soft label
is worth its expected gain. Writes results/NAME.json.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from provenance import write_result

from darl_rerank import Reranker
from darl_rerank.evaluation.pairs import ndcg_per_query
from darl_rerank.evaluation.significance import paired_test
from darl_rerank.training.data.labels import label_matrix, numbered
from darl_rerank.training.data.training_set import load_training_set
from darl_rerank.training.recipe.read import read_recipe
from darl_rerank.trec.graded_pairs import GradedPair

MEASURE = "nDCG@10"


@click.command(help=__doc__)
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("checkpoints", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--name", default="bundled_choice", show_default=True)
def main(recipe: Path, checkpoints: tuple[Path, ...], name: str) -> None:
    held_out = {
        source.source.name: source.train if source.source.use == "ood_dev" else source.dev
        for source in load_training_set(read_recipe(recipe)).sources
        if source.dev or source.source.use == "ood_dev"
    }
    values: dict[str, Any] = {"recipe": recipe.name, "checkpoints": {}}
    first: dict[str, NDArray[np.float64]] = {}
    for path in checkpoints:
        reranker = Reranker.from_pretrained(path)
        found = {part: measured(reranker, pairs) for part, pairs in held_out.items()}
        values["checkpoints"][path.name] = {"fingerprint": reranker.fingerprint, "sources": found}
        for part, result in found.items():
            per_query = np.array(result["per query"])
            test = paired_test(per_query, first.setdefault(part, per_query))
            result["difference"] = [test.difference, test.low, test.high]
            click.echo(
                f"{path.name}, {part}: {MEASURE} {result[MEASURE]:.4f} of {len(per_query)} queries, difference "
                f"{test.difference:+.4f} [{test.low:+.4f}, {test.high:+.4f}], RPS {result['rps']:.4f}"
            )
    click.echo(f"written: {write_result(name, values)}", err=True)


def measured(reranker: Reranker, pairs: list[GradedPair]) -> dict[str, Any]:
    scores = reranker.score_pairs([(pair.query, pair.document) for pair in pairs])
    labels = label_matrix(pairs, len(reranker.scale)).astype(np.float64)
    queries = numbered(pair.qid for pair in pairs)
    # Each pair is a grade of its own, so that soft labels have their expected gain.
    ndcg = ndcg_per_query(np.arange(len(pairs)), scores.score, labels @ reranker.scale.gains, queries)
    _, first = np.unique(queries, return_index=True)
    # A query whose documents are all worth nothing says nothing of order, for any checkpoint.
    per_query = ndcg[first][np.isfinite(ndcg[first])]
    distance = (scores.probabilities.cumsum(axis=1) - labels.cumsum(axis=1)) ** 2
    return {
        "pairs": len(pairs),
        MEASURE: float(per_query.mean()),
        "rps": float(distance.sum(axis=1).mean()),
        "per query": per_query.tolist(),
    }


if __name__ == "__main__":
    main()
