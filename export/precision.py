"""A float32 graph in another number format.

- all but float32: the token embedding in float16.
- float16: products and attention in float16, norms, softmax, sums and head in float32; see `fp16`.
- int8: weights and activations in int8, activations with one scale a token; products for which that is too coarse read
  activations in two parts, see `int8`. Where even that is too coarse for all of them, weights alone are in int8, in
  blocks of 32 (com.microsoft MatMulNBits), and activations in float32.
- int4: weights in blocks of 32; products for which that is too coarse with 8 bits a weight.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from .fp16 import halve
from .int8 import Rounded, quantize
from .weights import values

PRECISIONS = ("float32", "float16", "int8", "int4")
# Weights of a block, by bits.
BLOCK = {4: 32, 8: 32}
# MatMulNBits' accuracy levels: what activations are brought to.
_FLOAT32, _INT8 = 1, 4


def convert(
    model: Any,
    precision: str,
    finer: Collection[str] = (),
    folder: Path | None = None,
    *,
    rounded: Rounded | None = None,
    float_activations: bool = False,
) -> None:
    """Bring a graph to `precision`, in place.

    Args:
        model: a float32 graph.
        precision: one of `PRECISIONS`.
        finer: names of weights that take the finer way, under int8 activations in two parts, under int4 8 bits.
        folder: where the graph's external data are.
        rounded: weights of int8 products, see `int8.quantize`.
        float_activations: all products read activations in float32; under int8 their weights are in blocks of 32.
    """
    if precision == "float32":
        return
    _half_embedding(model, folder)
    if precision == "float16":
        halve(model, products(model), folder)
        return
    level = _FLOAT32 if float_activations else _INT8
    if precision == "int4":
        in_blocks(model, finer, 8, folder, level)
        in_blocks(model, products(model), 4, folder, level)
    elif float_activations:
        in_blocks(model, products(model), 8, folder, level)
    else:
        quantize(model, products(model), folder, rounded, finer)


def in_blocks(model: Any, chosen: Collection[str], bits: int, folder: Path | None = None, level: int = _INT8) -> None:
    """Turn the products of the weights called `chosen` to MatMulNBits of this accuracy level, in place."""
    places = {node.input[1]: i for i, node in enumerate(model.graph.node) if {*node.input[1:2]} & {*chosen}}
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name in places]:
        node = model.graph.node[places[tensor.name]]
        made, constants = _blocks(node, values(tensor, folder), bits, level)
        node.CopyFrom(made)
        model.graph.initializer.remove(tensor)
        model.graph.initializer.extend(constants)
    stale = [value for value in model.graph.value_info if value.name in places]
    for value in stale:
        model.graph.value_info.remove(value)
    if places and all(entry.domain != "com.microsoft" for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def _blocks(node: Any, weight: NDArray[np.float32], bits: int, level: int) -> tuple[Any, list[Any]]:
    """A MatMulNBits node for a MatMul, and its constants, as onnxruntime's quantiser makes them."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    # It reports every node that it looks at.
    logging.getLogger("onnxruntime.quantization.matmul_nbits_quantizer").setLevel(logging.WARNING)
    source, name = node.input
    ends = [helper.make_tensor_value_info(end, TensorProto.FLOAT, None) for end in (source, node.output[0])]
    alone = helper.make_graph([node], "product", ends[:1], ends[1:], [numpy_helper.from_array(weight, name)])
    quantizer = MatMulNBitsQuantizer(
        helper.make_model(alone, opset_imports=[helper.make_opsetid("", 21)]), bits=bits, block_size=BLOCK[bits],
        is_symmetric=bits == 8, accuracy_level=level,
    )  # fmt: skip
    quantizer.process()
    graph = quantizer.model.model.graph
    (made,) = graph.node
    return made, [tensor for tensor in graph.initializer if tensor.name in made.input]


def quantized_blocks(weight: NDArray[np.float32], bits: int = 4) -> NDArray[np.float32]:
    """What blocks of `bits` make of a weight, shape (in, out), brought back to float32: a scale and a zero for each."""
    rows, columns = weight.shape
    padded = np.pad(weight, ((0, -rows % BLOCK[bits]), (0, 0))).reshape(-1, BLOCK[bits], columns)
    low, high = np.minimum(padded.min(1, keepdims=True), 0), np.maximum(padded.max(1, keepdims=True), 0)
    scale = (high - low) / (2**bits - 1)
    scale[scale == 0] = 1.0
    zero = np.rint(-low / scale)
    steps = np.clip(np.rint(padded / scale) + zero, 0, 2**bits - 1) - zero
    whole: NDArray[np.float32] = (steps * scale).reshape(-1, columns)[:rows]
    return whole


def products(model: Any) -> dict[str, Any]:
    """Products with a constant weight, by the weight's name; the head, a Gemm, is none: its logits are compared."""
    weights = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) == 2}
    return {node.input[1]: node for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in weights}


def _half_embedding(model: Any, folder: Path | None) -> None:
    """Keep the token embedding in float16, the format most models come in, and turn only the rows used to float32.

    It is half of what a small model weighs, and no product touches it.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer if len(tensor.dims) == 2}
    users: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    for name, tensor in weights.items():
        kinds = {node.op_type for node in users.get(name, ())}
        if tensor.data_type != TensorProto.FLOAT or kinds != {"Gather"}:
            continue
        tensor.CopyFrom(numpy_helper.from_array(values(tensor, folder).astype(np.float16), name))
        for node in users[name]:
            rows = f"{node.output[0]}.fp16"
            cast = helper.make_node("Cast", [rows], [node.output[0]], to=TensorProto.FLOAT)
            node.output[0] = rows
            model.graph.node.insert(list(model.graph.node).index(node) + 1, cast)
