"""`darl-rerank demo`: lists that come with the package, before and after, in a minute or two."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import exit_option, load_reranker, model_options
from .terminal import json_option, line_width, print_json, show

if TYPE_CHECKING:
    from ..offline import RerankJob
    from ..reranker import Reranker
    from ..results import RankedDocument

_FOLDER = Path(__file__).resolve().parents[1] / "data" / "demo"
_SHOWN_DOCUMENTS = 5
_TITLE_WIDTH = 90


@dataclass(frozen=True, slots=True)
class DemoLists:
    """Queries with BM25's first ten documents, which the model that ships never saw in training.

    Attributes:
        name: of the collection.
        about: what it is, for a heading.
        shown: the query whose list is shown: the first drawn in whose list a worse document stands above a better one.
        grade_names: what people's grades mean.
    """

    name: str
    about: str
    shown: str
    grade_names: Mapping[int, str]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Each with "qid", "query", "documents" (id, text, score) and "grades" by document id."""
        with gzip.open(_FOLDER / f"{self.name}.jsonl.gz", "rt", encoding="utf-8") as stream:
            yield from map(json.loads, stream)

    def job(self) -> tuple[RerankJob, dict[str, Mapping[str, int]]]:
        """The lists as a job, and the grades that people gave."""
        from ..offline import RerankJob

        job, grades = RerankJob({}, {}), {}
        for row in self.rows():
            qid = row["qid"]
            job.queries[qid] = row["query"]
            job.candidates[qid] = [(document["id"], document["text"]) for document in row["documents"]]
            job.scores[qid] = [document["score"] for document in row["documents"]]
            grades[qid] = row["grades"]
        return job, grades

    def for_page(self) -> dict[str, Any]:
        """The lists as `AppSettings.demo` has them, the query that is shown first."""
        queries = []
        for row in self.rows():
            people = {
                docid: {"grade": grade, "name": self.grade_names[grade]} for docid, grade in row["grades"].items()
            }
            queries.append({"query": row["query"], "documents": row["documents"], "people": people})
        queries.sort(key=lambda row: row["query"] != self.shown)
        return {"about": self.about, "queries": queries}


LISTS = (
    DemoLists(
        "medquad",
        "Medical questions, answered by US health institutes",
        "How many people are affected by mitochondrial complex III deficiency?",
        {1: "the answer"},
    ),
    DemoLists(
        "icecat",
        "Product searches in a catalogue, far from what the model was trained on",
        "sd card",
        {0: "irrelevant", 1: "related", 2: "relevant", 3: "perfect"},
    ),
)


@click.command()
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs/demo"),
    show_default=True,
    help="Folder for the runs, with scores, grades and probabilities.",
)
@click.option("--restart", is_flag=True, help="Begin anew instead of going on with an interrupted demo.")
@json_option
@model_options
@exit_option
def demo(output: Path, restart: bool, as_json: bool, **model: str | int | None) -> None:
    """Rerank lists that come with the package: what changes, and what it is worth.

    Medical questions and product searches, 30 of each, with BM25's first ten documents; the model was trained on
    neither. Shows a list before and after, then nDCG@10 of BM25, of the model, and of both with fuse="auto". An
    interrupted demo goes on when the same command is given again.
    """
    from ..offline import rerank_run

    reranker = load_reranker(**model)
    found = []
    for lists in LISTS:
        job, grades = lists.job()
        if not as_json:
            click.echo(f"{lists.about}\n")
            _print_before_and_after(reranker, lists, job)
        run = output / f"{lists.name}.trec"
        details = run.with_suffix(".jsonl")
        settings = {"precision": reranker.engine.precision}
        rerank_run(reranker, job, run, details=details, fuse="auto", settings=settings, restart=restart)
        compared = _compare(job, grades, details)
        found.append({"name": lists.name, "queries": len(job.queries), "nDCG@10": compared})
        if not as_json:
            _print_comparison(len(job.queries), compared)
    if as_json:
        print_json({"output": str(output), "trained": reranker.checkpoint.trained, "lists": found})
        return
    click.echo(
        f"Scores, grades and probabilities are in {output}. Next, with your own data:\n"
        "  darl-rerank rerank RUN TOPICS OUTPUT --corpus CORPUS --fuse auto   rerank a TREC run\n"
        "  darl-rerank train --pairs GRADED.jsonl --output MODEL             train on your own grades\n"
        "  darl-rerank serve --demo                                           an HTTP server, and this demo as a page"
    )


