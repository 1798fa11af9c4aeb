"""`darl-rerank train`: train by a recipe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ..training.recipe import Recipe


@click.command()
@click.option("--config", required=True, type=click.Path(path_type=Path), help="The recipe (TOML).")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="The checkpoint folder to make.")
@click.option("--work", type=click.Path(path_type=Path), help="Folder for what a resume needs.  [default: OUTPUT.work]")
@click.option("--device", type=click.Choice(["auto", "cpu"]), default="auto", show_default=True)
@click.option("--dry-run", is_flag=True, help="Read the data, print counts, train nothing.")
@click.option("--overwrite", is_flag=True, help="Replace an existing checkpoint.")
def train(config: Path, output: Path, work: Path | None, device: str, dry_run: bool, overwrite: bool) -> None:
    """Train by the recipe CONFIG.

    An interrupted training goes on where it was when the same command is given again.
    """
    from ..errors import DarlRerankError
    from ..training.recipe import read_recipe
    from ..training.run import load_training_set, train_by

    recipe = read_recipe(config)
    if output.exists() and not overwrite and not dry_run:
        raise DarlRerankError(f"{output}: already exists; choose another folder or ask to overwrite it")
    work = work or output.with_name(output.name + ".work")
    recipe = with_bm25_runs(recipe, work)
    data = load_training_set(recipe)
    click.echo(data.table(), err=True)
    if dry_run:
        return
    outcome = train_by(recipe, data, output, work, device=None if device == "auto" else device, overwrite=overwrite)
    rate = outcome.examples / max(outcome.seconds, 1e-9)
    click.echo(
        f"{output}: {outcome.examples} examples in {outcome.steps} steps, {outcome.seconds:.0f} s "
        f"({rate:.1f} examples/s), loss {outcome.loss:.4f}",
        err=True,
    )


def with_bm25_runs(recipe: Recipe, work: Path) -> Recipe:
    """The recipe with a run for every source that asks for BM25 negatives; runs that are there are kept."""
    sources = []
    for source in recipe.sources:
        negatives = source.negatives
        if negatives is not None and negatives.bm25 and source.topics is not None and source.corpus is not None:
            run = work / "bm25" / f"{source.name}.trec"
            if not run.is_file():
                _retrieve(source.topics, source.corpus, run, negatives.depth)
            source = replace(source, negatives=replace(negatives, run=run))  # noqa: PLW2901
        sources.append(source)
    return replace(recipe, sources=tuple(sources))


def _retrieve(topics: Path, corpus: Path, run: Path, depth: int) -> None:
    import tempfile

    from ..adapters.lucene import build_lucene_index, lucene_search
    from ..trec.corpora import read_corpus
    from ..trec.runs import write_run
    from ..trec.topics import read_topics

    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder) / "index"
        # A document without text can't be trained on either.
        build_lucene_index((document for document in read_corpus(corpus) if document.full_text), index)
        found = lucene_search(index, read_topics(topics), k=depth)
    rankings = {qid: [(entry.docid, entry.score) for entry in entries] for qid, entries in found.items()}
    write_run(run, rankings, "bm25")
