"""The ONNX engine: an exported folder run by ONNX Runtime; imports numpy and onnxruntime, never torch.

Inputs and outputs are bound, so that on a GPU a prefix's keys and values stay in its memory from the run that makes
them to the runs that use them; only token ids go there, and only logits and features come back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from ..errors import InputError
from ..model.checkpoint import GRAPH, PREFIX_GRAPH, Checkpoint
from ..model.exits import Exits
from ..model.precisions import canonical_precision
from .base import GradeOutput, OutOfMemoryError
from .batching import MicroBatch
from .providers import open_session, parse_device

# What onnxruntime's allocators say, on a CPU and on a GPU.
_OUT_OF_MEMORY = ("Failed to allocate memory", "BFCArena::AllocateRawInternal", "bad_alloc", "out of memory")


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

    One session runs everything: the graph that takes a prefix, given an empty one, computes what the plain graph does,
    bit for bit. The plain graph is there for Optimum and others.

    Args:
        checkpoint: one that `darl_rerank.export` has written.
        device: "cpu", "cuda" or "cuda:1"; if None CUDA where this onnxruntime can start it and the export's operators
            have kernels there (those of int8 have none), else the CPU.
        precision: must be the one the folder was exported in, if given.

    Raises:
        InputError: no graph in the folder, a device that is not there, another precision, or a damaged graph.
    """

    name = "onnx"

    def __init__(self, checkpoint: Checkpoint, *, device: str | None = None, precision: str | None = None) -> None:
        if checkpoint.folder is None or not checkpoint.exported:
            raise InputError(
                f"expected an exported checkpoint (no {GRAPH} there); make one with darl-rerank export",
                path=checkpoint.folder,
            )
        self.precision = "float32" if checkpoint.export is None else checkpoint.export.precision
        if precision is not None and canonical_precision(precision) != self.precision:
            raise InputError(f"this folder was exported as {self.precision}, not {precision}", path=checkpoint.folder)
        self.exits: Exits | None = None
        self._session, self.device = open_session(checkpoint.folder / PREFIX_GRAPH, device, self.precision)
        kind, index = parse_device(self.device)
        # As for torch: on a CPU small batches keep their activations in cache.
        self.batch_tokens = 1024 if kind == "cpu" else 65536
        self._memory = (kind, index)
        shapes = {value.name: value.shape for value in self._session.get_inputs()}
        layers, two, heads, _, size = shapes["prefix_keys_values"]
        nothing = np.zeros((layers, two, heads, 0, size), np.float32), np.zeros(shapes["prefix_own_sum"], np.float32)
        self._nothing = PrefixState(
            *(onnxruntime.OrtValue.ortvalue_from_numpy(values, *self._memory) for values in nothing)
        )

    def encode_prefix(self, prefix: tuple[int, ...]) -> PrefixState:
        binding = self._bound((prefix,), self._nothing)
        for name in ("keys_values", "own_sum"):
            binding.bind_output(name, *self._memory)
        self._run(binding)
        return PrefixState(*binding.get_outputs())

    def grade(self, batch: MicroBatch, prefix: PrefixState | None, *, features: bool) -> GradeOutput:
        binding = self._bound(batch.sequences, prefix or self._nothing)
        for name in ("logits", "features") if features else ("logits",):
            binding.bind_output(name, "cpu")
        self._run(binding)
        found = binding.copy_outputs_to_cpu()
        return GradeOutput(found[0], found[1] if features else None)

    def _bound(self, sequences: tuple[tuple[int, ...], ...], prefix: PrefixState) -> Any:
        """A binding of the inputs; one for each run, so that threads don't share any."""
        binding = self._session.io_binding()
        for name, values in _inputs(sequences).items():
            binding.bind_cpu_input(name, values)
        binding.bind_ortvalue_input("prefix_keys_values", prefix.keys_values)
        binding.bind_ortvalue_input("prefix_own_sum", prefix.own_sum)
        return binding

    def _run(self, binding: Any) -> None:
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime's own classes share no base but Exception
            if any(text in str(error) for text in _OUT_OF_MEMORY):
                raise OutOfMemoryError(str(error)) from error
            raise


def _inputs(sequences: tuple[tuple[int, ...], ...]) -> dict[str, NDArray[Any]]:
    ids = np.zeros((len(sequences), max(map(len, sequences))), dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = 1
    return {"input_ids": ids, "attention_mask": mask}
