"""Fit anew what hangs on a checkpoint's scores: calibration, grades, the weight in a fusion, depth="auto".

    python benchmarks/bundled/refit.py CHECKPOINT SCORES OUTPUT

SCORES is the folder of benchmarks/scores.py, with what CHECKPOINT, or its export, gives the candidates. All is fitted
on development collections, as pack.py says. OUTPUT gets the checkpoint.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import numpy as np
from pack import SENTENCES, WEB, fit_points, fusion_weight, graded, pairs_of, reach, read, scored

from darl_rerank import Checkpoint
from darl_rerank.model.decisions import Decisions
from darl_rerank.training.decisions.decide import recalibrated
from darl_rerank.training.model.temperature import fit_calibration


@click.command(help=__doc__)
@click.argument("checkpoint", type=click.Path(exists=True, path_type=Path))
@click.argument("scores", type=click.Path(exists=True, path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
def main(checkpoint: Path, scores: Path, output: Path) -> None:
    work = output.with_name(f"{output.name}.work")
    work.mkdir(parents=True, exist_ok=True)
    write_logits(scores, work)
    start = Checkpoint.load(checkpoint)
    web = read(scores, work, WEB)
    grades, logits, queries = graded(web)
    calibration = fit_calibration(logits[:, 0], grades, with_bias=True).calibration
    final = recalibrated(start, calibration, logits[:, 0], grades, queries)
    gains = final.scale.gains
    sentences = read(scores, work, SENTENCES)
    points = fit_points(pairs_of(web, final, 0), pairs_of(sentences, final, 0), gains)
    scored(scores, work, final, 0, work / "scores")
    decisions = Decisions(points, {}, fusion_weight(scores, work / "scores", gains))
    final = final.replace(decisions=decisions, reach=reach(web, final, 0), novelty=start.novelty)
    saved = final.save(output, overwrite=True)
    click.echo(f"{output}: {saved.fingerprint}; {final.calibration}; grades {points.points}", err=True)


def write_logits(scores: Path, work: Path) -> None:
    """scores.npz as pack.py reads it, of a model without exits, from the lines that scores.py wrote."""
    found = {}
    for path in sorted(scores.glob("*.scores.jsonl")):
        lines = [json.loads(line) for line in path.open(encoding="utf-8")]
        name = path.name.split(".")[0]
        found[f"{name}.logits"] = np.concatenate([np.array(line["logits"], np.float32) for line in lines])[:, None]
        found[f"{name}.key"] = np.array([f"{line['qid']}\t{docid}" for line in lines for docid in line["docids"]])
    np.savez_compressed(work / "scores.npz", **found)


if __name__ == "__main__":
    main()
