"""int8 products whose result for a token depends on that token alone: here with one scale a token.

Weights are int8 with one scale a column; activations are uint8 with one scale a token and the zero point 128 (dynamic
per-token quantisation; Yao et al., "ZeroQuant", NeurIPS 2022). ONNX Runtime's own dynamic quantisation takes one scale
for a whole batch: then a pair's score depends on what else is in the batch, and one token with large activations, as
every sequence's first has, costs all others their precision. Per token a product is exact integer arithmetic.

A product x·W becomes, with s = max |x| / 127 for each token:

    round(x / s) + 128  as uint8  ->  MatMulIntegerToFloat (com.microsoft)  ->  times s

A few channels, behind a norm or of a gated layer, are far larger than the others and would take all 255 steps. `smooth`
moves their size into the weights first, which changes no result in float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from .activations import activations

# A product is computed in blocks if one scale a token loses more than this share of its output (relative error in L2);
# the next bound is tried where the graph as a whole does not grade as torch does. The last takes them all.
SENSITIVE = (0.05, 0.02, 0.0)
# How much of the activations' unevenness goes to the weights, 0 to 1.
MIGRATION = 0.7
_TINY = 1e-12
_CONSTANTS = {
    "int8.axis": np.array([-1], dtype=np.int64),
    "int8.step": np.array(1 / 127, dtype=np.float32),
    "int8.tiny": np.array(_TINY, dtype=np.float32),
    "int8.one": np.array(1, dtype=np.float32),
    "int8.zero": np.array(128, dtype=np.uint8),
}


def quantize(model: Any, chosen: Mapping[str, Any]) -> None:
    """Replace products in place.

    Args:
        model: the float32 graph, weights loaded.
        chosen: MatMul nodes by the name of their constant weight, shape (in, out).
    """
    for tensor in [t for t in model.graph.initializer if t.name in chosen]:
        weight, scale = quantized_columns(numpy_helper.to_array(tensor))
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


def smoothing(
    source: Path, products: Mapping[str, Any], calibration: Sequence[Mapping[str, NDArray[Any]]]
) -> dict[str, NDArray[np.float32]]:
    """For each product what its input's channels are to be divided by, shape (in,), by the weight's name.

    s_j = max |x_j|^m / max |W_j|^(1 − m), m = `MIGRATION`, over the tokens of a calibration set and over all products
    of the same input (SmoothQuant; Xiao et al., ICML 2023).

    Args:
        source: the float32 graph.
        products: its MatMul nodes by the name of their weight.
        calibration: inputs of the graph.
    """
    model = onnx.load(str(source))
    weights = _weights(model, products)
    groups = {
        source_name: members
        for source_name, members in _by_input(products).items()
        if _scaled_by(model, source_name, members) is not None
    }
    seen = activations(source, list(groups), calibration) if groups else []
    factors: dict[str, NDArray[np.float32]] = {}
    for source_name, members in groups.items():
        width = weights[members[0]].shape[0]
        largest = np.max([np.abs(batch[source_name].reshape(-1, width)).max(axis=0) for batch in seen], axis=0)
        rows = np.max([np.abs(weights[name]).max(axis=1) for name in members], axis=0)
        factor = np.maximum(largest, 1e-5) ** MIGRATION / np.maximum(rows, 1e-5) ** (1 - MIGRATION)
        factors |= dict.fromkeys(members, factor.astype(np.float32))
    return factors


def smooth(model: Any, products: Mapping[str, Any], factors: Mapping[str, NDArray[np.float32]]) -> None:
    """Divide the inputs of products by `factors` of `smoothing` and multiply their weights, in place.

    What computes an input is a norm, whose scale is divided, or a product times an activation, as in a gated MLP: then
    that product's columns are, which costs it nothing, since each has a scale of its own.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for source_name, members in _by_input(products).items():
        found = _scaled_by(model, source_name, members)
        if found is None or members[0] not in factors:
            continue
        node, place = found
        factor = factors[members[0]]
        scale = (numpy_helper.to_array(tensors[node.input[place]]) / factor).astype(np.float32)
        if scale.ndim == 2:
            tensors[node.input[place]].CopyFrom(numpy_helper.from_array(scale, node.input[place]))
        else:
            # A new tensor: two norms may share one.
            node.input[place] = f"{source_name}.norm"
            model.graph.initializer.append(numpy_helper.from_array(scale, node.input[place]))
        for name in members:
            weight = numpy_helper.to_array(tensors[name]) * factor[:, None]
            tensors[name].CopyFrom(numpy_helper.from_array(weight.astype(np.float32), name))
    read = {name for node in model.graph.node for name in node.input}
    for tensor in [t for t in model.graph.initializer if t.name not in read]:
        model.graph.initializer.remove(tensor)


def _weights(model: Any, products: Mapping[str, Any]) -> dict[str, NDArray[np.float32]]:
    """The products' weights, shape (in, out), by name."""
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if t.name in products}


def _by_input(products: Mapping[str, Any]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name, node in products.items():
        groups.setdefault(node.input[0], []).append(name)
    return groups


def _scaled_by(model: Any, source_name: str, members: Sequence[str]) -> tuple[Any, int] | None:
    """The node whose constant input scales a tensor's channels, and that input's place; None if others read the tensor.

    The scale of a norm, shape (in,), or the weight of a product that is multiplied by an activation, shape (…, in).
    """
    constants = {tensor.name: len(tensor.dims) for tensor in model.graph.initializer}
    readers: dict[str, list[Any]] = {}
    makers: dict[str, Any] = {}
    for node in model.graph.node:
        makers |= dict.fromkeys(node.output, node)
        for name in node.input:
            readers.setdefault(name, []).append(node)
    if any(node.op_type != "MatMul" or node.input[1] not in members for node in readers.get(source_name, ())):
        return None
    node = makers.get(source_name)
    if node is None or node.op_type not in ("RMSNormalization", "Mul"):
        return None
    for place, name in enumerate(node.input):
        if constants.get(name) == 1:
            return node, place
        maker = makers.get(name)
        if maker is not None and maker.op_type == "MatMul" and constants.get(maker.input[1]) == 2:
            # A gate's own product is read twice or through its activation: dividing it would change the result.
            if len(readers[name]) == 1 and len(readers[maker.input[1]]) == 1:
                return maker, 1
    return None


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


def token_errors(
    source: Path, products: Mapping[str, Any], calibration: Sequence[Mapping[str, NDArray[Any]]]
) -> dict[str, float]:
    """What one scale a token costs each product: the largest relative error of its output, by the weight's name.

    Every product is computed from the float32 graph's own activations, quantised and not.

    Args:
        source: the float32 graph.
        products: its MatMul nodes by the name of their weight.
        calibration: inputs of the graph.
    """
    weights = _weights(onnx.load(str(source)), products)
    low: dict[str, NDArray[np.float32]] = {}
    for name, weight in weights.items():
        whole, scale = quantized_columns(weight)
        low[name] = whole * scale
    errors: dict[str, float] = {}
    for seen in activations(source, [node.input[0] for node in products.values()], calibration):
        for name, node in products.items():
            tokens = seen[node.input[0]].reshape(-1, weights[name].shape[0])
            exact = tokens @ weights[name]
            error = quantized_tokens(tokens) @ low[name] - exact
            share = float(np.linalg.norm(error) / max(float(np.linalg.norm(exact)), _TINY))
            errors[name] = max(errors.get(name, 0.0), share)
    return errors
