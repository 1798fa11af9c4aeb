"""int8 products whose result for a token depends on that token alone: here with one scale a token.

Weights are int8 with one scale a column; activations are uint8 with one scale a token and the zero point 128 (dynamic
per-token quantisation; Yao et al., "ZeroQuant", NeurIPS 2022). ONNX Runtime's own dynamic quantisation takes one scale
for a whole batch: then a pair's score depends on what else is in the batch, and one token with large activations, as
every sequence's first has, costs all others their precision. Per token a product is exact integer arithmetic.

A product x·W becomes, with s = max |x| / 127 for each token:

    round(x / s) + 128  as uint8  ->  MatMulIntegerToFloat (com.microsoft)  ->  times s

The last step is left to the next product's scale where nothing but a gate stands between the two, and to the cosines
and sines that queries and keys are multiplied with. Before, `smoothing`
evens out the channels that a product reads.

Almost all of the error that is left is the activations', where a token has a few channels far larger than the others.
Products for which it is too large read activations in two parts, both in int8: the token as above, and what that leaves
of it, in steps 254 times as fine. They take twice the time; on a CPU blocks of 32 take five times, and lose more.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from .packing import COUNTED
from .rounding import column_scales, rounded_columns
from .weights import values

# Weights in whole steps of `rounding.column_scales`, shape (in, out), by the product's name.
Rounded = Mapping[str, NDArray[np.int8]]
_TINY = 1e-12
_LEVELS = 127
_CONSTANTS = {
    "int8.axis": np.array([-1], dtype=np.int64),
    "int8.step": np.array(1 / _LEVELS, dtype=np.float32),
    "int8.tiny": np.array(_TINY * _LEVELS, dtype=np.float32),
    "int8.one": np.array(1, dtype=np.float32),
    "int8.zero": np.array(128, dtype=np.uint8),
    "int8.flat": np.array([-1], dtype=np.int64),
}
# What rounding leaves is at most half a step.
_PART = {"int8.part": np.array(1 / 254, dtype=np.float32)}


def quantize(
    model: Any,
    chosen: Mapping[str, Any],
    folder: Path | None = None,
    rounded: Rounded | None = None,
    finer: Collection[str] = (),
) -> None:
    """Replace products in place.

    Args:
        model: the float32 graph.
        chosen: MatMul nodes by the name of their constant weight, shape (in, out).
        folder: where the graph's external data are.
        rounded: weights by name, as `rounded_columns` gives them; each number of the others is rounded to the nearest.
        finer: names of weights whose products read activations in two parts.
    """
    rounded = rounded or {}
    for tensor in [t for t in model.graph.initializer if t.name in chosen]:
        weight = values(tensor, folder)
        whole = rounded[tensor.name] if tensor.name in rounded else rounded_columns(weight)
        tensor.CopyFrom(numpy_helper.from_array(whole, tensor.name))
        model.graph.initializer.append(numpy_helper.from_array(column_scales(weight)[0], f"{tensor.name}.scale"))
    constants = _CONSTANTS | (_PART if finer else {})
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    # Shapes and types that the tracer noted for these weights no longer hold.
    stale = [value for value in model.graph.value_info if value.name in chosen]
    for value in stale:
        model.graph.value_info.remove(value)
    late = _scaled_late(model, chosen)
    turned = _turned(model, chosen)
    unscaled = {product for product, _ in late.values()} | {product for product, _ in turned.values()}
    zeros = _Zeros(model)
    nodes: list[Any] = []
    done: set[str] = set()
    for node in model.graph.node:
        if node.output[0] in turned:
            nodes += _scale_angles(node, turned[node.output[0]][1], done)
        if node.op_type != "MatMul" or node.input[1] not in chosen:
            nodes.append(node)
            continue
        source, name = node.input
        if source not in done:  # products of one input share its quantised form
            nodes += _quantize_tokens(source, late.get(source), zeros)
            done.add(source)
        if name in finer and f"{source}.rest" not in done:
            nodes += _quantize_rest(source, zeros.of(source)[0])
            done.add(f"{source}.rest")
        nodes += _product(node, finer=name in finer, scaled=node.output[0] not in unscaled)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    if all(entry.domain != "com.microsoft" for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def _product(node: Any, *, finer: bool, scaled: bool) -> list[Any]:
    """What stands for a MatMul: the product of one part, or if `finer` of both; if `scaled`, times a token's scale."""
    (source, name), output = node.input, node.output[0]
    made = f"{output}.unscaled" if scaled else output
    parts = {"int8": f"{output}.first", "rest": f"{output}.second"} if finer else {"int8": made}
    nodes = [
        helper.make_node(
            "MatMulIntegerToFloat",
            [f"{source}.{kind}", name, "int8.part" if kind == "rest" else "int8.one", f"{name}.scale", "int8.zero"],
            [part],
            domain="com.microsoft",
            name=f"{node.name}.{kind}",
        )
        for kind, part in parts.items()
    ]
    if finer:
        nodes.append(helper.make_node("Add", list(parts.values()), [made]))
    if scaled:
        nodes.append(helper.make_node("Mul", [made, f"{source}.scale"], [output]))
    return nodes


def _readers(model: Any) -> dict[str, list[Any]]:
    """The nodes that read each tensor; None among them for an output of the graph, which someone unknown reads."""
    found: dict[str, list[Any]] = {value.name: [None] for value in model.graph.output}
    for node in model.graph.node:
        for name in node.input:
            found.setdefault(name, []).append(node)
    return found


