"""From one graph to the two of an exported folder, with one file of weights that both read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from ..model.checkpoint import GRAPH, PREFIX_GRAPH
from .names import OUTPUTS, PREFIX_INPUTS

# Smaller tensors (shapes, axes, scalars) stay in the graph.
_SMALLEST = 1024
# The data can then be mapped into memory.
_ALIGNMENT = 4096


def values(tensor: Any, folder: Path | None = None) -> NDArray[Any]:
    """A constant's values; `folder` is where the graph's external data are, if it has any."""
    found: NDArray[Any] = numpy_helper.to_array(tensor, str(folder or ""))
    return found


def write_weights(model: Any, source: Path, folder: Path) -> None:
    """Write a graph's large constants into `folder`, from where the graph and its parts then read them.

    Args:
        model: the graph; changed.
        source: folder of those constants that are external already.
        folder: where to.
    """
    data = folder / f"{GRAPH}_data"
    with data.open("wb") as stream:
        for tensor in model.graph.initializer:
            external = tensor.data_location == onnx.TensorProto.EXTERNAL
            content = values(tensor, source).tobytes() if external else tensor.raw_data
            if len(content) < _SMALLEST:
                if external:
                    tensor.CopyFrom(numpy_helper.from_array(values(tensor, source), tensor.name))
                continue
            stream.write(b"\0" * (-stream.tell() % _ALIGNMENT))
            place = {"location": data.name, "offset": str(stream.tell()), "length": str(len(content))}
            stream.write(content)
            tensor.ClearField("raw_data")
            tensor.ClearField("external_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for name, value in place.items():
                entry = tensor.external_data.add()
                entry.key, entry.value = name, value


def write_graphs(model: Any, folder: Path) -> None:
    """Write both graphs into `folder`, where their weights are."""
    whole = sliced(model, OUTPUTS)
    (folder / PREFIX_GRAPH).write_bytes(whole.SerializeToString())
    (folder / GRAPH).write_bytes(without_prefix(whole).SerializeToString())


def without_prefix(model: Any) -> Any:
    """The plain graph: the one with a prefix, given an empty one, and without what it returns for a prefix."""
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    graph = plain.graph
    for value in [value for value in graph.input if value.name in PREFIX_INPUTS]:
        shape = [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]  # 0 where it varies: the length
        graph.initializer.append(numpy_helper.from_array(np.zeros(shape, np.float32), value.name))
        graph.input.remove(value)
    return sliced(plain, ("logits", "features"))


def sliced(model: Any, outputs: Sequence[str], cut: str | None = None) -> Any:
    """The part of a graph that makes `outputs`, as a graph with the inputs that it needs.

    Args:
        model: a graph; not changed.
        outputs: some of its outputs.
        cut: a tensor that is there already, so that what makes it is left out.
    """
    part = onnx.ModelProto()
    part.CopyFrom(model)
    graph, needed, nodes = part.graph, set(outputs), []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output) and cut not in node.output:
            nodes.append(node)
            needed.update(node.input)
    for values, wanted in ((graph.input, needed), (graph.output, set(outputs)), (graph.initializer, needed)):
        for value in [value for value in values if value.name not in wanted]:
            values.remove(value)
    del graph.node[:]
    graph.node.extend(reversed(nodes))
    return part
