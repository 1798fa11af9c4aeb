"""`darl-rerank init`: an untrained checkpoint that grades zero-shot."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--base", default="smollm2", show_default=True, help="smollm2, a local folder, or a hub id.")
@click.option("--scale", default="trec4", show_default=True, help="A named scale, or a JSON file with a scale.")
@click.option("--prompt", "prompt_file", type=click.Path(path_type=Path), help="A JSON file with a prompt.")
@click.option("--max-length", type=click.IntRange(min=32), help="Longest sequence in tokens.  [default: 512]")
@click.option("--overwrite", is_flag=True, help="Replace an existing checkpoint.")
def init(
    folder: Path, base: str, scale: str, prompt_file: Path | None, max_length: int | None, overwrite: bool
) -> None:
    """Make an untrained checkpoint in FOLDER.

    Its head starts from the rows that the base model's LM head has for the words of each grade, so it can rerank
    before it has been trained, and training starts from there.
    """
    from ..model.checkpoint import Checkpoint
    from ..model.prompt import Prompt
    from ..model.scale import RelevanceScale

    chosen = RelevanceScale.from_dict(_read_json(Path(scale))) if Path(scale).is_file() else RelevanceScale.named(scale)
    prompt = None if prompt_file is None else Prompt.from_dict(_read_json(prompt_file))
    checkpoint = Checkpoint.from_base(base, chosen, prompt)
    if max_length is not None:
        changed = Prompt.from_dict({**checkpoint.prompt.to_dict(), "max_length": max_length})
        checkpoint = checkpoint.replace(prompt=changed)
        checkpoint.encoder()  # refuses a length that leaves no room for a document
    checkpoint.save(folder, overwrite=overwrite)
    click.echo(f"{folder}: untrained checkpoint on {base}, {len(chosen)} grades ({chosen.name})", err=True)


def _read_json(path: Path) -> dict[str, object]:
    from ..errors import InputError

    try:
        values = json.loads(path.read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"expected JSON: {error}", path=path) from error
    if not isinstance(values, dict):
        raise InputError(f"expected a JSON object, got {type(values).__name__}", path=path)
    return values
