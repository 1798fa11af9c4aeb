"""One measurement in a fresh process: cold start, speed, peak memory. Run by `in_fresh_process`, not by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_SAMPLES = 20  # of memory
_FOLDER = Path(__file__).resolve().parent.parent


def in_fresh_process(task: dict[str, Any], threads: int | None = None) -> dict[str, Any]:
    """What `measure` returns for `task`, in a process of its own.

    Args:
        task: see `measure`.
        threads: how many cores the process may use; all if None.
    """
    cores = sorted(os.sched_getaffinity(0))[:threads]
    environment = os.environ | {"PYTHONPATH": str(_FOLDER), "OMP_NUM_THREADS": str(len(cores))}
    given = json.dumps({**task, "cores": cores, "started": time.time()})
    done = subprocess.run(
        [sys.executable, "-m", "speed.worker"], input=given, capture_output=True, text=True, check=False,
        cwd=_FOLDER, env=environment,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"a measurement failed: {done.stderr.strip().splitlines()[-1:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """Rerank queries one after the other.

    Args:
        task: "kind", "torch", "onnx" or "cross-encoder"; "folder", the checkpoint, exported checkpoint, or (with
            "checkpoint") classifier; "precision"; "queries", a list of [query, documents]; "pairs", how many to rerank,
            the queries being repeated if they have fewer; and when the process was started.

    Returns:
        seconds from the start of the process to the first result, which is of ten documents; pairs, seconds and
        processor seconds after that; memory in MiB on the way, after how many pairs; and its peak, after the first
        result and at the end.
    """
    os.sched_setaffinity(0, task["cores"])
    from darl_rerank import Checkpoint

    from . import contenders

    folder = Path(task["folder"])
    if task["kind"] == "torch":
        contender = contenders.of_torch(Checkpoint.load(folder), task["precision"])
    elif task["kind"] == "onnx":
        contender = contenders.of_onnx(folder, task["precision"])
    else:
        contender = contenders.of_cross_encoder(folder, Checkpoint.load(task["checkpoint"]), task["precision"])
    run = contender.load()
    queries = task["queries"]
    run([(queries[0][0], document) for document in queries[0][1][:10]])
    cold, peak = time.time() - task["started"], _memory_mib("VmHWM")
    done = turn = 0
    resident: list[tuple[int, int]] = []
    begun, spent = time.perf_counter(), time.process_time()
    while done < task["pairs"]:
        query, documents = queries[turn % len(queries)]
        turn += 1
        part = documents[: task["pairs"] - done]
        run([(query, document) for document in part])
        done += len(part)
        if done >= (len(resident) + 1) * task["pairs"] // _SAMPLES:
            resident.append((done, _memory_mib("VmRSS")))
    seconds = time.perf_counter() - begun
    return {
        "cold_start_seconds": cold,
        "cold_start_peak_mib": peak,
        "pairs": done,
        "seconds": seconds,
        "processor_seconds": time.process_time() - spent,
        "resident_mib": resident,
        "peak_mib": _memory_mib("VmHWM"),
    }


def _memory_mib(kind: str) -> int:
    """What this program has in memory now (VmRSS), or had at most (VmHWM), as Linux counts it.

    The peak of getrusage would begin with the size of the process that started it.
    """
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{kind}:")) // 1024


if __name__ == "__main__":
    print(json.dumps(measure(json.load(sys.stdin))))
