"""The ONNX engine: an exported folder run by ONNX Runtime; imports numpy and onnxruntime, never torch.

Inputs and outputs are bound, so that on a GPU a prefix's keys and values stay in its memory from the run that makes
them to the runs that use them; only token ids go there, and only logits and features come back.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import InputError
from ..model.checkpoint import GRAPH, PREFIX_GRAPH, SEGMENT_GRAPH, Checkpoint
from ..model.precisions import canonical_precision
from .base import GradeOutput
from .batching import MicroBatch
from .onnx_segments import SegmentedGraph
from .onnx_session import PrefixState, inputs_of, run_bound
from .providers import open_session, parse_device


class OnnxEngine:
    """Runs an exported checkpoint with ONNX Runtime; thread-safe.

    One session runs everything: the graph that takes a prefix, given an empty one, computes what the plain graph does,
    bit for bit. The plain graph is there for Optimum and others. With early exits the graph's segments are run instead.

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
        exits, first = checkpoint.exits, checkpoint.folder / SEGMENT_GRAPH.format(0)
        # An export that was made before the checkpoint's exits had a rule has the whole graph alone.
        self.exits = None if exits is None or exits.rule is None or not first.is_file() else exits
        self._graph: _WholeGraph | SegmentedGraph = (
            _WholeGraph(checkpoint.folder, device, self.precision)
            if self.exits is None
            else SegmentedGraph(checkpoint.folder, self.exits, device, self.precision)
        )
        self.device = self._graph.device
        # On a CPU small batches keep their activations in cache; smaller ones yet gain nothing.
        self.batch_tokens = 512 if parse_device(self.device)[0] == "cpu" else 65536

    def encode_prefix(self, prefix: tuple[int, ...]) -> PrefixState:
        return self._graph.encode_prefix(prefix)

    def grade(self, batch: MicroBatch, prefix: PrefixState | None, *, features: bool) -> GradeOutput:
        return self._graph.grade(batch.sequences, prefix or self._graph.nothing, features=features)


class _WholeGraph:
    """The graph with a prefix; see `SegmentedGraph` for the arguments."""

    def __init__(self, folder: Path, device: str | None, precision: str) -> None:
        self._session, self.device = open_session(folder / PREFIX_GRAPH, device, precision)
        self._memory = parse_device(self.device)
        shapes = {value.name: value.shape for value in self._session.get_inputs()}
        self.nothing = PrefixState.empty(shapes["prefix_keys_values"], shapes["prefix_own_sum"], self._memory)

    def encode_prefix(self, prefix: tuple[int, ...]) -> PrefixState:
        binding = self._bound((prefix,), self.nothing)
        for name in ("keys_values", "own_sum"):
            binding.bind_output(name, *self._memory)
        run_bound(self._session, binding)
        return PrefixState(*binding.get_outputs())

    def grade(self, sequences: tuple[tuple[int, ...], ...], prefix: PrefixState, *, features: bool) -> GradeOutput:
        binding = self._bound(sequences, prefix)
        for name in ("logits", "features") if features else ("logits",):
            binding.bind_output(name, "cpu")
        run_bound(self._session, binding)
        found = binding.copy_outputs_to_cpu()
        return GradeOutput(found[0], found[1] if features else None)

    def _bound(self, sequences: tuple[tuple[int, ...], ...], prefix: PrefixState) -> Any:
        """A binding of the inputs; one for each run, so that threads don't share any."""
        binding = self._session.io_binding()
        for name, values in inputs_of(sequences).items():
            binding.bind_cpu_input(name, values)
        binding.bind_ortvalue_input("prefix_keys_values", prefix.keys_values)
        binding.bind_ortvalue_input("prefix_own_sum", prefix.own_sum)
        return binding
