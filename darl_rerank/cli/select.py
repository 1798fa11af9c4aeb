"""`darl-rerank select`: from an unlabelled pool the pairs worth labelling, as a file for annotators."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import model_options
from .terminal import json_option, print_json, print_table

if TYPE_CHECKING:
    from ..reranker import Reranker
    from ..trec.graded_pairs import GradedPair

log = logging.getLogger(__name__)


_PATH = click.Path(path_type=Path)


def _strategies(_context: click.Context, _option: click.Parameter, incomplete: str) -> list[str]:
    """What a shell offers for --strategy."""
    from ..training.selection.strategies import STRATEGIES

    return [name for name in STRATEGIES if name.startswith(incomplete)]


@click.command()
@click.argument("output", type=_PATH)
@click.option("--labelled", type=_PATH, required=True, help="JSONL of graded pairs: what there is to train on.")
@click.option("--pool", type=_PATH, help="JSONL of unlabelled pairs: query, document.")
@click.option("--run", "runs", type=_PATH, multiple=True, help="A TREC run to take the pool from; may be repeated.")
@click.option("--topics", type=_PATH, help="The queries of --run.")
@click.option("--corpus", type=_PATH, help="The documents of --run.")
@click.option(
    "--depth", type=click.IntRange(min=1), default=100, show_default=True, help="Documents of each query of a run."
)
@click.option("--exclude", type=_PATH, multiple=True, help="JSONL with pairs of a test set; may be repeated.")
@click.option(
    "--overlap",
    type=click.Choice(["error", "skip"]),
    default="error",
    show_default=True,
    help="What to do if the pool shares queries with --exclude.",
)
@click.option("--budget", type=click.IntRange(min=1), required=True, help="Pairs that can be labelled.")
@click.option(
    "--strategy",
    default="random",
    show_default=True,
    help="random, novel, uncertainty, dasa, knn, kcenter …",
    shell_complete=_strategies,
)
@click.option(
    "--band", type=float, nargs=2, default=(80.0, 99.5), show_default=True, help="Novelty percentiles, for dasa."
)
@click.option(
    "--per-query",
    type=click.IntRange(min=0),
    default=5,
    show_default=True,
    help="At most so many pairs of one query; 0: no limit.",
)
@click.option(
    "--held-out",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.2,
    show_default=True,
    help="Share of labelled queries that novelty is scaled by.",
)
@click.option(
    "--features",
    type=click.Choice(["base", "model"]),
    default="base",
    show_default=True,
    help="Whose features: those of the base model, before fine-tuning, or those of the model.",
)
@click.option(
    "--pool-features",
    type=_PATH,
    help="Folder with the pool's features, which are read and not computed: the folder `pool` of an earlier workspace.",
)
@click.option("--workspace", type=_PATH, help="Folder for features, kept to resume from.  [default: OUTPUT.work]")
@click.option("--seed", default=0, show_default=True)
@json_option
@model_options
def select(
    output: Path,
    labelled: Path,
    pool: Path | None,
    runs: tuple[Path, ...],
    topics: Path | None,
    corpus: Path | None,
    depth: int,
    exclude: tuple[Path, ...],
    overlap: str,
    budget: int,
    strategy: str,
    band: tuple[float, float],
    per_query: int,
    held_out: float,
    features: str,
    pool_features: Path | None,
    workspace: Path | None,
    seed: int,
    as_json: bool,
    **model: Any,
) -> None:
    """Choose BUDGET pairs of a pool and write them to OUTPUT, a JSONL file for annotators to fill in `grade`.

    The pool is --pool, or --run with --topics and --corpus. OUTPUT.summary.json says how much of it is novel, what was
    cut and why. An interrupted job goes on when the same command is given again.
    """
    from ..errors import InputError
    from ..files import atomic_write, check_output_file, check_outputs_apart
    from ..training.recipe.settings import SelectionSettings
    from ..training.selection.annotation import Annotation, write_annotations
    from ..training.selection.pool import labelled_split, pool_pairs, without_overlap
    from ..training.selection.select_pairs import select_pairs
    from ..training.selection.strategies import STRATEGIES
    from ..trec.graded_pairs import read_graded_pairs
    from .options import load_reranker

    if (pool is None) == (not runs) or (runs and (topics is None or corpus is None)):
        raise click.UsageError("give either --pool, or --run with --topics and --corpus")
    if strategy not in STRATEGIES:
        raise InputError(f"unknown selection strategy {strategy!r}; known: {', '.join(STRATEGIES)}")
    if not 0 <= band[0] < band[1] <= 100:
        raise click.BadParameter(f"expected two rising percentiles, got {band[0]:g} {band[1]:g}", param_hint="--band")
    check_output_file(output)
    check_outputs_apart([output], [labelled, pool, *runs, topics, corpus, *exclude])
    settings = SelectionSettings(band=band, per_query=per_query or None, seed=seed)
    reranker = load_reranker(**model)
    names = tuple(grade.name for grade in reranker.scale.grades)
    graded = read_graded_pairs(labelled, grades=len(reranker.scale), names=names)
    training, home = labelled_split(graded, held_out, seed=seed)
    tested = [pair for path in exclude for pair in read_graded_pairs(path, labels="ignored")]
    found = read_graded_pairs(pool, labels="ignored") if pool else pool_pairs(runs, topics, corpus, depth)  # type: ignore[arg-type]
    rows, cut = without_overlap(found, graded, tested, refuse=overlap == "error")
    folder = workspace or output.with_name(output.name + ".work")
    chosen = select_pairs(
        found, training, home, reranker, _feature_model(reranker, features, model), folder,
        strategy=strategy, budget=budget, settings=settings, rows=rows, pool_features=pool_features,
    )  # fmt: skip
    summary = chosen.summary
    summary["pool"] |= {"read": len(found), **cut}
    summary["cut"]["strangest"] = [_shown(found[row]) for row in chosen.above_band]
    picked = zip(chosen.rows, chosen.novelty, chosen.predicted, strict=True)
    write_annotations(output, (Annotation(found[row], new, p.tolist()) for row, new, p in picked))
    with atomic_write(output.with_name(output.name + ".summary.json")) as stream:
        json.dump(summary, stream, indent=1, ensure_ascii=False)
    log.info(summary["reason"])
    for warning in summary["warnings"]:
        log.warning(warning)
    log.info(f"{output}: {len(chosen.rows)} pairs to grade ({', '.join(names)})")
    if as_json:
        print_json(summary)
    else:
        _print(summary)


def _feature_model(reranker: Reranker, features: str, model: dict[str, Any]) -> Reranker:
    """What computes the features: the base model without adapter, or the model itself where the two are the same."""
    from ..engines.loading import load_engine
    from ..reranker import Reranker

    checkpoint = reranker.checkpoint
    if features == "model" or not checkpoint.trained:
        return reranker
    base = checkpoint.replace(folder=None, sha256={}, novelty=None, trained=False)
    engine = load_engine(base, "torch", device=model.get("device"), precision=model.get("precision"))
    return Reranker(base, engine, batch_tokens=model.get("batch_tokens"))


def _shown(pair: GradedPair) -> dict[str, str]:
    return {"query": pair.query[:80], "document": pair.document[:120]}


def _print(summary: dict[str, Any]) -> None:
    pool, cut, chosen = summary["pool"], summary["cut"], summary["chosen"]
    novel = pool["share_above_percentile"]
    rows = [
        ["in the pool", f"{pool['pairs']:,}", f"of {pool['queries']:,} queries"],
        ["left out before", f"{pool['duplicates']:,}", "duplicates"],
        ["", f"{pool['already_labelled']:,}", "already labelled"],
        ["", f"{pool['in_test_set']:,}", "of the test set's queries"],
        ["novel", f"{novel['80']:.1%}", "above the labelled set's 80th percentile (20 % if alike)"],
        ["", f"{novel['99']:.1%}", "above its 99th (1 % if alike)"],
        ["", f"{pool['estimated_new_share']:.1%}", "unlike the labelled set, estimated"],
        ["not eligible", f"{cut['below_band']:,}", "below the band"],
        ["", f"{cut['above_band']:,}", "above the band"],
        ["", f"{cut['beyond_cap']:,}", "beyond the cap for a query"],
        ["chosen", f"{chosen['pairs']:,}", f"of {chosen['queries']:,} queries"],
    ]
    print_table(["", "pairs", ""], rows, left=(0, 2))
