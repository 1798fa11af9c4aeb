"""int8 products whose result for a token depends on that token alone: here with one scale a token.

Weights are int8 with one scale a column; activations are uint8 with one scale a token and the zero point 128 (dynamic
per-token quantisation; Yao et al., "ZeroQuant", NeurIPS 2022). ONNX Runtime's own dynamic quantisation takes one scale
for a whole batch: then a pair's score depends on what else is in the batch, and one token with large activations, as
every sequence's first has, costs all others their precision. Per token a product is exact integer arithmetic.

A product x·W becomes, with s = max |x| / 127 for each token:

    round(x / s) + 128  as uint8  ->  MatMulIntegerToFloat (com.microsoft)  ->  times s

Before, `smoothing` evens out the channels that a product reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from .weights import values

_TINY = 1e-12
_CONSTANTS = {
    "int8.axis": np.array([-1], dtype=np.int64),
    "int8.step": np.array(1 / 127, dtype=np.float32),
    "int8.tiny": np.array(_TINY, dtype=np.float32),
    "int8.one": np.array(1, dtype=np.float32),
    "int8.zero": np.array(128, dtype=np.uint8),
}


def quantize(model: Any, chosen: Mapping[str, Any], folder: Path | None = None) -> None:
    """Replace products in place.

    Args:
        model: the float32 graph.
        chosen: MatMul nodes by the name of their constant weight, shape (in, out).
        folder: where the graph's external data are.
    """
    for tensor in [t for t in model.graph.initializer if t.name in chosen]:
        weight, scale = quantized_columns(values(tensor, folder))
        tensor.CopyFrom(numpy_helper.from_array(weight.astype(np.int8), tensor.name))
        model.graph.initializer.append(numpy_helper.from_array(scale[0], f"{tensor.name}.scale"))
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in _CONSTANTS.items())
    # Shapes and types that the tracer noted for these weights no longer hold.
    stale = [value for value in model.graph.value_info if value.name in chosen]
    for value in stale:
        model.graph.value_info.remove(value)
    nodes: list[Any] = []
    done: set[str] = set()
    for node in model.graph.node:
        if node.op_type != "MatMul" or node.input[1] not in chosen:
            nodes.append(node)
            continue
        source, weight_name = node.input
        if source not in done:  # products of one input share its quantised form
            nodes += _quantize_tokens(source)
            done.add(source)
        output = node.output[0]
        nodes += [
            helper.make_node(
                "MatMulIntegerToFloat",
                [f"{source}.int8", weight_name, "int8.one", f"{weight_name}.scale", "int8.zero"],
                [f"{output}.unscaled"],
                domain="com.microsoft",
                name=f"{node.name}.int8",
            ),
            helper.make_node("Mul", [f"{output}.unscaled", f"{source}.scale"], [output]),
        ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    if all(entry.domain != "com.microsoft" for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def _quantize_tokens(source: str) -> list[Any]:
    """`source`.int8 and `source`.scale of an activation, shape (…, in) and (…, 1)."""
    node = helper.make_node
    return [
        node("Abs", [source], [f"{source}.abs"]),
        node("ReduceMax", [f"{source}.abs", "int8.axis"], [f"{source}.largest"], keepdims=1),
        node("Mul", [f"{source}.largest", "int8.step"], [f"{source}.step"]),
        node("Max", [f"{source}.step", "int8.tiny"], [f"{source}.scale"]),
        node("Div", [source, f"{source}.scale"], [f"{source}.steps"]),
        node("QuantizeLinear", [f"{source}.steps", "int8.one", "int8.zero"], [f"{source}.int8"]),
    ]


def quantized_columns(weight: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Whole numbers in -127..127, shape (in, out), and the scale of each column, shape (1, out)."""
    scale = np.abs(weight).max(axis=0, keepdims=True) / 127
    scale[scale == 0] = 1.0
    return np.rint(weight / scale), scale.astype(np.float32)


def quantized_tokens(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the graph makes of activations, shape (tokens, in), brought back to float32."""
    scale = np.maximum(np.abs(values).max(axis=1, keepdims=True) / 127, _TINY)
    rounded: NDArray[np.float32] = np.rint(values / scale) * scale
    return rounded
