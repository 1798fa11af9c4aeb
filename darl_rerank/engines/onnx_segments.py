"""An exported graph run in segments, from exit to exit: rows that leave early are not run any further.

See `darl_rerank.export.segments` for what the segments take and give. States stay in the device's memory between them;
only the exits' logits come back, by which it is decided here what goes on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from ..model.checkpoint import SEGMENT_GRAPH
from ..model.exits import Exits
from .base import GradeOutput
from .onnx_session import PrefixState, inputs_of, run_bound
from .providers import open_session, parse_device

# Parts of the features by the output that has them: which is its first, and how many they are.
_FEATURES = (("middle_features", 0, 2), ("final_features", 2, 1))


@dataclass(frozen=True, slots=True)
class _Segment:
    """One segment: its session, the names of its inputs and outputs, and how many layers it has."""

    session: Any
    inputs: frozenset[str]
    outputs: frozenset[str]
    layers: int


class SegmentedGraph:
    """The segments of an exported checkpoint; thread-safe.

    Args:
        folder: the export.
        exits: with the rule, behind the layers that the export was made with.
        device: as for `open_session`.
        precision: as for `open_session`.

    Raises:
        InputError: a device that is not there, or a damaged graph.
    """

    def __init__(self, folder: Path, exits: Exits, device: str | None, precision: str) -> None:
        self._exits = exits
        self._segments: list[_Segment] = []
        for i in range(len(exits.layers) + 1):
            session, device = open_session(folder / SEGMENT_GRAPH.format(i), device, precision)
            outputs = {value.name: value.shape for value in session.get_outputs()}
            inputs = frozenset(value.name for value in session.get_inputs())
            self._segments.append(_Segment(session, inputs, frozenset(outputs), outputs[f"keys_values_{i}"][0]))
        assert device is not None
        self.device = device
        self._memory = parse_device(device)
        shapes = {value.name: value.shape for value in self._segments[0].session.get_inputs()}
        layers, two, heads, _, size = shapes["prefix_keys_values"]
        self._keys_values = layers, two, heads, size
        (own_sum,) = (
            value.shape
            for segment in self._segments
            for value in segment.session.get_outputs()
            if value.name == "own_sum"
        )
        self._hidden = int(own_sum[0])
        self.nothing = PrefixState.empty(shapes["prefix_keys_values"], own_sum, self._memory)

    def encode_prefix(self, prefix: tuple[int, ...]) -> PrefixState:
        """Run a prefix through all segments; each writes its layers' keys and values into one tensor."""
        layers, two, heads, size = self._keys_values
        whole = _new((layers, two, heads, len(prefix), size), self._memory)
        written, states, own_sum = 0, None, None
        for i, segment in enumerate(self._segments):
            binding = self._bound(segment, (prefix,), self.nothing, states, np.arange(len(prefix)))
            shape = (segment.layers, two, heads, len(prefix), size)
            step = 4 * int(np.prod(shape))
            binding.bind_output(f"keys_values_{i}", *self._memory, np.float32, shape, whole.data_ptr() + written)
            written += step
            kept = [name for name in ("own_sum", self._states_of(i)) if name in segment.outputs]
            for name in kept:
                binding.bind_output(name, *self._memory)
            run_bound(segment.session, binding)
            found = dict(zip(kept, binding.get_outputs()[1:], strict=True))
            states, own_sum = found.get(self._states_of(i), states), found.get("own_sum", own_sum)
        return PrefixState(whole, own_sum)

    def grade(self, sequences: tuple[tuple[int, ...], ...], prefix: PrefixState, *, features: bool) -> GradeOutput:
        """See `Engine.grade`."""
        count = len(sequences)
        left_at = np.zeros(count, dtype=np.intp)
        logits = np.zeros((count, len(self._exits.heads[0].head.bias)), dtype=np.float32)
        collected = np.full((count, 3 * self._hidden), np.nan, dtype=np.float32)
        present, kept = np.arange(count), np.arange(sum(map(len, sequences)))
        states = None
        for i, segment in enumerate(self._segments):
            running = tuple(sequences[place] for place in present)
            binding = self._bound(segment, running, prefix, states, kept)
            layer = self._exits.layers[i] if i < len(self._exits.layers) else 0
            of_logits = f"exit_{layer}.logits" if layer else "logits"
            wanted = [of_logits]
            if features:
                wanted += [name for name, *_ in _FEATURES if name in segment.outputs]
            for name in wanted:
                binding.bind_output(name, "cpu")
            if layer:
                binding.bind_output(self._states_of(i), *self._memory)
            run_bound(segment.session, binding)
            outputs = binding.get_outputs()
            found = {name: value.numpy() for name, value in zip(wanted, outputs, strict=False)}
            for name, first, parts in _FEATURES:
                if name in found:
                    collected[present, first * self._hidden : (first + parts) * self._hidden] = found[name]
            if not layer:
                logits[present] = found[of_logits]
                break
            states = outputs[-1]
            gone = self._exits.leaving(layer, found[of_logits])
            left_at[present[gone]] = layer
            logits[present[gone]] = found[of_logits][gone]
            kept = np.flatnonzero(np.repeat(~gone, [len(sequence) for sequence in running]))
            present = present[~gone]
            if not len(present):
                break
        return GradeOutput(logits, collected if features else None, left_at)

    def _states_of(self, i: int) -> str:
        return f"exit_{self._exits.layers[i]}.states" if i < len(self._exits.layers) else ""

    def _bound(
        self, segment: _Segment, sequences: tuple[tuple[int, ...], ...], prefix: PrefixState, states: Any,
        kept: NDArray[np.intp],
    ) -> Any:  # fmt: skip
        """A binding of the inputs; one for each run, so that threads don't share any."""
        binding = segment.session.io_binding()
        values = {**inputs_of(sequences), "kept": kept.astype(np.int64)}
        for name, value in values.items():
            if name in segment.inputs:
                binding.bind_cpu_input(name, value)
        on_device = {"prefix_keys_values": prefix.keys_values, "prefix_own_sum": prefix.own_sum, "states": states}
        for name, value in on_device.items():
            if name in segment.inputs:
                binding.bind_ortvalue_input(name, value)
        return binding


def _new(shape: tuple[int, ...], memory: tuple[str, int]) -> Any:
    return onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(shape), np.float32, *memory)
