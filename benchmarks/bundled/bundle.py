"""Makes a trained checkpoint the one that ships, with its adapter in 8-bit floats.

    python benchmarks/bundled/bundle.py CHECKPOINT

Writes darl_rerank/data/models/smollm2-darl, and into its model card the figures of results/bundled.json if that file
was made with this very model. Run it again after benchmarks/bundled/evaluate.py.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from provenance import RESULTS

from darl_rerank import Checkpoint
from darl_rerank.errors import CheckFailedError
from darl_rerank.model.card import Figure, card_body, card_metadata
from darl_rerank.model.shipped import DEFAULT, SHIPPED
from darl_rerank.training.model.lowrank import read_adapter, save_as_adapter

LARGEST = 16 * 2**20
LABELS, MARK = "\n## Labels\n", "\n## Figures\n"
LABELLED = """
What people said of these pairs is at most which document they chose. The soft labels join that (for product-keywords,
how many of the query's words the title has) with the cosine of query and document under an encoder, by a model fitted
on the judged passages of TREC Deep Learning 2021 (`benchmarks/bundled/label.py`): all-MiniLM-L6-v2 in the first two
rounds, all-mpnet-base-v2 in those after. Those of the second round's questions have the first round's score in them
as well (`benchmarks/bundled/relabel.py`). The last round's lists (`benchmarks/bundled/lists.py`) were labelled with
the encoder's weights rounded to 8 bits; where titles of articles are the queries, by the cosine alone. That round was
trained on an NVIDIA H200 with torch 2.11.0, transformers 5.17.0 and peft 0.21.0. What its lists have in common with
trec-dl-2021 was counted there and not kept; a query in common would have ended the training. So those judgements, and
what the encoders had learned from, MS MARCO among it, had a say in the labels, though no text of MS MARCO was trained
on. The passages of trec-dl-2021 with people's grades chose temperature and biases, and novelty knows half of its
queries' passages.
"""


@click.command(help=__doc__)
@click.argument("source", type=click.Path(path_type=Path, exists=True))
def main(source: Path) -> None:
    target = SHIPPED / DEFAULT
    checkpoint = Checkpoint.load(source)
    assert checkpoint.adapter_folder is not None
    assert checkpoint.folder is not None
    card = (checkpoint.folder / "README.md").read_text("utf-8").split(LABELS)[0].split(MARK)[0].rstrip() + "\n"
    card += LABELS + LABELLED
    with tempfile.TemporaryDirectory() as temporary:
        adapter = Path(temporary) / "adapter"
        save_as_adapter(
            read_adapter(checkpoint.adapter_folder), adapter, base_name=checkpoint.base.name, dtype=torch.float8_e4m3fn
        )
        saved = checkpoint.save(target, overwrite=True, adapter=adapter, card=card)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    if size > LARGEST:
        raise CheckFailedError(f"{target}: {size / 2**20:.1f} MiB, expected at most {LARGEST / 2**20:.0f}")
    figures = RESULTS / "bundled.json"
    if figures.is_file():
        values = json.loads(figures.read_text("utf-8"))
        if values["fingerprint"].startswith(saved.fingerprint):
            (target / "README.md").write_text(
                metadata(saved, values) + card_body(card) + MARK + described(values), "utf-8"
            )
    click.echo(f"{DEFAULT}: {size / 2**20:.1f} MiB, {saved.fingerprint}")


def metadata(checkpoint: Checkpoint, values: dict[str, Any]) -> str:
    """What model hubs read, with these figures."""
    figures = [Figure(name, "ndcg_at_10", found["after"]) for name, found in values["ranking"].items()]
    for name, found in values["pairs"].items():
        figures += [Figure(name, measure, found["measures"][measure]["value"]) for measure in ("qwk", "ece")]
    return card_metadata(checkpoint, "adapter", license="apache-2.0", figures=figures)


def described(values: dict[str, Any]) -> str:
    lines = [
        "",
        f"`{values['provenance']['command']}`, {values['provenance']['date'][:10]}; 95 % intervals by a bootstrap over "
        "queries. The model saw no query or document of these collections in training.",
        "",
        "| collection | nDCG@10, BM25 | reranked, first 100 | difference |",
        "|---|---|---|---|",
        *(
            f"| {name} | {r['before']:.4f} | {r['after']:.4f} | {difference(r)} |"
            for name, r in values["ranking"].items()
        ),
        "",
        "A document that nobody judged counts as irrelevant there. Of the judged documents alone, and of both orders "
        "fused by reciprocal rank:",
        "",
        "| collection | of the first ten judged, BM25 | reranked | judged alone, BM25 | reranked | difference "
        "| fused | difference from BM25 |",
        "|---|---|---|---|---|---|---|---|",
        *(unjudged_cells(name, r) for name, r in values["ranking"].items()),
        "",
        "| judged pairs of | quadratic kappa | ECE | mass above the true grade | NLL | RPS |",
        "|---|---|---|---|---|---|",
        *(
            f"| {name} | "
            + " | ".join(cell(found["measures"][m]) for m in ("qwk", "ece", "mass_above", "nll", "rps"))
            + " |"
            for name, found in values.get("pairs", {}).items()
        ),
        "",
        *(
            f"Novelty tells {name} from {values['novelty reference']}: AUROC {cell(found['auroc'])}."
            for name, found in values.get("novelty", {}).items()
        ),
        *(f"It is above 95 for {share:.0%} of {name}." for name, share in values.get("warned of", {}).items()),
        "",
    ]
    return "\n".join(lines)


def unjudged_cells(name: str, ranking: dict[str, Any]) -> str:
    share, alone, fused = ranking["judged"], ranking["judged only"], ranking["fused"]
    return (
        f"| {name} | {share['before']:.0%} | {share['after']:.0%} | {alone['before']:.4f} | {alone['after']:.4f} "
        f"| {difference(alone)} | {fused['after']:.4f} | {difference(fused)} |"
    )


def difference(compared: dict[str, Any]) -> str:
    value, low, high = compared["difference"]
    return f"{value:+.4f} [{low:+.4f}, {high:+.4f}]"


def cell(value: dict[str, Any]) -> str:
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


if __name__ == "__main__":
    main()
