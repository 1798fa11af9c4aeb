"""Time and memory of `darl-rerank select` on a pool of a million pairs: python benchmarks/selection_scale.py [--help]

No model judges a million pairs here, so their features are synthetic, and found as a second round of labelling finds
them: written before, and read by --pool-features. They are unit-length parts around topic centres, some topics in the
labelled set, some not, so that the pool has pairs below, in and above the novelty band. Texts are random words, 60 a
document. What is measured is the whole command, from reading the texts (and loading SmolLM2, which has nothing to do)
to the file for annotators. Pool and features take 4 GB of a temporary folder, which is deleted at the end.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from provenance import write_result
from tqdm import tqdm

from darl_rerank import Checkpoint, RelevanceScale, Reranker
from darl_rerank.results import PairScores
from darl_rerank.training.data.features import extract_features
from darl_rerank.training.selection.pool import labelled_split
from darl_rerank.training.selection.strategies import STRATEGIES
from darl_rerank.trec.graded_pairs import read_graded_pairs

HIDDEN = 576
PARTS = 3
LATENT = 192
TOPICS = 60
LABELLED_TOPICS = 40
GRADES = 4
DOCUMENTS = 20
WORDS = 60


class SyntheticModel:
    """Stands in for the model whose fingerprint it has; a pair's topic and grade are read off its query."""

    def __init__(self, fingerprint: str, seed: int) -> None:
        self.fingerprint = fingerprint
        self._rng = np.random.default_rng(seed)
        self._centres = (1.5 * self._rng.standard_normal((TOPICS, LATENT))).astype(np.float32)
        scale = np.sqrt(np.arange(1, LATENT + 1, dtype=np.float32))[:, None]
        self._mixing = (self._rng.standard_normal((LATENT, PARTS * HIDDEN)) / scale).astype(np.float32)

    def score_pairs(self, pairs: Sequence[tuple[str, Any]], *, features: bool = False) -> PairScores:
        n = len(pairs)
        topics = np.array([int(query.rsplit(" ", 1)[1]) for query, _ in pairs])
        grades = self._rng.integers(GRADES, size=n)
        latent = self._centres[topics] + self._rng.standard_normal((n, LATENT), dtype=np.float32)
        latent[:, 0] += 2 * grades
        rows = (latent @ self._mixing).reshape(n, PARTS, HIDDEN)
        rows /= np.linalg.norm(rows, axis=2, keepdims=True)
        logits = self._rng.standard_normal((n, GRADES), dtype=np.float32)
        logits[np.arange(n), grades] += 1
        return PairScores(
            logits=logits,
            probabilities=np.zeros((n, GRADES)),
            score=np.zeros(n),
            grade=grades,
            novelty=None,
            features=rows.reshape(n, -1) if features else None,
            truncated=np.zeros(n, dtype=bool),
        )


def write_pairs(path: Path, count: int, topics: int, labelled: bool, seed: int) -> None:
    """A JSONL of `count` pairs, 20 documents a query."""
    rng = np.random.default_rng(seed)
    words = np.array(["".join(letters) for letters in rng.choice(list("abcdefghiklmnoprstu"), size=(5000, 6))])
    with path.open("w", encoding="utf-8") as stream:
        for start in tqdm(range(0, count, DOCUMENTS), desc=path.name, unit="query"):
            query = f"{path.stem} {start // DOCUMENTS} on subject {rng.integers(topics)}"
            for document in words[rng.integers(len(words), size=(min(DOCUMENTS, count - start), WORDS))]:
                pair: dict[str, Any] = {"query": query, "document": " ".join(document)}
                if labelled:
                    pair["grade"] = int(rng.integers(GRADES))
                stream.write(json.dumps(pair) + "\n")


def run_watched(command: list[str], log: Path) -> dict[str, float]:
    """Run a command; seconds, and the largest resident memory in MiB, read every 20 ms.

    `own_mib` is the process's own, which must fit into memory; `mapped_file_mib` is pages of files, which the kernel
    takes back when it needs them.
    """
    peak = {"RssAnon": 0, "RssFile": 0}
    began = time.perf_counter()
    with log.open("wb") as stream, subprocess.Popen(command, stdout=stream, stderr=stream) as process:
        while process.poll() is None:
            try:
                status = Path(f"/proc/{process.pid}/status").read_text("utf-8")
            except OSError:
                break
            for name, value in re.findall(r"(RssAnon|RssFile):\s+(\d+)", status):
                peak[name] = max(peak[name], int(value))
            time.sleep(0.02)
    seconds = time.perf_counter() - began
    if process.returncode:
        raise SystemExit(f"the command failed: {log.read_text('utf-8', 'replace')[-2000:]}")
    return {
        "seconds": round(seconds, 1),
        "own_mib": round(peak["RssAnon"] / 1024),
        "mapped_file_mib": round(peak["RssFile"] / 1024),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--labelled-pairs", type=int, default=25_000, help="a fifth of their queries is held out")
    parser.add_argument("--budget", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--strategy", action="append", choices=STRATEGIES, help="may be repeated; all if not given")
    parser.add_argument("--scratch", type=Path, help="where the temporary folder is made")
    parser.add_argument("--name", default="selection_scale", help="of the file in results/")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory(dir=args.scratch) as name:
        folder = Path(name)
        pool, labelled, model = folder / "pool.jsonl", folder / "labelled.jsonl", folder / "model"
        write_pairs(pool, args.pairs, TOPICS, False, args.seed)
        write_pairs(labelled, args.labelled_pairs, LABELLED_TOPICS, True, args.seed + 1)
        Checkpoint.from_base("smollm2", RelevanceScale.named("trec4")).save(model)
        work = folder / "work"
        write_features(args, pool, labelled, model, work)
        results: dict[str, Any] = {
            "pairs": args.pairs, "labelled_pairs": args.labelled_pairs, "features": PARTS * HIDDEN,
            "words": WORDS, "budget": args.budget, "seed": args.seed, "strategies": {},
        }  # fmt: skip
        for strategy in args.strategy or STRATEGIES:
            output = folder / f"{strategy}.jsonl"
            command = [sys.executable, "-m", "darl_rerank.cli", "select", str(output), "--labelled", str(labelled),
                       "--pool", str(pool), "--pool-features", str(folder / "pool"), "--workspace", str(work),
                       "--model", str(model), "--device", "cpu", "--budget", str(args.budget),
                       "--strategy", strategy, "--seed", str(args.seed)]  # fmt: skip
            measured = run_watched(command, folder / "log")
            summary = json.loads(output.with_name(output.name + ".summary.json").read_text("utf-8"))
            results["strategies"][strategy] = {**measured, "summary": summary}
            print(f"{strategy:22} {measured['seconds']:8.1f} s {measured['own_mib']:8} MiB", flush=True)
            # After every strategy, so that a long run that is cut off has something to show.
            path = write_result(args.name, results)
        print(path)


def write_features(args: argparse.Namespace, pool: Path, labelled: Path, model: Path, work: Path) -> None:
    """The features that the command is going to look for, under the fingerprint of the model it is given."""
    fingerprint = Reranker.from_pretrained(model, device="cpu").fingerprint
    synthetic = SyntheticModel(fingerprint, args.seed)
    extract_features(synthetic, read_graded_pairs(pool, labels="ignored"), pool.with_suffix(""), description="pool")
    training, held_out = labelled_split(read_graded_pairs(labelled, grades=GRADES), 0.2, seed=args.seed)
    extract_features(synthetic, training, work / "training", description="training")
    extract_features(synthetic, held_out, work / "held-out", description="held out")


if __name__ == "__main__":
    main()
