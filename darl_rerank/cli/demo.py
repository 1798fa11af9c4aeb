"""`darl-rerank demo`: the whole way, from a catalogue to a reranked list, on data that comes with the package."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import load_reranker, model_options
from .terminal import json_option, line_width, print_json, show

if TYPE_CHECKING:
    from ..evaluation.significance import PairedTest
    from ..model.scale import RelevanceScale
    from ..results import RankedDocument
    from ..trec.corpora import Document
    from ..trec.runs import Run, RunEntry

_SHOWN_QUERIES = ("laptop", "usb hub", "surround sound speakers")
_SHOWN_DOCUMENTS = 5
_TITLE_WIDTH = 72


@click.command()
@click.option(
    "--depth",
    type=click.IntRange(min=10),
    default=15,
    show_default=True,
    help="Products of each query to rerank; 15 take about two minutes on two cores.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs/demo"),
    show_default=True,
    help="Folder for the runs before and after, with details.",
)
@click.option("--query", "shown", multiple=True, help="A query whose list to show; may be given several times.")
@click.option("--restart", is_flag=True, help="Begin anew instead of going on with an interrupted demo.")
@json_option
@model_options
def demo(
    depth: int, output: Path, shown: tuple[str, ...], restart: bool, as_json: bool, **model: str | int | None
) -> None:
    """Rerank Lucene's BM25 on a product catalogue that comes with the package.

    Indexes 19,406 products with Pyserini's Lucene, retrieves for 135 queries, reranks, prints the top of a few lists
    before and after, and nDCG@10 of both runs. An interrupted demo goes on when the same command is given again.
    """
    from darl_rerank.adapters.lucene import lucene_search

    from .. import icecat
    from ..errors import InputError
    from ..offline import prepare, rerank_run
    from ..trec.runs import write_run
    from .catalogue import lucene_index

    products = {product.docid: product for product in icecat.read_products()}
    topics = icecat.queries()
    asked = _asked(shown, topics)
    retrieved = lucene_search(lucene_index(), topics, k=max(100, depth))
    # A query for which Lucene finds nothing has nothing to rerank; evaluation still counts it.
    retrieved = {qid: entries for qid, entries in retrieved.items() if entries}
    if lost := [topics[qid] for qid in asked if qid not in retrieved]:
        raise InputError(f"--query {lost[0]!r}: Lucene finds nothing in the catalogue, so there is no list to show")
    reranker = load_reranker(**model)
    before, after = output / "bm25.trec", output / f"darl-rerank.depth{depth}.trec"
    details = after.with_suffix(".jsonl")
    write_run(before, {qid: [(e.docid, e.score) for e in entries] for qid, entries in retrieved.items()}, "bm25")
    job = prepare(retrieved, topics, products, depth=depth)
    settings = {"depth": depth, "precision": reranker.engine.precision}
    rerank_run(reranker, job, after, details=details, settings=settings, restart=restart)

    rankings = _read_details(details)
    compared = _compare(before, after)
    if as_json:
        print_json({
            "output": str(output),
            "depth": depth,
            "trained": reranker.checkpoint.trained,
            **compared.to_dict(),
            "lists": {topics[qid]: [ranked.to_dict() for ranked in rankings[qid]] for qid in asked},
        })  # fmt: skip
        return
    for qid in asked:
        _print_before_and_after(topics[qid], retrieved[qid], rankings[qid], products, reranker.scale)
    click.echo(compared.told(depth))
    if not reranker.checkpoint.trained:
        click.echo("The model is untrained: it grades zero-shot, from the grade words alone.")
    click.echo(f"Runs, grades and probabilities are in {output}")


def _asked(shown: Sequence[str], topics: Mapping[str, str]) -> list[str]:
    """Ids of the queries to show; those of `shown`, or the default ones."""
    from ..errors import InputError

    ids = {text: qid for qid, text in topics.items()}
    if unknown := [text for text in shown if text not in ids]:
        some = ", ".join(list(ids)[::15])
        raise InputError(f"--query {unknown[0]!r} is not one of the demo's queries, such as {some}")
    return [ids[text] for text in shown or _SHOWN_QUERIES]


def _read_details(path: Path) -> dict[str, list[RankedDocument]]:
    from ..results import RankedDocument
    from ..trec.lines import read_lines

    rankings: dict[str, list[RankedDocument]] = {}
    for _, line in read_lines(path):
        values: dict[str, Any] = json.loads(line)
        rankings.setdefault(values["qid"], []).append(RankedDocument.from_dict(values))
    return rankings


def _print_before_and_after(
    query: str,
    retrieved: Sequence[RunEntry],
    ranking: Sequence[RankedDocument],
    products: Mapping[str, Document],
    scale: RelevanceScale,
) -> None:
    from .table import ranking_table

    old_ranks = {entry.docid: rank for rank, entry in enumerate(retrieved, 1)}
    best = ranking[:_SHOWN_DOCUMENTS]
    titles = [products[str(ranked.docid)].title for ranked in best]
    grades = ", ".join(f"{number} {grade.name}" for number, grade in enumerate(scale.grades))
    lines = [f"Query: {query}", "", "  BM25"]
    for rank, entry in enumerate(retrieved[:_SHOWN_DOCUMENTS], 1):
        lines.append(f"  {rank}  {entry.score:6.3f}  {' '.join(products[entry.docid].title.split())[:_TITLE_WIDTH]}")
    lines += ["", f"  Reranked; bars: probability of {grades}"]
    click.echo("\n".join(lines))
    old = [old_ranks[str(ranked.docid)] for ranked in best]
    show(ranking_table(best, titles, old_ranks=old, width=line_width() - 2), indent=2, fits=True)
    click.echo()


@dataclass(frozen=True, slots=True)
class _Comparison:
    """Mean nDCG@10 of the first stage, of the new order and of both fused; the latter two against the first."""

    queries: int
    first_stage: float
    reranked: float
    fused: float
    reranked_gain: PairedTest
    fused_gain: PairedTest

    def to_dict(self) -> dict[str, Any]:
        return {"measure": "nDCG@10", **asdict(self)}

    def told(self, depth: int) -> str:
        return (
            f"nDCG@10 over {self.queries} queries: BM25 {self.first_stage:.4f}, its first {depth} reranked "
            f"{self.reranked:.4f}\n{_difference(self.reranked_gain)}\n"
            f"both orders fused, as `darl-rerank rerank --fuse` does it, {self.fused:.4f}\n"
            f"{_difference(self.fused_gain)}"
        )


def _compare(before: Path, after: Path) -> _Comparison:
    from darl_rerank.trec.fusion import fuse_runs

    from .. import icecat
    from ..evaluation.ranking import evaluate_run
    from ..evaluation.significance import paired_test
    from ..trec.runs import in_given_order, read_run

    def ndcg(run: Run) -> Any:
        return evaluate_run(icecat.judgements(), run, ["nDCG@10"]).per_query["nDCG@10"]

    runs = read_run(before), read_run(after)
    fused = {qid: [hit.docid for hit in hits] for qid, hits in fuse_runs(runs).items()}
    old, new, both = ndcg(runs[0]), ndcg(runs[1]), ndcg(in_given_order(fused))
    means = (float(values.mean()) for values in (old, new, both))
    return _Comparison(len(old), *means, paired_test(new, old), paired_test(both, old))


def _difference(test: PairedTest) -> str:
    return (
        f"difference {test.difference:+.4f}, 95 % interval [{test.low:+.4f}, {test.high:+.4f}], p = {test.p:.4f}; "
        f"better on {test.wins}, worse on {test.losses}"
    )
