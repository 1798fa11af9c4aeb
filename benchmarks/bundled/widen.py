"""A round's weights as a wider adapter than the one it was delivered with, for the next round to train on.

    python benchmarks/bundled/widen.py ROUND OUTPUT --rank 54

ROUND is what `darl-rerank train` wrote, with all weights trained; the folder ROUND.work beside it has them still.
OUTPUT knows what ROUND was trained on, so that the card of what comes of it says so.
"""

from __future__ import annotations

from pathlib import Path

import click

from darl_rerank import Checkpoint
from darl_rerank.training.model.lowrank import as_adapter


@click.command(help=__doc__)
@click.argument("trained", metavar="ROUND", type=click.Path(path_type=Path, exists=True))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--rank", default=54, show_default=True)
def main(trained: Path, output: Path, rank: int) -> None:
    whole = Checkpoint.load(trained.with_name(f"{trained.name}.work") / "merge" / "whole")
    saved, low_rank = as_adapter(
        whole.replace(provenance=Checkpoint.load(trained).provenance), output, rank=rank, max_mib=64
    )
    click.echo(f"{output}: rank {rank} holds {low_rank.kept:.0%} of the squared difference, {saved.fingerprint}")


if __name__ == "__main__":
    main()
