"""The int8 export that stands in for a checkpoint on processors where it is the faster engine, made once.

On a CPU without bfloat16 the torch engine has to take float32, which int8 products outrun where the CPU has them. The
export is made by `darl-rerank export` in a process of its own, whose memory is then free again, and kept in the cache
under the checkpoint's fingerprint. Where its gate refuses, that is noted too, and torch is used. On any other CPU with
int8 products `precision="int8"` asks for it.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from ..cache import cache_folder
from ..errors import CheckFailedError, InputError
from ..files import atomic_write
from ..model.checkpoint import Checkpoint
from ..model.precisions import canonical_precision
from .hardware import cpu_flags, cpu_has_bfloat16

log = logging.getLogger(__name__)

# What makes int8 products fast and exact: without, sums of two products saturate at 16 bits.
_INT8 = {"avx512_vnni", "avx_vnni", "amx_int8"}
# Hidden sizes of models that are slow enough for it to matter, and small enough to be exported in a minute or so.
_SMALLEST, _LARGEST = 256, 1024
_NEEDED = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime")


def int8_is_faster() -> bool:
    """Whether this CPU is one that has int8 products in hardware and no bfloat16 ones."""
    return bool(cpu_flags() & _INT8) and not cpu_has_bfloat16()


def fast_export(checkpoint: Checkpoint, *, device: str | None, precision: str | None) -> Checkpoint | None:
    """The checkpoint's int8 export, from the cache or made now; None where the checkpoint itself is to be run.

    Args:
        checkpoint: what the caller asked for.
        device: as the caller gave it.
        precision: as the caller gave it.
    """
    if checkpoint.exported or checkpoint.folder is None or not _wanted(checkpoint, device, precision):
        return None
    folder = cache_folder() / "int8" / f"{checkpoint.fingerprint[:32]}-{_version()}"
    refused = folder.with_name(f"{folder.name}.refused")
    if not folder.is_dir():
        if refused.is_file() or any(find_spec(name) is None for name in _NEEDED):
            return None
        log.warning("making an int8 export, once; engine=torch runs without")
        if (code := _make(checkpoint.folder, folder)) != 0:
            reason = "it did not grade as torch does" if code == CheckFailedError.exit_code else f"exit code {code}"
            log.warning(f"there is no int8 export, so torch is used: {reason}")
            if code == CheckFailedError.exit_code:
                with atomic_write(refused) as stream:
                    stream.write(reason + "\n")
            return None
    try:
        return Checkpoint.load(folder)
    except InputError as error:
        log.warning(f"the int8 export in the cache is not used: {error}")
        return None


def _wanted(checkpoint: Checkpoint, device: str | None, precision: str | None) -> bool:
    asked = precision is not None and canonical_precision(precision) == "int8"
    fast = int8_is_faster() and _SMALLEST <= checkpoint.head.weight.shape[1] <= _LARGEST
    return (
        (bool(cpu_flags() & _INT8) if asked else precision is None and fast)
        and (device == "cpu" or (device is None and not _gpu()))
        and find_spec("onnxruntime") is not None
    )


def _gpu() -> bool:
    """Whether there may be a GPU that torch would take; asked of the driver, since importing torch takes seconds."""
    return Path("/proc/driver/nvidia/version").exists() or Path("/dev/kfd").exists()


def _make(source: Path, target: Path) -> int:
    """Export `source` in int8 to `target`; the exit code. Its bar and its errors go to stderr, as if they were ours."""
    target.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "darl_rerank.cli", "export", str(source), str(target), "--precision", "int8"]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    return 0 if target.is_dir() else done.returncode  # another process may have been faster


def _version() -> str:
    try:
        return version("darl-rerank")
    except PackageNotFoundError:
        return "0"
