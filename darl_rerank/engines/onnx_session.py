"""Runs of an ONNX session with bound inputs and outputs, and what a prefix leaves for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from .base import OutOfMemoryError

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

    @classmethod
    def empty(cls, keys_values: Sequence[Any], own_sum: Sequence[Any], memory: tuple[str, int]) -> PrefixState:
        """Of a prefix without tokens.

        Args:
            keys_values, own_sum: shapes as a graph has them, the length without a number.
            memory: kind and index of the device.
        """
        layers, two, heads, _, size = keys_values
        nothing = np.zeros((layers, two, heads, 0, size), np.float32), np.zeros(own_sum, np.float32)
        return cls(*(onnxruntime.OrtValue.ortvalue_from_numpy(values, *memory) for values in nothing))


def inputs_of(sequences: tuple[tuple[int, ...], ...]) -> dict[str, NDArray[Any]]:
    """A graph's input_ids and attention_mask, padded on the right."""
    ids = np.zeros((len(sequences), max(map(len, sequences))), dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def run_bound(session: Any, binding: Any) -> None:
    """Run a session.

    Raises:
        OutOfMemoryError: the device has no memory for it.
    """
    try:
        session.run_with_iobinding(binding)
    except Exception as error:  # onnxruntime's own classes share no base but Exception
        if any(text in str(error) for text in _OUT_OF_MEMORY):
            raise OutOfMemoryError(str(error)) from error
        raise
