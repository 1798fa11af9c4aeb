"""Evens out what int8 products read: a channel's size goes into the weights, which changes no result in float32.

With one scale a token (see `int8`) a few channels that are far larger than the others take all 255 steps. Dividing a
channel by s and multiplying the weights' row by s moves its size to where every column has a scale of its own
(SmoothQuant; Xiao et al., ICML 2023). Their s weighs the largest values by an exponent that has to be tuned; here

    s = sqrt(rms of the channel / rms of the weights' row)

Rounding the tokens costs |x / s|·|s·W| per product, rounding the weights likewise, and by Cauchy and Schwarz that is
least where both factors are alike. Tokens count at length 1, for every token is rounded on a scale of its own: else a
sequence's first, which can be a thousand times as long as the others, would alone decide. The division is done where
it costs nothing: in a norm's scale, in a product that an activation gates, and, through attention, whose outputs are
weighted sums of values, in the product of the values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import numpy_helper

from .weights import values

# A channel counts as no smaller than this share of the largest.
_SMALLEST = 1e-5
_TINY = float(np.finfo(np.float32).tiny)


def smoothing(
    model: Any,
    products: Mapping[str, Any],
    sizes: Callable[[Mapping[str, str]], Mapping[str, NDArray[np.float32]]],
    folder: Path | None = None,
) -> dict[str, NDArray[np.float32]]:
    """For each product what its input's channels are to be divided by, shape (in,), by the weight's name.

    Products of one input share it, and each counts with its rows relative to its own size. Channels that one channel
    of a value is the source of, in heads that share keys and values, get the largest of theirs.

    Args:
        model: the float32 graph.
        products: its MatMul nodes by the name of their weight.
        sizes: `channel_sizes` of the tensors it is asked for, each with the name of a product that reads it.
        folder: where the graph's external data are.
    """
    graph = _Graph(model)
    places = {
        name: (members, place)
        for name, members in _by_input(products).items()
        if (place := graph.scale_of(name, members)) is not None
    }
    seen = sizes({name: members[0] for name, (members, _) in places.items()}) if places else {}
    factors: dict[str, NDArray[np.float32]] = {}
    for name, (members, place) in places.items():
        squares = [values(graph.constants[member], folder) ** 2 for member in members]
        rows = np.sqrt(np.mean([square.mean(axis=1) / square.mean() for square in squares], axis=0))
        factor = np.sqrt(_floored(seen[name]) / _floored(rows))
        shared = np.zeros(place.channels.max() + 1, dtype=np.float32)
        np.maximum.at(shared, place.channels, factor)
        factors |= dict.fromkeys(members, shared[place.channels])
    return factors


def channel_sizes(batches: Iterable[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Root mean square of each channel, shape (in,), over tokens of length 1; batches are of shape (…, in)."""
    total, count = np.zeros(1, np.float32), 0
    for batch in batches:
        tokens = unit_tokens(batch.reshape(-1, batch.shape[-1]))
        total, count = total + (tokens**2).sum(axis=0), count + len(tokens)
    return np.sqrt(total / max(count, 1))


def unit_tokens(tokens: NDArray[np.float32]) -> NDArray[np.float32]:
    """Tokens at length 1, shape (tokens, in)."""
    found: NDArray[np.float32] = tokens / np.maximum(np.linalg.norm(tokens, axis=1, keepdims=True), _TINY)
    return found


def smooth(
    model: Any, products: Mapping[str, Any], factors: Mapping[str, NDArray[np.float32]], folder: Path | None = None
) -> None:
    """Divide the inputs of products by `factors` of `smoothing` and multiply their weights, in place.

    Args:
        model: the graph that `smoothing` read.
        products: its MatMul nodes by the name of their weight.
        factors: one per product, shape (in,).
        folder: where the graph's external data are.
    """
    graph = _Graph(model)
    for name, members in _by_input(products).items():
        if members[0] not in factors:
            continue
        place = graph.scale_of(name, members)
        assert place is not None, name
        factor = factors[members[0]]
        shared = np.ones(place.channels.max() + 1, dtype=np.float32)
        shared[place.channels] = factor
        old = place.node.input[place.input]
        scale = values(graph.constants[old], folder) / shared
        if scale.ndim == 1:  # of a norm, which may share it with another
            place.node.input[place.input] = f"{name}.norm"
            model.graph.initializer.append(numpy_helper.from_array(scale, f"{name}.norm"))
        else:
            graph.constants[old].CopyFrom(numpy_helper.from_array(scale, old))
        for member in members:
            weight = values(graph.constants[member], folder) * factor[:, None]
            graph.constants[member].CopyFrom(numpy_helper.from_array(weight, member))
    read = {name for node in model.graph.node for name in node.input}
    for tensor in [t for t in model.graph.initializer if t.name not in read]:
        model.graph.initializer.remove(tensor)


