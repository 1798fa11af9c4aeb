"""One job on a cluster, in a process that can be killed: prints a JSON object with seconds and memory.

python benchmarks/cluster/driver.py ADDRESS FOLDER OUT MODEL WORKERS PART_DOCUMENTS [--stub]
"""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from pathlib import Path

from stub import StubModel

from darl_rerank.cli.texts import open_texts
from darl_rerank.distributed import Workers, job


def main() -> None:
    address, folder, out, model, workers, part_documents, *stub = sys.argv[1:]
    files = Path(folder)
    if stub:
        job.Model = StubModel  # type: ignore[misc]
    begun = time.monotonic()
    report = job.rerank_on_ray(
        files / "run.trec", files / "topics.tsv", Path(out) / "out.trec", model, details=Path(out) / "out.jsonl",
        open_documents=partial(open_texts, files / "corpus", None), documents=files / "corpus", address=address,
        workers=Workers(int(workers)), part_documents=int(part_documents),
        engine={"seconds": float(stub[0])} if stub else {"precision": "float32", "batch_tokens": 1024}, progress=told,
    )  # fmt: skip
    # Of this program: what getrusage says begins with the process that has started it.
    status = Path("/proc/self/status").read_text("utf-8")
    peak = int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) / 1024
    print(json.dumps({
        "seconds": time.monotonic() - begun, "documents": report.documents, "driver_peak_mib": peak,
        "pairs_per_second": (_seen[-1][1] - _seen[0][1]) / (_seen[-1][0] - _seen[0][0]) if len(_seen) > 1 else None,
    }))  # fmt: skip


# When how many documents were done, from the first part on: the workers' start is not the machinery's pace.
_seen: list[tuple[float, int]] = []


def told(_what: str, done: int, _total: int | None) -> None:
    """Note when a part came."""
    if done:
        _seen[1:] = [(time.monotonic(), done)] if _seen else []
        if not _seen:
            _seen.append((time.monotonic(), done))


if __name__ == "__main__":
    main()
