"""`darl-rerank train`: all stages of a training, by a recipe or by a few flags."""

from __future__ import annotations

import logging
import math
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .terminal import json_option, print_json

if TYPE_CHECKING:
    from ..model.checkpoint import Checkpoint
    from ..training.data.training_set import TrainingSet
    from ..training.recipe.settings import Recipe


log = logging.getLogger(__name__)

# Of `darl_rerank.training.losses`, which needs torch.
_LOSSES = ("occ", "ce", "label_smoothing", "sord", "emd", "corn")


@click.command()
@click.option("--config", type=click.Path(path_type=Path), help="The recipe (TOML).")
@click.option("--pairs", type=click.Path(path_type=Path), help="Instead of a recipe: JSONL of graded pairs.")
@click.option(
    "--base",
    default="smollm2-darl",
    show_default=True,
    help="With --pairs: a checkpoint to go on from (folder or name), or a base model: smollm2, folder, hub id.",
)
@click.option("--scale", help="With --pairs and a base model: a named scale.  [default: trec4]")
@click.option("--loss", type=click.Choice(_LOSSES), default="occ", show_default=True, help="With --pairs.")
@click.option(
    "--weights",
    type=click.Choice(["lora", "all", "head"]),
    default="lora",
    show_default=True,
    help="With --pairs: what is trained besides the head.",
)
@click.option("--epochs", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True, help="With --pairs.")
@click.option(
    "--max-length",
    type=int,
    help="With --pairs: tokens of a prompt.  [default: the checkpoint's; 192 for a base model]",
)
@click.option(
    "--max-documents",
    type=click.IntRange(min=1),
    help="With --pairs: at most so many documents a query, labels as even as they can be.  [default: all]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="With --pairs.")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="The checkpoint folder to make.")
@click.option("--work", type=click.Path(path_type=Path), help="Folder for the stages.  [default: OUTPUT.work]")
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu"]),
    default="auto",
    show_default=True,
    help="auto takes a GPU if there is one.",
)
@click.option("--dry-run", is_flag=True, help="Print counts, the plan and an estimate of time; train nothing.")
@click.option("--overwrite", is_flag=True, help="Replace an existing checkpoint.")
@json_option
def train(
    config: Path | None, pairs: Path | None, output: Path, work: Path | None, device: str, dry_run: bool,
    overwrite: bool, as_json: bool, **flags: Any,
) -> None:  # fmt: skip
    """Train: probe, select, fine-tune, interpolate, calibrate, evaluate.

    Give a recipe (--config) or, for the common case, a file of graded pairs (--pairs): a fifth of its queries or more
    is held out, and the stages but selection and evaluation are run. The model it began with is kept if the trained one
    is worse on what was held out. A killed training goes on in the stage it was in when the same command is given
    again. `accelerate launch` or torchrun starts it in several processes.
    """
    _require_packages()
    from ..files import check_output_folder
    from ..training.card import against_earlier
    from ..training.data.training_set import load_training_set
    from ..training.recipe.read import parse_recipe, read_recipe
    from ..training.run import train_by
    from ..training.work_folder import is_first_process

    if (config is None) == (pairs is None):
        raise click.UsageError("give either --config or --pairs")
    if config is not None:
        recipe = read_recipe(config)
    else:
        assert pairs is not None
        recipe = parse_recipe(recipe_values(pairs, flags), pairs)
    if not dry_run:
        check_output_folder(output, overwrite=overwrite)
    work = work or output.with_name(output.name + ".work")
    recipe = with_bm25_runs(recipe, work)
    data = load_training_set(recipe)
    if is_first_process():
        log.info(data.table())
    used = None if device == "auto" else device
    if dry_run:
        _print_plan(recipe, data, used, as_json=as_json)
        return
    trained = train_by(recipe, data, output, work, device=used, overwrite=overwrite)
    if trained is None:
        return
    for name, result in trained.stages.items():
        if name.startswith("finetune-"):
            rate = result["examples"] / max(result["seconds"], 1e-9)
            log.info(f"{name}: {result['examples']} examples, {rate:.1f} examples/s")
    against = trained.stages["merge"]["against_earlier"]
    if against is not None:
        log.log(logging.WARNING if against["keep"] else logging.INFO, against_earlier(against))
    if as_json:
        print_json({"checkpoint": str(output), "stages": trained.stages})
    log.info(f"{output}: trained; {output / 'README.md'} says on what and how well")


def _print_plan(recipe: Recipe, data: TrainingSet, device: str | None, *, as_json: bool) -> None:
    from ..training.estimate import estimate, plan_table

    plan = estimate(recipe, data, device=device)
    if as_json:
        print_json({"plan": [asdict(stage) for stage in plan]})
    else:
        click.echo(plan_table(plan))


