"""`darl-rerank calibrate`: refit a checkpoint's calibration on new graded pairs."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .terminal import json_option, print_json, print_table

if TYPE_CHECKING:
    from ..model.checkpoint import Checkpoint


log = logging.getLogger(__name__)


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("pairs", type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), required=True, help="The checkpoint folder to make.")
@click.option("--novelty/--no-novelty", help="Let the temperature follow novelty.  [default: if MODEL has novelty]",
              default=None)  # fmt: skip
@click.option("--bias", is_flag=True, help="Give each grade a bias too: for traffic with other shares of the grades.")
@click.option("--engine", type=click.Choice(["auto", "torch", "onnx"]), default="auto", show_default=True)
@click.option("--device", help="cpu, cuda …  [default: a GPU if there is one]")
@click.option("--overwrite", is_flag=True, help="Replace an existing checkpoint.")
@json_option
def calibrate(
    model: Path, pairs: Path, output: Path, novelty: bool | None, bias: bool, engine: str, device: str | None,
    overwrite: bool, as_json: bool,
) -> None:  # fmt: skip
    """Fit temperature, and its slope in novelty, of MODEL to PAIRS, a JSONL of query, document and grade.

    The temperature changes no order of grades and, without novelty, little of the order of documents: it makes the
    probabilities as sure as they are right. With --bias they also come as often as in PAIRS. These should be like the
    traffic to come, and nothing MODEL was trained on.

    With --novelty a MODEL that has no novelty yet gets it: the pairs of half of the queries are then what it knows, and
    the temperature is fitted to the others.
    """
    import numpy as np

    from ..errors import InputError
    from ..files import check_output_folder
    from ..reranker import Reranker
    from ..training.data.labels import label_matrix
    from ..training.model.novelty_of_pairs import novelty_of_pairs
    from ..training.model.temperature import fit_calibration
    from ..trec.graded_pairs import read_graded_pairs

    check_output_folder(output, overwrite=overwrite)
    reranker = Reranker.from_pretrained(model, engine=engine, device=device)
    checkpoint = reranker.checkpoint
    scale = checkpoint.scale
    names = tuple(grade.name for grade in scale.grades)
    graded = read_graded_pairs(pairs, grades=len(scale), names=names)
    follows = checkpoint.novelty is not None if novelty is None else novelty
    fits_novelty = follows and checkpoint.novelty is None
    scores = reranker.score_pairs([(pair.query, pair.document) for pair in graded], features=fits_novelty)
    logits, strangeness = scores.logits, scores.novelty
    if fits_novelty:
        assert scores.features is not None
        statistics, held = novelty_of_pairs(scores.features, [pair.qid for pair in graded])
        checkpoint = checkpoint.replace(novelty=statistics)
        graded = [pair for pair, kept in zip(graded, held, strict=True) if kept]
        logits, strangeness = logits[held], statistics.score(scores.features[held])
    fit = fit_calibration(
        logits, label_matrix(graded, len(scale)), novelty=strangeness, with_novelty=follows, with_bias=bias
    )
    seen = np.unique([pair.hard_grade for pair in graded])
    if len(seen) < 2:
        raise InputError(f"all {len(graded)} pairs have grade {names[seen[0]]}: they say nothing of calibration",
                         path=pairs)  # fmt: skip
    fit.checked()
    facts = {"pairs": fit.pairs, "nll": [fit.nll_before, fit.nll_after], "ece": [fit.ece_before, fit.ece_after]}
    _save(
        checkpoint.replace(
            calibration=fit.calibration, provenance={**checkpoint.provenance, "calibrated_again": facts}
        ),
        output,
        overwrite,
    )
    if as_json:
        print_json({"checkpoint": str(output), "calibration": fit.calibration.to_dict(), **facts})
    else:
        rows = [
            ["NLL", f"{fit.nll_before:.4f}", f"{fit.nll_after:.4f}"],
            ["ECE", f"{fit.ece_before:.4f}", f"{fit.ece_after:.4f}"],
        ]
        print_table([f"on {fit.pairs} pairs", "before", "after"], rows)
        click.echo(str(fit.calibration))


def _save(checkpoint: Checkpoint, output: Path, overwrite: bool) -> None:
    """The checkpoint as it is, an export's graphs included, with another calibration."""
    from ..files import atomic_folder

    source: Any = checkpoint.folder
    assert source is not None
    card = source / "README.md"
    text = card.read_text("utf-8") if card.is_file() else None
    adapter, weights = checkpoint.adapter_folder, checkpoint.model_folder
    with atomic_folder(output, overwrite=overwrite) as folder:
        for path in source.iterdir():
            if path.is_file():
                shutil.copyfile(path, folder / path.name)
        checkpoint.write_into(folder, adapter=adapter, model=weights, card=text)
