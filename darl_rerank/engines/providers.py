"""Which execution provider of ONNX Runtime runs an exported checkpoint, and whether a GPU's can be started at all."""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import onnxruntime

from ..errors import InputError

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
# Their product, MatMulIntegerToFloat, has no CUDA kernel: with a GPU each would run on the CPU, between two copies.
_ON_CPU = {"int8"}
_INSTALL = "darl-rerank doctor says what to install"
# An ONNX graph of one Identity, to try a provider with (tests make it again with the package onnx).
_SMALLEST_GRAPH = (
    b'\x08\x08:+\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x01gZ\t\n\x01x\x12\x04\n\x02\x08\x01b\t\n\x01y\x12\x04\n\x02\x08\x01'
    b"B\x04\n\x00\x10\x11"
)


def parse_device(device: str) -> tuple[str, int]:
    """Kind, "cpu" or "cuda", and number of a device.

    Raises:
        InputError: no such device. TensorRT is not offered: it would build an engine for every new shape.
    """
    kind, colon, index = device.partition(":")
    if kind not in _PROVIDERS or (colon and not (kind == "cuda" and index.isdigit())):
        raise InputError(f"unknown device {device!r}: expected cpu, cuda, cuda:1 …")
    return kind, int(index or 0)


def require_provider(device: str) -> tuple[str, int]:
    """`parse_device`, for a device that this onnxruntime must have.

    Raises:
        InputError: no such device, or this onnxruntime was built without it.
    """
    kind, index = parse_device(device)
    available = onnxruntime.get_available_providers()
    if _PROVIDERS[kind] not in available:
        raise InputError(f"device {device!r} is not there: this onnxruntime has {', '.join(available)}; {_INSTALL}")
    return kind, index


def open_session(path: Path, device: str | None, precision: str) -> tuple[Any, str]:
    """A session of the graph, and the device that it runs on.

    Without a device it is the GPU if this onnxruntime is made for one and the precision has kernels there; where the
    GPU's libraries then can't be loaded, a warning says why and the CPU is used.

    Args:
        path: the graph.
        device: "cpu", "cuda", "cuda:1" …, or None.
        precision: of the graph.

    Raises:
        InputError: the device is not there or can't be started, or the graph can't be read.
    """
    wanted = device
    if wanted is None:
        has_cuda = _PROVIDERS["cuda"] in onnxruntime.get_available_providers()
        wanted = "cuda" if has_cuda and precision not in _ON_CPU else "cpu"
    kind, index = require_provider(wanted)
    if kind == "cuda" and (fault := cuda_fault(index)) is not None:
        if device is not None:
            raise InputError(f"device {device!r} could not be started by onnxruntime: {fault}; {_INSTALL}")
        warnings.warn(
            f"onnxruntime could not start CUDA, so the CPU is used: {fault}; {_INSTALL}", RuntimeWarning, stacklevel=2
        )
        wanted, kind = "cpu", "cpu"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = thread_count()
    # Lengths differ from call to call: planning memory by shape would plan anew each time.
    options.enable_mem_pattern = False
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=_settings(kind, index)), wanted
    except Exception as error:  # onnxruntime's own classes share no base but Exception
        raise InputError(f"the graph can't be loaded: {error}", path=path) from error


def thread_count() -> int:
    """Threads of a session: OMP_NUM_THREADS, as for torch, but no more than the cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # A list ("4,2") is for nested parallelism; the first number is the outermost level's.
    given = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return min(int(given), cores) if given.isdigit() and int(given) > 0 else cores


@cache
def cuda_fault(index: int = 0) -> str | None:
    """Why CUDA can't be started on GPU number `index`; None if it can. Loads its libraries from their wheels first."""
    # CUDA and cuDNN that pip has installed (onnxruntime-gpu[cuda,cudnn]) lie where no loader looks.
    if hasattr(onnxruntime, "preload_dlls"):
        # What it could not load it prints; whether that matters is seen when the session starts.
        with contextlib.redirect_stdout(io.StringIO()):
            onnxruntime.preload_dlls()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(
            _SMALLEST_GRAPH, options, providers=[(_PROVIDERS["cuda"], {"device_id": str(index)})], enable_fallback=0
        )
    except Exception as error:  # onnxruntime's own classes share no base but Exception
        return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    # Where the provider's library can't be loaded, older versions log it and go on without.
    if _PROVIDERS["cuda"] not in session.get_providers():
        return "its libraries (CUDA, cuDNN) can't be loaded"
    return None


def _settings(kind: str, index: int) -> list[Any]:
    """What a session takes as `providers`: the CPU also behind the GPU, for shapes and other small work."""
    own: list[Any] = [] if kind == "cpu" else [(_PROVIDERS[kind], {"device_id": str(index)})]
    return [*own, _PROVIDERS["cpu"]]
