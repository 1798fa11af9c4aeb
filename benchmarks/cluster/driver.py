"""One job on a cluster, in a process that can be killed: prints a JSON object with seconds and memory.

python benchmarks/cluster/driver.py ADDRESS FOLDER OUT MODEL WORKERS PART_DOCUMENTS [--stub]
"""

from __future__ import annotations

import json
import resource
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
        # A model that costs nothing, where the driver is what is measured.
        job.Model = StubModel  # type: ignore[misc]
    begun = time.monotonic()
    report = job.rerank_on_ray(
        files / "run.trec", files / "topics.tsv", Path(out) / "out.trec", model, details=Path(out) / "out.jsonl",
        open_documents=partial(open_texts, files / "corpus", None), documents=files / "corpus", address=address,
        workers=Workers(int(workers)), part_documents=int(part_documents),
        engine={} if stub else {"precision": "float32", "batch_tokens": 1024}, progress=told,
    )  # fmt: skip
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": time.monotonic() - begun, "documents": report.documents, "driver_peak_mib": peak,
                      "judging_from": _first, "judging_to": _last}))  # fmt: skip


_first = _last = 0.0


def told(_what: str, done: int, _total: int | None) -> None:
    """Note when the first part came, which the workers' start is not a part of, and when the last one did."""
    global _first, _last  # noqa: PLW0603
    _last = time.monotonic()
    _first = _first or _last
    print(done, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