def _scaled_late(model: Any, chosen: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Tensors that are another's product with a product's, and are only quantised then: the product, and its input.

    A token's scale need not be multiplied into such a product, as long as it is multiplied into the next scale.
    """
    readers = _readers(model)
    found: dict[str, tuple[str, str]] = {}
    for node in chosen.values():
        product = node.output[0]
        only = readers.get(product, [])
        if len(only) != 1 or only[0] is None or only[0].op_type != "Mul":
            continue
        gated = only[0].output[0]
        read_by = readers.get(gated, [None])
        if gated not in found and all(
            reader is not None and reader.op_type == "MatMul" and reader.input[1] in chosen for reader in read_by
        ):
            found[gated] = product, node.input[0]
    return found


def _turned(model: Any, chosen: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Outputs of rotary embeddings that are all that reads a product: the product, and its input."""
    readers = _readers(model)
    found: dict[str, tuple[str, str]] = {}
    for node in chosen.values():
        only = [node]
        while len(only) == 1 and only[0] is not None and (only[0] is node or only[0].op_type == "Reshape"):
            only = readers.get(only[0].output[0], [])
        if len(only) != 1 or only[0] is None or only[0].op_type != "RotaryEmbedding":
            continue
        # What is not turned would not be scaled.
        if all(a.i == 0 for a in only[0].attribute if a.name == "rotary_embedding_dim"):
            found[only[0].output[0]] = node.output[0], node.input[0]
    return found


def _scale_angles(rotary: Any, source: str, done: set[str]) -> list[Any]:
    """Cosines and sines, shape (1, tokens, size / 2), times the scale of `source`, which `rotary` reads from now on."""
    nodes = []
    for place in (1, 2):
        name = f"{rotary.input[place]}.{source}"
        if name not in done:
            nodes.append(helper.make_node("Mul", [rotary.input[place], f"{source}.scale"], [name]))
            done.add(name)
        rotary.input[place] = name
    return nodes


class _Zeros:
    """Zero points for every token: made once for all activations of as many tokens, where that is known of them.

    Args:
        model: the graph, which `packing` has put tables in front of, or another.
    """

    def __init__(self, model: Any) -> None:
        made = {name for node in model.graph.node for name in node.output}
        tables = {dimension: table for dimension, table in COUNTED.items() if table in made}
        self._tables: dict[str, str] = {}
        for value in model.graph.value_info:
            shape = value.type.tensor_type.shape.dim
            if len(shape) == 3 and shape[0].dim_value == 1 and shape[1].dim_param in tables:
                self._tables[value.name] = tables[shape[1].dim_param]
        self._done: set[str] = set()

    def of(self, source: str) -> tuple[str, list[Any]]:
        """Their name for an activation, whose scales are there, and what has yet to be done to make them."""
        counted = self._tables.get(source, f"{source}.scales")
        if counted in self._done:
            return f"{counted}.zeros", []
        self._done.add(counted)
        return f"{counted}.zeros", [
            helper.make_node("Shape", [counted], [f"{counted}.count"]),
            helper.make_node("Expand", ["int8.zero", f"{counted}.count"], [f"{counted}.zeros"]),
        ]


def _quantize_tokens(source: str, late: tuple[str, str] | None, zeros: _Zeros) -> list[Any]:
    """`source`.int8 and `source`.scale of an activation, shape (1, tokens, in) and (1, tokens, 1)."""
    node = helper.make_node
    scale = f"{source}.own_scale" if late else f"{source}.scale"
    zero, made = zeros.of(source)
    nodes = [
        # Both read only, where the absolute values would have to be written first.
        node("ReduceMax", [source, "int8.axis"], [f"{source}.highest"], keepdims=1),
        node("ReduceMin", [source, "int8.axis"], [f"{source}.lowest"], keepdims=1),
        node("Neg", [f"{source}.lowest"], [f"{source}.depth"]),
        node("Max", [f"{source}.highest", f"{source}.depth", "int8.tiny"], [f"{source}.largest"]),
        node("Mul", [f"{source}.largest", "int8.step"], [scale]),
        # An axis takes its scales in one dimension, each with a zero point.
        node("Reshape", [scale, "int8.flat"], [f"{source}.scales"]),
        *made,
        node("QuantizeLinear", [source, f"{source}.scales", zero], [f"{source}.int8"], axis=-2),
    ]
    if late:
        nodes.append(node("Mul", [scale, f"{late[1]}.scale"], [f"{source}.scale"]))
    return nodes


def _quantize_rest(source: str, zeros: str) -> list[Any]:
    """`source`.rest: what `source`.int8 leaves of an activation, in steps of `int8.part` of its token's scale."""
    node, scales = helper.make_node, f"{source}.scales"
    return [
        node("DequantizeLinear", [f"{source}.int8", scales, zeros], [f"{source}.taken"], axis=-2),
        node("Sub", [source, f"{source}.taken"], [f"{source}.left"]),
        node("Mul", [scales, "int8.part"], [f"{source}.parts"]),
        node("QuantizeLinear", [f"{source}.left", f"{source}.parts", zeros], [f"{source}.rest"], axis=-2),
    ]


def quantized_tokens(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the graph makes of activations, shape (tokens, in), brought back to float32."""
    scale = np.maximum(np.abs(values).max(axis=1, keepdims=True) / _LEVELS, _TINY)
    rounded: NDArray[np.float32] = np.rint(values / scale) * scale
    return rounded
