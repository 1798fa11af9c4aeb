"""Whose view belongs in the soft labels: encoders and a checkpoint, ordering passages that people graded.

    python benchmarks/bundled/teachers.py RECIPE CHECKPOINT --encoder minilm --encoder FOLDER

The passages are those of RECIPE's sources for "ood_dev", which no round trains on: nDCG@10 of each view alone and of
each two, their standard scores within a query added. Writes results/NAME.json.
"""

from __future__ import annotations

import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import click
import numpy as np
from label import Encoder, cosines
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from provenance import write_result

from darl_rerank import Reranker
from darl_rerank.evaluation.pairs import ndcg_per_query
from darl_rerank.evaluation.significance import paired_test
from darl_rerank.training.data.labels import numbered
from darl_rerank.training.data.sources import load_source
from darl_rerank.training.recipe.read import read_recipe

MEASURE = "nDCG@10"


@click.command(help=__doc__)
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--encoder", "encoders", multiple=True, required=True, help="As label.py's; the first is compared with.")
@click.option("--name", default="bundled_teachers", show_default=True)
def main(recipe: Path, checkpoint: Path, encoders: tuple[str, ...], name: str) -> None:
    asked = read_recipe(recipe)
    pairs = [
        pair
        for source in asked.sources
        if source.use == "ood_dev"
        for pair in load_source(source, asked.grades, seed=asked.seed).train
    ]
    grade, queries = np.array([pair.grade for pair in pairs]), numbered(pair.qid for pair in pairs)
    reranker = Reranker.from_pretrained(checkpoint)
    views = {
        Path(encoder).name: cosines(Encoder(encoder), [p.query for p in pairs], [p.document for p in pairs])
        for encoder in encoders
    }
    views[checkpoint.name] = reranker.score_pairs([(p.query, p.document) for p in pairs]).score.astype(np.float64)
    standard = {of: standard_scores(view, queries) for of, view in views.items()}
    _, first = np.unique(queries, return_index=True)
    values: dict[str, Any] = {
        "recipe": recipe.name, "pairs": len(pairs), "fingerprint": reranker.fingerprint, "views": {},
    }  # fmt: skip
    reference: NDArray[np.float64] | None = None
    for size in (1, 2):
        for names in combinations(views, size):
            total = np.sum([standard[of] for of in names], axis=0)
            per_query = ndcg_per_query(grade, total, reranker.scale.gains, queries)[first]
            per_query = per_query[np.isfinite(per_query)]
            reference = per_query if reference is None else reference
            test = paired_test(per_query, reference)
            values["views"][" + ".join(names)] = {
                MEASURE: float(per_query.mean()), "difference": [test.difference, test.low, test.high],
                "per query": per_query.tolist(),
            }  # fmt: skip
            click.echo(
                f"{' + '.join(names)}: {MEASURE} {per_query.mean():.4f} of {len(per_query)} queries, "
                f"{test.difference:+.4f} [{test.low:+.4f}, {test.high:+.4f}]"
            )
    click.echo(f"written: {write_result(name, values)}", err=True)


def standard_scores(view: NDArray[np.float64], queries: NDArray[np.int64]) -> NDArray[np.float64]:
    """Within each query less the mean, over the standard deviation; shape (n,)."""
    result = np.empty_like(view)
    for query in np.unique(queries):
        members = queries == query
        result[members] = (view[members] - view[members].mean()) / max(float(view[members].std()), 1e-9)
    return result


if __name__ == "__main__":
    main()
