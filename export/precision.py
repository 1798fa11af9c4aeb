"""A float32 graph in another number format.

- all three: the token embedding in float16.
- fp16: products and attention in float16, norms, softmax, sums and head in float32; see `fp16`.
- int8: weights and activations in int8, activations with one scale a token (see `int8`); products for which that is too
  coarse in blocks of 32, weights and activations alike (com.microsoft MatMulNBits), which is slower and finer.
- int4: weights in blocks of 32, in the same way.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .fp16 import halve
from .int8 import quantize

PRECISIONS = ("fp32", "fp16", "int8", "int4")
# Weights of a block, by bits.
BLOCK = {4: 32, 8: 32}
# MatMulNBits' name for "activations in int8".
_INT8 = 4


def convert(source: Path, target: Path, precision: str, in_blocks: Collection[str] = ()) -> None:
    """Write `source` in `precision` to `target`, with external data beside it.

    Args:
        source: a float32 graph.
        target: the graph to write.
        precision: one of `PRECISIONS` but "fp32".
        in_blocks: under int8, names of the weights that are quantised in blocks.
    """
    model = onnx.load(str(source))
    _half_embedding(model)
    if precision == "fp16":
        halve(model, products(model))
    elif precision == "int4":
        model = _in_blocks(model, products(model), bits=4)
    else:
        model = _in_blocks(model, in_blocks, bits=8)
        quantize(model, products(model))
    onnx.save(model, str(target), save_as_external_data=True, location=target.name + ".data")


def _in_blocks(model: Any, chosen: Collection[str], *, bits: int) -> Any:
    """`model` with the products of the weights called `chosen` as MatMulNBits; what it computes in is int8."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    if not chosen:
        return model
    # It reports every node that it leaves alone.
    logging.getLogger("onnxruntime.quantization.matmul_nbits_quantizer").setLevel(logging.WARNING)
    others = [
        node.name for node in model.graph.node if node.op_type in ("MatMul", "Gemm") and node.input[1] not in chosen
    ]
    quantizer = MatMulNBitsQuantizer(
        model, bits=bits, block_size=BLOCK[bits], is_symmetric=bits == 8, accuracy_level=_INT8, nodes_to_exclude=others
    )
    quantizer.process()
    return quantizer.model.model


def products(model: Any) -> dict[str, Any]:
    """Products with a constant weight, by the weight's name; the head, a Gemm, is none: its logits are compared."""
    weights = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) == 2}
    return {node.input[1]: node for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in weights}


def _half_embedding(model: Any) -> None:
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
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), name))
        for node in users[name]:
            rows = f"{node.output[0]}.fp16"
            cast = helper.make_node("Cast", [rows], [node.output[0]], to=TensorProto.FLOAT)
            node.output[0] = rows
            model.graph.node.insert(list(model.graph.node).index(node) + 1, cast)
