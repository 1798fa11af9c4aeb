"""`darl-rerank search`: retrieve, rerank, and show the ranking in the terminal."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from .options import budget_option, depth_or_auto, exit_option, load_reranker, model_options
from .terminal import json_option, line_width, print_json, show

if TYPE_CHECKING:
    from ..model.scale import RelevanceScale
    from ..results import RankedDocument, Ranking
    from ..trec.corpora import Document

    FirstStage = Callable[[str, int], list[Document]]


log = logging.getLogger(__name__)

# Documents that --depth auto may judge.
_AUTO_DEPTH = 100


@click.command()
@click.argument("query", nargs=-1)
@click.option(
    "--index",
    "-i",
    "indexes",
    type=click.Path(path_type=Path),
    multiple=True,
    help="A folder of `darl-rerank index`, or any Lucene index with stored texts. Given several times, what they find "
    "is fused by reciprocal rank.  [default: the product catalogue that comes with the package]",
)
@click.option("-k", type=click.IntRange(min=1), default=10, show_default=True, help="Documents to show.")
@click.option(
    "--depth",
    callback=depth_or_auto,
    default="50",
    show_default=True,
    help="Documents to judge; with auto as many of the first 100 as may reach the best -k.",
)
@budget_option
@json_option
@model_options
@exit_option
def search(
    query: tuple[str, ...],
    indexes: tuple[Path, ...],
    k: int,
    depth: int | Literal["auto"],
    budget_ms: float | None,
    as_json: bool,
    **model: str | int | None,
) -> None:
    """Find documents for QUERY, grade them and show the best.

    Without QUERY, queries are read from the terminal or standard input, one a line, until it ends.
    """
    from ..errors import InputError
    from ..results import Ranking

    given = open_first_stage(indexes) if indexes else None
    reranker = load_reranker(**model)
    # The catalogue's index may have to be made first: a wrong model is not to be said a minute later.
    first_stage = given or open_first_stage((_catalogue(),))
    if budget_ms is not None:
        reranker.warm_up()

    def answer(text: str) -> None:
        # A shorter list than is shown would leave places empty.
        found = first_stage(text, _AUTO_DEPTH if depth == "auto" else max(k, depth))
        effort: dict[str, Any] = {"budget_ms": budget_ms, "depth": depth if depth == "auto" else None}
        ranking = reranker.rerank(text, found, top_k=k, **effort) if found else Ranking()
        if as_json:
            _print_json(text, ranking)
        else:
            _print(text, ranking, reranker.scale)

    if query:
        answer(" ".join(query))
        return
    interactive = sys.stdin.isatty()
    for text in _asked(interactive):
        try:
            answer(text)
        except InputError as error:
            # Somebody who types goes on typing; a file of queries is wrong as a whole.
            if not interactive:
                raise
            log.error(f"{error}")


def _asked(interactive: bool) -> Iterator[str]:
    while True:
        try:
            # The prompt would end up among the results if those go to a file.
            line = input("query> " if interactive and sys.stdout.isatty() else "")
        except EOFError:
            return
        if line.strip():
            yield line.strip()


def _print_json(query: str, ranking: Ranking) -> None:
    results = [
        {**ranked.to_dict(), "first_stage_rank": ranked.index + 1, "text": ranked.document.full_text}
        for ranked in ranking
    ]
    # One line a query.
    print_json({"query": query, "judged": ranking.judged, "results": results}, indent=None)


def _print(query: str, ranking: Ranking, scale: RelevanceScale) -> None:
    from .table import ranking_table

    if not ranking:
        click.echo(f"{query}: nothing found\n")
        return
    titles = [_shown(ranked) for ranked in ranking]
    grades = ", ".join(f"{number} {grade.name}" for number, grade in enumerate(scale.grades))
    click.echo(f"{query}: the best {len(ranking)} of {ranking.judged} judged; probability of {grades}\n")
    show(
        ranking_table(ranking, titles, old_ranks=[ranked.index + 1 for ranked in ranking], width=line_width()),
        fits=True,
    )
    click.echo()


def _shown(ranked: RankedDocument) -> str:
    """The first line of a document, or of its best window with the characters that it holds."""
    if ranked.span is None or ranked.span == (0, len(ranked.text)):
        return ranked.text.split("\n", 1)[0]
    start, end = ranked.span
    return f"[{start}:{end}] {ranked.text[start:end]}"


def _catalogue() -> Path:
    from .catalogue import lucene_index

    return lucene_index()


def open_first_stage(indexes: Sequence[Path]) -> FirstStage:
    """What searches these indexes: query and depth in, documents out; several are fused by reciprocal rank.

    Raises:
        InputError: not an index.
        MissingDependencyError: what reads it is not installed.
    """
    return _fused([_open(path) for path in indexes])


def _open(path: Path) -> FirstStage:
    from darl_rerank.adapters import document_store

    return _faiss(path) if document_store.is_document_folder(path) else _lucene(path)


def _lucene(path: Path) -> FirstStage:
    from darl_rerank.adapters.lucene import LuceneDocuments, lucene_hits, open_lucene_index

    searcher = open_lucene_index(path)
    documents = LuceneDocuments(searcher)
    return lambda query, depth: [documents[hit.docid] for hit in lucene_hits(searcher, query, depth)]


def _faiss(path: Path) -> FirstStage:
    from darl_rerank.adapters.faiss import FaissRetriever

    searcher = FaissRetriever.load(path)
    return lambda query, depth: [found.document for found in searcher.candidates([query], depth)[0]]


def _fused(stages: list[FirstStage]) -> FirstStage:
    if len(stages) == 1:
        return stages[0]
    from darl_rerank.trec.fusion import fuse

    def search_all(query: str, depth: int) -> list[Document]:
        rankings = [stage(query, depth) for stage in stages]
        documents = {document.docid: document for ranking in reversed(rankings) for document in ranking}
        return [documents[hit.docid] for hit in fuse(rankings, top_k=depth)]

    return search_all
