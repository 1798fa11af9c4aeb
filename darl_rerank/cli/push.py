"""`darl-rerank push`: a checkpoint or an export to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

import click

from .terminal import json_option, print_json


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("repository")
@click.option("--license", help="The weights' licence for the card, such as apache-2.0.  [default: what it says]")
@click.option("--revision", help="The branch, made if it is not there.  [default: main]")
@click.option("--private/--public", default=None, help="For a repository that is made.  [default: as the account has]")
@click.option("--message", help="Of the commit.")
@json_option
def push(
    model: Path,
    repository: str,
    license: str | None,
    revision: str | None,
    private: bool | None,
    message: str | None,
    as_json: bool,
) -> None:
    """Upload the checkpoint MODEL, exported or not, to REPOSITORY (org/name) in one commit.

    The repository is made if it is not there. Log in first with `hf auth login`, or set HF_TOKEN.
    """
    from ..model.checkpoint import Checkpoint

    checkpoint = Checkpoint.load(model)
    url = checkpoint.push_to_hub(repository, license=license, revision=revision, private=private, message=message)
    if as_json:
        print_json({"repository": repository, "commit": url})
    else:
        click.echo(url)