class _Place(NamedTuple):
    """Where a tensor's channels can be scaled: the last axis of a constant input of a node.

    `channels`, shape (in,), says which entry of that axis each channel comes from.
    """

    node: Any
    input: int
    channels: NDArray[np.intp]


class _Graph:
    """Who makes and who reads each tensor of a model."""

    def __init__(self, model: Any) -> None:
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._shapes = {value.name: value.type.tensor_type.shape.dim for value in model.graph.value_info}
        self._makers = {name: node for node in model.graph.node for name in node.output}
        self._readers: dict[str, list[Any]] = {}
        for node in model.graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)

    def scale_of(self, name: str, members: Sequence[str]) -> _Place | None:
        """Where the tensor called `name` can be scaled; None if nowhere, or if others than `members` read it."""
        readers = self._readers.get(name, ())
        if any(node.op_type != "MatMul" or node.input[1] not in members for node in readers):
            return None
        width = self.constants[members[0]].dims[0]
        node = self._makers.get(name)
        if node is not None and node.op_type in ("RMSNormalization", "Mul"):
            for index, source in enumerate(node.input):
                if source in self.constants and len(self.constants[source].dims) == 1:
                    return _Place(node, index, np.arange(width))
                # A gate's own product is read through its activation: dividing it would change the result.
                if self._is_product(source):
                    return _Place(self._makers[source], 1, np.arange(width))
        return self._values_of(name, width)

    def _is_product(self, name: str) -> bool:
        """Whether a product makes the tensor, which nobody else reads, with a weight that nobody else has."""
        node = self._makers.get(name)
        if node is None or node.op_type != "MatMul" or node.input[1] not in self.constants:
            return False
        matrix = len(self.constants[node.input[1]].dims) == 2
        return matrix and len(self._readers[name]) == 1 and len(self._readers[node.input[1]]) == 1

    def _values_of(self, name: str, width: int) -> _Place | None:
        """The product of the values that the operator Attention sums to this tensor, shape (…, heads · size)."""
        heads = size = 0
        while (node := self._makers.get(name)) is not None:
            if node.op_type in ("Reshape", "Transpose", "Unsqueeze", "Gather", "Slice"):
                name = node.input[0]
            elif node.op_type == "Attention" and not size:
                name = node.input[2]
                shape = self._shapes.get(name, ())
                heads, size = (shape[1].dim_value, shape[3].dim_value) if len(shape) == 4 else (0, 0)
                if not heads * size or width % (heads * size):
                    return None
            # Of parts that attend to the same values, or behind those of a prefix, which were scaled when it ran.
            elif node.op_type == "Concat":
                name = node.input[-1]
            else:
                break
            readers = self._readers[name]
            if not size and len(readers) > 1:
                return None
            # Values are also what the graph returns for a prefix, but nothing may take them for keys.
            if any(name in reader.input[:2] for reader in readers if reader.op_type == "Attention"):
                return None
        if not size or not self._is_product(name):
            return None
        channel = np.arange(width)
        head = channel // size // (width // (heads * size))
        return _Place(self._makers[name], 1, head * size + channel % size)


def _floored(sizes: NDArray[np.float32]) -> NDArray[np.float32]:
    floored: NDArray[np.float32] = np.maximum(sizes, max(_SMALLEST * float(sizes.max()), _TINY))
    return floored


def _by_input(products: Mapping[str, Any]) -> dict[str, list[str]]:
    """Weights of the products that read one tensor, by its name."""
    groups: dict[str, list[str]] = {}
    for name, node in products.items():
        groups.setdefault(node.input[0], []).append(name)
    return groups
