"""From one graph to the two of an exported folder, with one file of weights that both read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from ..model.checkpoint import GRAPH, PREFIX_GRAPH
from .graph import PREFIX_INPUTS

# Smaller tensors (shapes, axes, scalars) stay in the graph.
_SMALLEST = 1024
# The data can then be mapped into memory.
_ALIGNMENT = 4096


def values(tensor: Any, folder: Path | None = None) -> NDArray[Any]:
    """A constant's values; `folder` is where the graph's external data are, if it has any."""
    found: NDArray[Any] = numpy_helper.to_array(tensor, str(folder or ""))
    return found


def write_graphs(model: Any, source: Path, folder: Path) -> None:
    """Write both graphs and their weights into `folder`.

    Args:
        model: the graph with a prefix; changed: its large constants become external.
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
    (folder / PREFIX_GRAPH).write_bytes(model.SerializeToString())
    (folder / GRAPH).write_bytes(without_prefix(model).SerializeToString())


def without_prefix(model: Any) -> Any:
    """The plain graph: the one with a prefix, given an empty one, and without what it returns for a prefix."""
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    graph = plain.graph
    for value in [value for value in graph.input if value.name in PREFIX_INPUTS]:
        shape = [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]  # 0 where it varies: the length
        graph.initializer.append(numpy_helper.from_array(np.zeros(shape, np.float32), value.name))
        graph.input.remove(value)
    for value in [value for value in graph.output if value.name not in ("logits", "features")]:
        graph.output.remove(value)
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in reversed(kept)]
    del graph.node[:]
    graph.node.extend(nodes)
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in needed]:
        graph.initializer.remove(tensor)
    return plain
