"""`darl-rerank exits`: early exits for a checkpoint, fitted to graded pairs."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .terminal import json_option, print_json, print_table

if TYPE_CHECKING:
    from ..model.checkpoint import Checkpoint

# Shares of the queries: a promise needs many, and new heads more than a calibration.
_TRAINING, _FITTING_OF_REST, _FITTING = 0.4, 1 / 3, 0.5


def _numbers(_context: click.Context, _option: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """ "8,14" as numbers."""
    if value is None:
        return None
    parts = [part.strip() for part in value.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts) or len(set(parts)) < len(parts):
        raise click.BadParameter(f"expected layers with commas between, such as 8,14, got {value!r}")
    return tuple(sorted(map(int, parts)))


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("pairs", type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), required=True, help="The checkpoint folder to make.")
@click.option("--layers", callback=_numbers, help="Behind which layers, such as 8,14.  [default: those that MODEL has]")
@click.option("--train-heads", is_flag=True, help="Train heads that MODEL has, too, not only those that it lacks.")
@click.option("--grade", help="The lowest grade that deserves a place.  [default: the middle one of the scale]")
@click.option(
    "--share",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.02,
    show_default=True,
    help="Of the documents of that grade or better, how much may leave, on average over queries.",
)
@click.option("--end-at", type=click.IntRange(min=1), help="End the model behind this exit: what stays leaves there.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--device", help="cpu, cuda …  [default: a GPU if there is one]")
@click.option("--overwrite", is_flag=True, help="Replace an existing checkpoint.")
@json_option
def exits(
    model: Path, pairs: Path, output: Path, layers: tuple[int, ...] | None, train_heads: bool, grade: str | None,
    share: float, end_at: int | None, seed: int, device: str | None, overwrite: bool, as_json: bool,
) -> None:  # fmt: skip
    """Let irrelevant documents leave MODEL early, by a rule fitted to PAIRS, a JSONL of query, document and grade.

    An exit is a head behind an earlier layer. A document leaves there if its probability of --grade or better lies
    below a threshold, the highest one at which at most --share of the documents that deserve a place leave, on average
    over queries like those of PAIRS. The model itself stays as it is: `rerank --exit off` runs all of it.

    Layers that were never asked for relevance know little of it. `train` with a table [exits] teaches them; MODEL then
    has heads, and they are calibrated on half of the queries of PAIRS, and the rule is chosen on the others. Heads that
    MODEL lacks are trained on two fifths of the queries, calibrated on one and their rule is chosen on two.

    --end-at makes a shorter model: everything that has not left before ends at that exit. Fit its grades and cuts anew
    with `calibrate`.
    """
    from ..errors import InputError, MissingDependencyError
    from ..files import check_output_folder, temporary_folder

    for module in ("torch", "transformers", "pydantic", "scipy"):
        if find_spec(module) is None:
            raise MissingDependencyError(module, "train")
    from ..model.checkpoint import Checkpoint
    from ..training.recipe.settings import ExitsStage
    from ..training.stages.exits import PairsOfExits, halves, with_exits
    from ..trec.graded_pairs import read_graded_pairs

    check_output_folder(output, overwrite=overwrite)
    checkpoint = Checkpoint.load(model)
    if checkpoint.exported:
        raise InputError("is an export; fit the exits of the checkpoint that it was made from", path=model)
    own = () if checkpoint.exits is None else checkpoint.exits.layers
    if layers is None and not own:
        raise click.UsageError(f"{model} has no exits: say with --layers behind which layers they are to be")
    stage = ExitsStage(layers or own, grade=grade, share=share)
    stage.lowest_grade(checkpoint.scale)
    if end_at is not None and end_at not in stage.layers:
        raise click.UsageError(f"--end-at {end_at} is not one of the exits: {', '.join(map(str, stage.layers))}")
    names = tuple(each.name for each in checkpoint.scale.grades)
    graded = read_graded_pairs(pairs, grades=len(names), names=names)
    training: Any = []
    if train_heads or set(stage.layers) - set(own):
        training, graded = halves(graded, seed, _TRAINING)
    fitting, ruling = halves(graded, seed, _FITTING_OF_REST if training else _FITTING)
    with temporary_folder(output) as folder:
        made, facts = with_exits(
            checkpoint, PairsOfExits(training, fitting, ruling), stage, folder, device=device, seed=seed
        )
    made = made.replace(provenance={**made.provenance, "exits": facts})
    if end_at is not None:
        made = made.ending_at(end_at)
    made.save(output, overwrite=overwrite)
    if as_json:
        print_json({"checkpoint": str(output), "end_at": end_at, **facts})
    else:
        _show(made, facts, output)


def _show(made: Checkpoint, facts: dict[str, Any], output: Path) -> None:
    rule = facts.get("rule")
    if rule is None:
        click.echo(f"nothing leaves early: {facts['no rule']}")
    else:
        found = rule["facts"]
        rows = [[layer, f"{share:.1%}"] for layer, share in found["left_by_layer"].items()]
        print_table(["behind layer", "of the pairs leave"], rows)
        click.echo(
            f"{rule['promise']}, fitted on {found['queries']} queries: of {found['relevant']} documents that deserve a "
            f"place {found['relevant_left']} leave"
        )
    ends = "" if made.layers is None else f", ends behind layer {made.layers}"
    click.echo(f"{output}: {len(facts['layers'])} exits fitted{ends}")
