"""`darl-rerank train`: train by a recipe."""

from __future__ import annotations

from pathlib import Path

import click


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
    data = load_training_set(recipe)
    click.echo(data.table(), err=True)
    if dry_run:
        return
    work = work or output.with_name(output.name + ".work")
    outcome = train_by(recipe, data, output, work, device=None if device == "auto" else device, overwrite=overwrite)
    rate = outcome.examples / max(outcome.seconds, 1e-9)
    click.echo(
        f"{output}: {outcome.examples} examples in {outcome.steps} steps, {outcome.seconds:.0f} s "
        f"({rate:.1f} examples/s), loss {outcome.loss:.4f}",
        err=True,
    )
