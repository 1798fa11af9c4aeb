"""`darl-rerank export`: a checkpoint to ONNX, with proof that it grades the same."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path

import click

from .terminal import json_option, print_json, print_table

log = logging.getLogger(__name__)


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--precision",
    default="float32",
    show_default=True,
    metavar="NAME",
    help="float32, float16, int8 or int4 (fp32 and fp16 are taken too).",
)
@click.option(
    "--verify",
    type=click.Path(path_type=Path),
    help="Pairs to compare with torch on, as JSON lines; int8 and int4 are fitted to every other query's.  "
    "[default: pairs of the bundled catalogue]",
)
@click.option("--device", default="cpu", show_default=True, help="What to run the comparison on: cpu, cuda, cuda:1 …")
@click.option("--opset", type=click.IntRange(min=18), default=23, show_default=True)
@click.option("--overwrite", is_flag=True, help="Replace an existing folder.")
@json_option
def export(
    model: Path, out: Path, precision: str, verify: Path | None, device: str, opset: int, overwrite: bool, as_json: bool
) -> None:
    """Export the checkpoint MODEL to the folder OUT.

    OUT is written only if its results lie within the precision's bounds of torch's; otherwise the command ends with
    exit code 5 and names the layers that differ most.
    """
    from importlib.util import find_spec

    from ..errors import MissingDependencyError
    from ..files import check_output_folder
    from ..model.base_weights import require_torch
    from ..model.checkpoint import Checkpoint
    from ..trec.graded_pairs import read_graded_pairs

    require_torch()
    for module in ("onnx", "onnxscript", "onnxruntime", "scipy", "ir_measures"):
        if find_spec(module) is None:
            raise MissingDependencyError(module, "export")
    check_output_folder(out, overwrite=overwrite)
    checkpoint = Checkpoint.load(model)
    sample = None
    if verify is not None:
        sample = list(read_graded_pairs(verify, grades=len(checkpoint.scale), labels="optional"))
    if not checkpoint.trained:
        log.info("Note: this checkpoint is untrained; the export grades zero-shot, as it does.")
    from ..export.folder import export as export_folder

    parity = export_folder(
        checkpoint, out, precision=precision, sample=sample, opset=opset, device=device, overwrite=overwrite,
    )  # fmt: skip
    log.info(f"Use it with --model {out}, or in Python: Reranker.from_pretrained({str(out)!r})")
    if as_json:
        print_json(asdict(parity))
        return
    print_table(["against torch", precision], [list(row) for row in parity.shown().items()])