def _require_packages() -> None:
    from ..errors import MissingDependencyError

    for module in ("torch", "transformers", "accelerate", "pydantic", "sklearn", "scipy"):
        if find_spec(module) is None:
            raise MissingDependencyError("scikit-learn" if module == "sklearn" else module, "train")


# What calibration and the choice between models need at least to say anything, if the file has it.
_HELD_OUT_PAIRS = 200
# With fewer a slope in novelty follows chance: 15 pairs gave one of -2.4, within its range.
_SLOPE_PAIRS = 100


def recipe_values(pairs: Path, flags: dict[str, Any]) -> dict[str, Any]:
    """The recipe that the flags stand for."""
    from ..errors import InputError
    from ..model.checkpoint import Checkpoint
    from ..model.scale import RelevanceScale
    from ..model.shipped import checkpoint_folder, is_checkpoint
    from ..trec.graded_pairs import read_graded_pairs

    base, weights = flags["base"], flags["weights"]
    begun: Checkpoint | None = None
    if is_checkpoint(base):
        if flags["scale"] is not None:
            raise InputError(f"--scale can't be given with a checkpoint, which has its own; {base} is one")
        folder = checkpoint_folder(base)
        begun = Checkpoint.load(folder)
        scale = begun.scale
        model = {"checkpoint": str(folder.resolve()), "max_length": flags["max_length"], "keep_if_better": True}
        # Under LoRA the checkpoint's own adapter is trained on, which has no zero to interpolate from.
        interpolate = weights != "lora" or begun.adapter_folder is None
    else:
        name = flags["scale"] or "trec4"
        scale = RelevanceScale.named(name)
        model = {"base": base, "scale": name, "max_length": flags["max_length"] or 192}
        interpolate = True
    exits = _exits_of(begun) if begun is not None else {}
    names = tuple(grade.name for grade in scale.grades)
    sizes: dict[str, int] = {}
    for pair in read_graded_pairs(pairs, grades=len(scale), names=names):
        sizes[pair.qid] = sizes.get(pair.qid, 0) + 1
    held_out = held_out_queries(list(sizes.values()))
    held_out_pairs = held_out * sum(sizes.values()) / len(sizes)
    return {
        "seed": flags["seed"],
        "model": {key: value for key, value in model.items() if value is not None},
        "source": [
            # Whoever hands in graded pairs expects all of them to be used.
            {
                "name": pairs.stem,
                "pairs": pairs.name,
                "dev_queries": held_out,
                "max_documents": flags.get("max_documents"),
            }
        ],
        "probe": {},
        "calibrate": {"novelty": held_out_pairs >= _SLOPE_PAIRS},
        "finetune": {"loss": flags["loss"], "weights": weights, "epochs": flags["epochs"]},
        **({"interpolate": {}} if interpolate else {}),
        **exits,
    }


def _exits_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """The recipe's table for the exits that a checkpoint has, for a model that goes on from it to have them too."""
    exits = checkpoint.exits
    if exits is None:
        return {}
    table: dict[str, Any] = {"layers": list(exits.layers)}
    if exits.rule is not None:
        promise = exits.rule.promise
        table |= {"grade": checkpoint.scale.grades[promise.grade].name, "share": round(1 - promise.level, 12)}
    return {"exits": table}


def held_out_queries(sizes: list[int]) -> int:
    """Queries to hold out, of queries with so many pairs each: a fifth, or more for enough pairs, up to half."""
    from ..errors import InputError

    if len(sizes) < 2:
        raise InputError("--pairs needs at least two queries: one to train on, one to hold out")
    for_pairs = math.ceil(_HELD_OUT_PAIRS * len(sizes) / sum(sizes))
    return max(1, min(max(len(sizes) // 5, for_pairs), len(sizes) // 2))


def with_bm25_runs(recipe: Recipe, work: Path) -> Recipe:
    """The recipe with a run for every source that asks for BM25 negatives; runs that are there are kept."""
    from ..training.work_folder import is_first_process, wait_for

    sources = []
    for source in recipe.sources:
        negatives = source.negatives
        if negatives is not None and negatives.bm25 and source.topics is not None and source.corpus is not None:
            run = work / "bm25" / f"{source.name}.trec"
            if not is_first_process():
                wait_for(run)
            elif not run.is_file():
                _retrieve(source.topics, source.corpus, run, negatives.depth)
            source = replace(source, negatives=replace(negatives, run=run, bm25=False))  # noqa: PLW2901
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
        build_lucene_index(read_corpus(corpus), index)
        found = lucene_search(index, read_topics(topics), k=depth)
    rankings = {qid: [(entry.docid, entry.score) for entry in entries] for qid, entries in found.items()}
    write_run(run, rankings, "bm25")
