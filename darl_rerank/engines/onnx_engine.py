"""The ONNX engine: an exported folder run by ONNX Runtime; imports numpy and onnxruntime, never torch.

Inputs and outputs are bound, so that on a GPU a prefix's keys and values stay in its memory from the run that makes
them to the runs that use them; only token ids go there, and only logits and features come back.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from ..errors import InputError
from ..model.checkpoint import GRAPH, PREFIX_GRAPH, Checkpoint
from .base import GradeOutput
from .batching import MicroBatch

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}


@dataclass(frozen=True, slots=True)
class PrefixState:
    """A prefix that was run once, in the device's memory.

    Attributes:
        keys_values: shape (layers, 2, heads, length, head size), float32.
        own_sum: sum of the middle layer's states over the prefix's own tokens, shape (hidden,), float32.
    """

    keys_values: Any
    own_sum: Any


class OnnxEngine:
    """Runs an exported checkpoint with ONNX Runtime; thread-safe.

    Args:
        checkpoint: one that `darl_rerank.export` has written.
        device: "cpu", "cuda", "cuda:1" or "tensorrt"; CUDA if this onnxruntime has it, else the CPU, if None.
        precision: must be the one the folder was exported in, if given.

    Raises:
        InputError: no graph in the folder, a provider that is not there, another precision, or a damaged graph.
    """

    name = "onnx"

    def __init__(self, checkpoint: Checkpoint, *, device: str | None = None, precision: str | None = None) -> None:
        if checkpoint.folder is None or not checkpoint.exported:
            raise InputError(
                f"expected an exported checkpoint (no {GRAPH} there); make one with darl-rerank export",
                path=checkpoint.folder,
            )
        self.device = device or ("cuda" if _PROVIDERS["cuda"] in onnxruntime.get_available_providers() else "cpu")
        kind, index = require_provider(self.device)
        self.precision = str(dict(checkpoint.provenance).get("export", {}).get("precision", "float32"))
        if precision is not None and precision != self.precision:
            raise InputError(f"this folder was exported as {self.precision}, not {precision}", path=checkpoint.folder)
        # As for torch: on a CPU small batches keep their activations in cache.
        self.batch_tokens = 1024 if kind == "cpu" else 65536
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
        # Lengths differ from call to call: planning memory by shape would plan anew each time.
        options.enable_mem_pattern = False
        settings = {"device_id": index} if index else {}
        providers: list[Any] = [(_PROVIDERS[kind], settings)]
        if kind != "cpu":
            providers.append(_PROVIDERS["cpu"])
        try:
            self._plain, self._after_prefix = (
                onnxruntime.InferenceSession(str(checkpoint.folder / name), options, providers=providers)
                for name in (GRAPH, PREFIX_GRAPH)
            )
        except Exception as error:  # onnxruntime's own classes share no base but Exception
            raise InputError(f"the graph can't be loaded: {error}", path=checkpoint.folder) from error
        if kind != "cpu" and _PROVIDERS[kind] not in self._plain.get_providers():
            raise InputError(f"device {self.device!r} could not be started by onnxruntime; see darl-rerank doctor")
        # Where the device's tensors are: TensorRT's are CUDA's.
        self._memory = ("cpu", 0) if kind == "cpu" else ("cuda", int(index or 0))
        shapes = {value.name: value.shape for value in self._after_prefix.get_inputs()}
        layers, two, heads, _, size = shapes["prefix_keys_values"]
        nothing = np.zeros((layers, two, heads, 0, size), np.float32), np.zeros(shapes["prefix_own_sum"], np.float32)
        self._nothing = PrefixState(
            *(onnxruntime.OrtValue.ortvalue_from_numpy(values, *self._memory) for values in nothing)
        )

    def encode_prefix(self, prefix: tuple[int, ...]) -> PrefixState:
        binding = self._bound(self._after_prefix, (prefix,), self._nothing)
        for name in ("keys_values", "own_sum"):
            binding.bind_output(name, *self._memory)
        self._after_prefix.run_with_iobinding(binding)
        return PrefixState(*binding.get_outputs())

    def grade(self, batch: MicroBatch, prefix: PrefixState | None, *, features: bool) -> GradeOutput:
        session = self._plain if prefix is None else self._after_prefix
        binding = self._bound(session, batch.sequences, prefix)
        for name in ("logits", "features") if features else ("logits",):
            binding.bind_output(name, "cpu")
        session.run_with_iobinding(binding)
        found = binding.copy_outputs_to_cpu()
        return GradeOutput(found[0], found[1] if features else None)

    def _bound(self, session: Any, sequences: tuple[tuple[int, ...], ...], prefix: PrefixState | None) -> Any:
        """A binding of the inputs; one for each run, so that threads don't share any."""
        binding = session.io_binding()
        for name, values in _inputs(sequences).items():
            binding.bind_cpu_input(name, values)
        if prefix is not None:
            binding.bind_ortvalue_input("prefix_keys_values", prefix.keys_values)
            binding.bind_ortvalue_input("prefix_own_sum", prefix.own_sum)
        return binding


def require_provider(device: str) -> tuple[str, str]:
    """The kind and the number (or "") of a device.

    Raises:
        InputError: no such device, or this onnxruntime can't run on it.
    """
    kind, _, index = device.partition(":")
    if kind not in _PROVIDERS or not (index == "" or index.isdigit()):
        raise InputError(f"unknown device {device!r}: expected cpu, cuda, cuda:1 … or tensorrt")
    available = onnxruntime.get_available_providers()
    if _PROVIDERS[kind] not in available:
        raise InputError(
            f"device {device!r} is not there: this onnxruntime has {', '.join(available)}; "
            "darl-rerank doctor says what to install"
        )
    return kind, index


def _inputs(sequences: tuple[tuple[int, ...], ...]) -> dict[str, NDArray[Any]]:
    ids = np.zeros((len(sequences), max(map(len, sequences))), dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = 1
    return {"input_ids": ids, "attention_mask": mask}
