"""`darl-rerank train`: all stages of a training, by a recipe or by a few flags."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ..training.recipe import Recipe


@click.command()
@click.option("--config", type=click.Path(path_type=Path), help="The recipe (TOML).")
@click.option("--pairs", type=click.Path(path_type=Path), help="Instead of a recipe: JSONL of graded pairs.")
@click.option("--base", default="smollm2", show_default=True, help="With --pairs: smollm2, a folder, or a hub id.")
@click.option("--scale", default="trec4", show_default=True, help="With --pairs: a named scale.")
@click.option("--loss", default="occ", show_default=True, help="With --pairs.")
@click.option("--weights", type=click.Choice(["lora", "all"]), default="lora", show_default=True, help="With --pairs.")
@click.option("--epochs", type=float, default=1.0, show_default=True, help="With --pairs.")
@click.option("--max-length", type=int, default=192, show_default=True, help="With --pairs: tokens of a prompt.")
@click.option("--seed", type=int, default=0, show_default=True, help="With --pairs.")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="The checkpoint folder to make.")
@click.option("--work", type=click.Path(path_type=Path), help="Folder for the stages.  [default: OUTPUT.work]")
@click.option("--device", type=click.Choice(["auto", "cpu"]), default="auto", show_default=True)
@click.option("--dry-run", is_flag=True, help="Print counts, the plan and an estimate of time; train nothing.")
@click.option("--overwrite", is_flag=True, help="Replace an existing checkpoint.")
def train(
    config: Path | None, pairs: Path | None, output: Path, work: Path | None, device: str, dry_run: bool,
    overwrite: bool, **flags: Any,
) -> None:  # fmt: skip
    """Train: probe, select, fine-tune, interpolate, calibrate, evaluate.

    Give a recipe (--config) or, for the common case, a file of graded pairs (--pairs): a tenth of its queries is held
    out, and the stages but selection and evaluation are run. A killed training goes on in the stage it was in when the
    same command is given again. `accelerate launch` or torchrun starts it in several processes.
    """
    from ..files import check_output_folder
    from ..training.recipe import parse_recipe, read_recipe
    from ..training.run import train_by
    from ..training.stages import is_first_process
    from ..training.training_set import load_training_set

    if (config is None) == (pairs is None):
        raise click.UsageError("give either --config or --pairs")
    if config is not None:
        recipe = read_recipe(config)
    else:
        assert pairs is not None
        recipe = parse_recipe(_values(pairs, flags), pairs)
    if not dry_run:
        check_output_folder(output, overwrite=overwrite)
    work = work or output.with_name(output.name + ".work")
    recipe = with_bm25_runs(recipe, work)
    data = load_training_set(recipe)
    if is_first_process():
        click.echo(data.table(), err=True)
    if dry_run:
        from ..training.estimate import estimate, plan_table

        click.echo(plan_table(estimate(recipe, data)))
        return
    trained = train_by(recipe, data, output, work, device=None if device == "auto" else device, overwrite=overwrite)
    if trained is None:
        return
    for name, result in trained.stages.items():
        if name.startswith("finetune-"):
            rate = result["examples"] / max(result["seconds"], 1e-9)
            click.echo(f"{name}: {result['examples']} examples, {rate:.1f} examples/s", err=True)
    click.echo(f"{output}: trained; {output / 'README.md'} says on what and how well", err=True)


def _values(pairs: Path, flags: dict[str, Any]) -> dict[str, Any]:
    """The recipe that the flags stand for."""
    from ..trec.graded_pairs import iterate_graded_pairs

    # Which queries there are, not yet what their grades mean.
    queries = len({pair.qid for pair in iterate_graded_pairs(pairs, labels="ignored")})
    return {
        "seed": flags["seed"],
        "model": {"base": flags["base"], "scale": flags["scale"], "max_length": flags["max_length"]},
        "source": [{"name": pairs.stem, "pairs": pairs.name, "dev_queries": max(1, queries // 10)}],
        "probe": {},
        "finetune": {"loss": flags["loss"], "weights": flags["weights"], "epochs": flags["epochs"]},
        "interpolate": {},
    }


def with_bm25_runs(recipe: Recipe, work: Path) -> Recipe:
    """The recipe with a run for every source that asks for BM25 negatives; runs that are there are kept."""
    from ..training.stages import is_first_process, wait_for

    sources = []
    for source in recipe.sources:
        negatives = source.negatives
        if negatives is not None and negatives.bm25 and source.topics is not None and source.corpus is not None:
            run = work / "bm25" / f"{source.name}.trec"
            if not is_first_process():
                wait_for(run)
            elif not run.is_file():
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
