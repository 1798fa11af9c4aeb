"""The mean of rounds, as one adapter, with novelty and calibration of its own.

    python benchmarks/bundled/soup.py RECIPE OUTPUT ROUND...

The first ROUND is the one that the others began from; of the last one OUTPUT gets card and provenance. The mean is of
the differences that the adapters make, cut to their rank, and of the heads (Wortsman et al., "Model soups", ICML
2022; with the first among them it is also their interpolation with where they began, "Robust fine-tuning of zero-shot
models", CVPR 2022). Known pairs and held-out ones are those of RECIPE, and so is what the calibration is.
OUTPUT.work keeps features.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import click
import numpy as np
import torch

from darl_rerank import Checkpoint, Reranker
from darl_rerank.model.calibration import Calibration
from darl_rerank.model.head import Head
from darl_rerank.training.data.training_set import load_training_set
from darl_rerank.training.model.lowrank import mean_adapter, read_adapter, save_as_adapter
from darl_rerank.training.recipe.read import read_recipe
from darl_rerank.training.stages.calibrate import calibrated

CALIBRATED = re.compile(r"^- Calibration on .*$", re.MULTILINE)


@click.command(help=__doc__)
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.argument("rounds", type=click.Path(path_type=Path, exists=True), nargs=-1, required=True)
def main(recipe: Path, output: Path, rounds: tuple[Path, ...]) -> None:
    asked = read_recipe(recipe)
    if asked.calibrate is None:
        raise click.UsageError(f"{recipe}: says nothing of calibration, expected [calibrate]")
    if len(rounds) < 2:
        raise click.UsageError(
            f"expected the round that others began from and one of these at least, got {len(rounds)}"
        )
    data = load_training_set(asked)
    checkpoints = [Checkpoint.load(path) for path in rounds]
    adapters = []
    for path, checkpoint in zip(rounds, checkpoints, strict=True):
        if checkpoint.adapter_folder is None:
            raise click.UsageError(f"{path}: expected a checkpoint with an adapter")
        adapters.append(read_adapter(checkpoint.adapter_folder))
    low_rank = mean_adapter(adapters)
    heads = [checkpoint.head for checkpoint in checkpoints]
    head = Head(
        *(sum(values) / np.float32(len(heads)) for values in zip(*((h.weight, h.bias) for h in heads), strict=True))
    )
    work = output.with_name(f"{output.name}.work")
    work.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        adapter = Path(temporary) / "adapter"
        save_as_adapter(low_rank, adapter, base_name=checkpoints[0].base.name, dtype=torch.float8_e4m3fn)
        checkpoints[0].replace(head=head).save(work / "mean", overwrite=True, adapter=adapter)
    final, facts = calibrated(
        Reranker.from_pretrained(work / "mean", engine="torch"), data.judged[0],
        data.calibration_sets(novelty=asked.calibrate.novelty), asked.calibrate, work / "calibrate", seed=asked.seed,
    )  # fmt: skip
    # benchmarks/bundled/calibrations.py reads it there.
    final.save(work / "calibrate" / "checkpoint", overwrite=True)
    provenance = dict(checkpoints[-1].provenance)
    of = [checkpoint.fingerprint for checkpoint in checkpoints]
    provenance["stages"] = {
        **provenance["stages"], "mean": {"of": of, "rank": low_rank.rank, "kept": low_rank.kept}, "calibrate": facts,
    }  # fmt: skip
    card = (rounds[-1] / "README.md").read_text("utf-8")
    known = "".join(
        f"- {source.source.name} (known): {len(source.train)} pairs are no news to novelty, like those of the rounds "
        f"that people judged; {len(source.dev)} pairs of its other queries are among those that make the percentiles; "
        f"licence: {source.source.licence}.\n"
        for source in data.sources
        if source.source.use == "known"
    )
    said = (
        f"- Mean of the weights where this training began, after {len(of) - 2} more like it with other settings, and "
        f"after it; as an adapter of rank {low_rank.rank}, which holds {low_rank.kept:.2%} of the mean squared "
        f"difference.\n{known}"
        f"- Calibration on {facts['pairs']} pairs: {Calibration.from_dict(facts['calibration'])}; NLL "
        f"{facts['nll_before']:.4f} → {facts['nll_after']:.4f}, ECE {facts['ece_before']:.4f} → "
        f"{facts['ece_after']:.4f}."
    )
    saved = final.replace(provenance=provenance).save(output, overwrite=True, card=CALIBRATED.sub(said, card))
    click.echo(f"{output}: {saved.fingerprint}; {facts}")


if __name__ == "__main__":
    main()