def _print_before_and_after(reranker: Reranker, lists: DemoLists, job: RerankJob) -> None:
    from .table import ranking_table

    qid = next(qid for qid, query in job.queries.items() if query == lists.shown)
    documents = [
        {"id": docid, "text": text, "score": score}
        for (docid, text), score in zip(job.candidates[qid], job.scores[qid], strict=True)
    ]
    ranking = reranker.rerank(job.queries[qid], documents)
    lines = [f"  {lists.shown}", "", "  BM25"]
    for place, document in enumerate(documents[:_SHOWN_DOCUMENTS], 1):
        lines.append(f"  {place}  {document['score']:6.3f}  {_line(str(document['text']))}")
    lines += ["", f"  Reranked; bars: probability of {_grades(reranker)}"]
    click.echo("\n".join(lines))
    best: Sequence[RankedDocument] = ranking[:_SHOWN_DOCUMENTS]
    old = [ranked.index + 1 for ranked in best]
    titles = [_line(ranked.text) for ranked in best]
    show(ranking_table(best, titles, old_ranks=old, width=line_width() - 2), indent=2, fits=True)
    click.echo()


def _grades(reranker: Reranker) -> str:
    return ", ".join(f"{number} {grade.name}" for number, grade in enumerate(reranker.scale.grades))


def _line(text: str) -> str:
    return " ".join(text.split())[:_TITLE_WIDTH]


def _compare(job: RerankJob, grades: Mapping[str, Mapping[str, int]], details: Path) -> dict[str, Any]:
    """nDCG@10 of each order, and what the others gain over BM25 with a 95 % interval."""
    from ..evaluation.ranking import evaluate_run
    from ..evaluation.significance import paired_test
    from ..trec.lines import read_lines
    from ..trec.runs import in_given_order

    scored: dict[str, list[dict[str, Any]]] = {}
    for _, line in read_lines(details):
        values = json.loads(line)
        scored.setdefault(values["qid"], []).append(values)

    def ordered(key: str) -> dict[str, list[str]]:
        return {
            qid: [v["docid"] for v in sorted(values, key=lambda v: -v.get(key, v["score"]))]
            for qid, values in scored.items()
        }

    orders = {
        "BM25": {qid: [docid for docid, _ in documents] for qid, documents in job.candidates.items()},
        "model": ordered("score"),
        "fuse auto": {qid: [v["docid"] for v in values] for qid, values in scored.items()},
    }
    qrels = {qid: dict(judged) for qid, judged in grades.items()}
    per_query = {
        name: evaluate_run(qrels, in_given_order(order), ["nDCG@10"]).per_query["nDCG@10"]
        for name, order in orders.items()
    }
    result: dict[str, Any] = {"BM25": {"value": float(per_query["BM25"].mean())}}
    for name in ("model", "fuse auto"):
        test = paired_test(per_query[name], per_query["BM25"])
        mean = float(per_query[name].mean())
        result[name] = {"value": mean, "gain": test.difference, "low": test.low, "high": test.high}
    return result


def _print_comparison(queries: int, compared: Mapping[str, Any]) -> None:
    click.echo(f"  nDCG@10 over {queries} queries")
    for name, values in compared.items():
        gain = f"  {values['gain']:+.3f} [{values['low']:+.3f}, {values['high']:+.3f}]" if "gain" in values else ""
        click.echo(f"  {name:10} {values['value']:.3f}{gain}")
    click.echo()
