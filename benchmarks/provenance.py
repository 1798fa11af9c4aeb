"""Where a figure comes from: what every script in this folder writes beside its numbers in results/*.json."""

from __future__ import annotations

import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from darl_rerank.files import atomic_write

RESULTS = Path(__file__).resolve().parent.parent / "results"
_PACKAGES = (
    "darl-rerank", "torch", "transformers", "peft", "accelerate", "onnxruntime", "onnx", "numpy", "tokenizers",
    "scikit-learn", "ir-measures", "pyserini", "faiss-cpu", "sentence-transformers", "openvino", "ray",
)  # fmt: skip
_THREADING = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "OMP_PROC_BIND", "GOMP_SPINCOUNT", "MKL_NUM_THREADS", "LD_PRELOAD")


def provenance(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Command, date, commit, versions, machine and thread settings of this run, as JSON types.

    Args:
        argv: the command line; that of this process if None. Of paths only the last part is kept.
    """
    words = list(sys.argv if argv is None else argv)
    script, *rest = words
    shown = [_from_root(Path(script)), *(Path(word).name if "/" in word else word for word in rest)]
    return {
        "command": "python " + shlex.join(shown),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "versions": {"python": platform.python_version(), **_versions()},
        "machine": {"cpu": _cpu_model(), "cores": len(os.sched_getaffinity(0)), "memory_gib": _memory_gib()},
        # Speeds hang on these, and nobody remembers later what a shell had set.
        "environment": {name: os.environ[name] for name in _THREADING if name in os.environ},
    }


def _from_root(script: Path) -> str:
    """A script's path inside of the repository; of one elsewhere only the name, in this folder."""
    path = script.resolve()
    return str(path.relative_to(RESULTS.parent)) if path.is_relative_to(RESULTS.parent) else f"benchmarks/{path.name}"


def write_result(name: str, values: Mapping[str, Any], *, argv: Sequence[str] | None = None) -> Path:
    """Write results/NAME.json: `provenance` under its own key, then `values`."""
    path = RESULTS / f"{name}.json"
    with atomic_write(path) as stream:
        json.dump({"provenance": provenance(argv), **values}, stream, indent=1, ensure_ascii=False)
        stream.write("\n")
    return path


def _commit() -> str | None:
    folder = RESULTS.parent
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
    flags = set(next((line.split(":", 1)[1] for line in lines if line.startswith("flags")), "").split())
    known = [name for name in ("amx_bf16", "amx_int8", "avx512_bf16", "avx512_vnni") if name in flags]
    return f"{model} ({', '.join(known) or 'no bfloat16 or int8 products in hardware'})"


def _memory_gib() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
