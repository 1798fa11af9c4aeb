"""Time and memory of selecting from a synthetic pool of a million pairs: python benchmarks/selection_scale.py [--help]

The features are synthetic: unit-length blocks around topic centres, some topics in the training set, some not, so that
the pool has pairs below, in and above the novelty band. They are written to a temporary folder (3.4 GB for a million
pairs), read through a memory map and deleted at the end.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from provenance import write_result

from darl_rerank.novelty import fit_novelty
from darl_rerank.training.candidates import describe_pool
from darl_rerank.training.selection import select
from darl_rerank.training.strategies import STRATEGIES, SelectionSettings

HIDDEN = 576
BLOCKS = 3
FEATURES = HIDDEN * BLOCKS
LATENT = 192
TOPICS = 60
TRAINING_TOPICS = 40
ROWS = 8192


class PeakMemory:
    """The largest resident memory of this process in a `with` block, read every 20 ms.

    Attributes:
        anonymous: MiB of the process's own; what must fit into memory.
        mapped: MiB of file pages mapped in, which the kernel takes back when it needs them.
    """

    def __enter__(self) -> PeakMemory:
        self.anonymous = self.mapped = 0.0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while True:
            for line in Path("/proc/self/status").read_text("utf-8").splitlines():
                name, _, rest = line.partition(":")
                if name == "RssAnon":
                    self.anonymous = max(self.anonymous, int(rest.split()[0]) / 1024)
                elif name == "RssFile":
                    self.mapped = max(self.mapped, int(rest.split()[0]) / 1024)
            if self._end.wait(0.02):
                return

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def to_dict(self) -> dict[str, float]:
        return {"own_mib": round(self.anonymous), "mapped_file_mib": round(self.mapped)}


def synthetic(
    rng: np.random.Generator, centres: NDArray[Any], mixing: NDArray[Any], topics: NDArray[Any], grades: NDArray[Any]
) -> NDArray[np.float16]:
    """Features of pairs with these topics and grades, shape (n, F)."""
    latent = centres[topics] + rng.standard_normal((len(topics), LATENT), dtype=np.float32)
    latent[:, 0] += 2 * grades
    rows = (latent @ mixing).reshape(-1, BLOCKS, HIDDEN)
    rows /= np.linalg.norm(rows, axis=2, keepdims=True)
    return rows.reshape(-1, FEATURES).astype(np.float16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--training-pairs", type=int, default=20_000)
    parser.add_argument("--budget", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--strategy", action="append", choices=STRATEGIES, help="may be repeated; all if not given")
    parser.add_argument("--scratch", type=Path, help="where the temporary folder is made")
    args = parser.parse_args()

    rng = np.random.default_rng(args.seed)
    centres = (1.5 * rng.standard_normal((TOPICS, LATENT))).astype(np.float32)
    mixing = (rng.standard_normal((LATENT, FEATURES)) / np.sqrt(np.arange(1, LATENT + 1))[:, None]).astype(np.float32)
    results: dict[str, Any] = {"pairs": args.pairs, "features": FEATURES, "budget": args.budget, "seed": args.seed}
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        path = Path(folder) / "features.npy"
        pool = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(args.pairs, FEATURES))
        for start in range(0, args.pairs, ROWS):
            n = min(ROWS, args.pairs - start)
            topics, grades = rng.integers(TOPICS, size=n), rng.integers(3, size=n)
            pool[start : start + n] = synthetic(rng, centres, mixing, topics, grades)
        pool.flush()
        del pool
        probabilities = rng.dirichlet(np.ones(4), size=args.pairs).astype(np.float32)
        queries = rng.integers(args.pairs // 20, size=args.pairs)
        grades = rng.integers(3, size=args.training_pairs)
        training = synthetic(rng, centres, mixing, rng.integers(TRAINING_TOPICS, size=args.training_pairs), grades)
        held_out = synthetic(rng, centres, mixing, rng.integers(TRAINING_TOPICS, size=5000), rng.integers(3, size=5000))

        steps: dict[str, Any] = {}
        with PeakMemory() as peak:
            began = time.perf_counter()
            novelty = fit_novelty(training, grades, held_out, seed=args.seed)
            steps["fit novelty"] = {"seconds": round(time.perf_counter() - began, 1)}
            began = time.perf_counter()
            features = np.load(path, mmap_mode="r")
            candidates = describe_pool(features, probabilities, queries, training, novelty, workspace=folder)
        steps["score the pool"] = {"seconds": round(time.perf_counter() - began, 1), **peak.to_dict()}
        shown = steps["score the pool"]
        print(f"{'score the pool':22} {shown['seconds']:8.1f} s {shown['own_mib']:8} MiB", flush=True)
        results |= {"dimensions": novelty.dimensions, "steps": steps}
        for name in args.strategy or STRATEGIES:
            began = time.perf_counter()
            with PeakMemory() as peak:
                found = select(candidates, args.budget, name, SelectionSettings(seed=args.seed))
            steps[name] = {
                "seconds": round(time.perf_counter() - began, 1), **peak.to_dict(),
                "chosen": len(found.rows), "summary": found.summary,
            }  # fmt: skip
            print(f"{name:22} {steps[name]['seconds']:8.1f} s {steps[name]['own_mib']:8} MiB", flush=True)
            # After every strategy, so that a long run that is cut off has something to show.
            write_result("selection_scale", results)


if __name__ == "__main__":
    main()
