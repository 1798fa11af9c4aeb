"""`darl-rerank init`: a checkpoint of a base model, untrained, or of a reranker as it is."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import click

from .terminal import json_option, print_json

log = logging.getLogger(__name__)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--base", help="smollm2, a local folder, or a hub id.  [default: smollm2]")
@click.option("--from", "reranker", help="Instead of a base: a reranker that answers yes or no, a folder or a hub id.")
@click.option("--family", help="With --from: the reranker's family.  [default: what its name says]")
@click.option("--task", help="With --from: what the reranker is asked to judge.  [default: its authors' own]")
@click.option("--scale", help="A named scale, or a JSON file with a scale.  [default: trec4; with --from yes and no]")
@click.option(
    "--prompt", "prompt_file", type=click.Path(path_type=Path), help="With --base: a JSON file with a prompt."
)
@click.option("--max-length", type=click.IntRange(min=32),
              help="Longest sequence in tokens.  [default: 512; with --from its authors' own]")  # fmt: skip
@click.option("--prefill-layers", type=click.IntRange(min=1),
              help="With --base: run all tokens through so many layers, the last one through all.")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace an existing checkpoint.")
@json_option
def init(
    folder: Path, base: str | None, reranker: str | None, family: str | None, task: str | None, scale: str | None,
    prompt_file: Path | None, max_length: int | None, prefill_layers: int | None, overwrite: bool, as_json: bool,
) -> None:  # fmt: skip
    """Make a checkpoint in FOLDER.

    Of a base model (--base): untrained; its head starts from the rows that the model's LM head has for the words of
    each grade, so it can rerank before it has been trained, and training starts from there. Of a reranker (--from): it
    scores as its authors' code does.
    """
    from ..model.checkpoint import Checkpoint
    from ..model.prompt import Prompt
    from ..model.scale import RelevanceScale

    chosen = None
    if scale is not None:
        file = Path(scale)
        chosen = RelevanceScale.from_dict(_read_json(file)) if file.is_file() else RelevanceScale.named(scale)
    if reranker is not None:
        if base is not None or prompt_file is not None or prefill_layers is not None:
            raise click.UsageError(
                "--from can't be given with --base, --prompt or --prefill-layers: the reranker stays as it is"
            )
        checkpoint = Checkpoint.from_reranker(reranker, family=family, task=task, scale=chosen, max_length=max_length)
        state, source = f"reranker ({checkpoint.provenance['reranker']['family']})", reranker
    else:
        if family is not None or task is not None:
            raise click.UsageError("--family and --task go with --from")
        prompt = None if prompt_file is None else Prompt.from_dict(_read_json(prompt_file))
        state, source = "untrained checkpoint", base or "smollm2"
        checkpoint = Checkpoint.from_base(source, chosen or RelevanceScale.named("trec4"), prompt,
                                          prefill_layers=prefill_layers)  # fmt: skip
        if max_length is not None:
            changed = Prompt.from_dict({**checkpoint.prompt.to_dict(), "max_length": max_length})
            checkpoint = checkpoint.replace(prompt=changed)
            checkpoint.encoder()  # refuses a length that leaves no room for a document
    checkpoint.save(folder, overwrite=overwrite)
    made = checkpoint.scale
    if as_json:
        facts = {"checkpoint": str(folder), "base": source, "scale": made.name, "grades": len(made)}
        print_json({**facts, "trained": checkpoint.trained})
    log.info(f"{folder}: {state} on {source}, {len(made)} grades ({made.name})")


def _read_json(path: Path) -> dict[str, object]:
    from ..errors import InputError

    try:
        values = json.loads(path.read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"expected JSON: {error}", path=path) from error
    if not isinstance(values, dict):
        raise InputError(f"expected a JSON object, got {type(values).__name__}", path=path)
    return values
