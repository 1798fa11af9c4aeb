"""A float32 graph in another number format.

- all three: the token embedding in float16.
- fp16: weights of all products in float16, each product in float16, everything between them (norms, rotary, softmax,
  residual sums, head) in float32, so that only a product can overflow.
- int8: weights with one scale a column, activations uint8 with one scale a token; see `int8`. Products that lose more
  than `int8.SENSITIVE` of their output on a calibration set stay float32.
- int4: weights in blocks of 32 (com.microsoft MatMulNBits).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .int8 import quantize

PRECISIONS = ("fp32", "fp16", "int8", "int4")


def convert(source: Path, target: Path, precision: str, keep: Sequence[str] = ()) -> None:
    """Write `source` in `precision` to `target` (with external data beside it); products named in `keep` stay float32.

    Args:
        source: a float32 graph.
        target: the graph to write.
        precision: one of `PRECISIONS` but "fp32".
        keep: names of the weights that stay float32.
    """
    model = onnx.load(str(source))
    _half_embedding(model)
    excluded = [node.name for node in model.graph.node if node.op_type in ("MatMul", "Gemm") and _kept(node, keep)]
    if precision == "fp16":
        _half(model, excluded)
        onnx.save(model, str(target), save_as_external_data=True, location=target.name + ".data")
    elif precision == "int8":
        quantize(model, {name: node for name, node in products(model).items() if node.name not in excluded})
        onnx.save(model, str(target), save_as_external_data=True, location=target.name + ".data")
    else:
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        # It reports every node it leaves alone.
        logging.getLogger("onnxruntime.quantization.matmul_nbits_quantizer").setLevel(logging.WARNING)
        quantizer = MatMulNBitsQuantizer(
            model, bits=4, block_size=32, is_symmetric=False, accuracy_level=4, nodes_to_exclude=excluded
        )
        quantizer.process()
        quantizer.model.save_model_to_file(str(target), use_external_data_format=True)


def _kept(node: Any, keep: Sequence[str]) -> bool:
    # The head has K rows: nothing to gain, and its logits are what is compared.
    return any(name in keep or name.startswith("head.") for name in node.input)


def products(model: Any) -> dict[str, Any]:
    """Products with a constant weight, by the weight's name."""
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


def _half(model: Any, excluded: Sequence[str]) -> None:
    chosen = {name: node for name, node in products(model).items() if node.name not in excluded}
    for tensor in model.graph.initializer:
        if tensor.name in chosen:
            values = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    # Shapes and types that the tracer noted for these weights no longer hold.
    stale = [value for value in model.graph.value_info if value.name in chosen]
    for value in stale:
        model.graph.value_info.remove(value)
    nodes = []
    for node in model.graph.node:
        if node.op_type != "MatMul" or node.input[1] not in chosen:
            nodes.append(node)
            continue
        output = node.output[0]
        half_in, half_out = f"{output}.fp16_in", f"{output}.fp16"
        nodes.append(helper.make_node("Cast", [node.input[0]], [half_in], to=TensorProto.FLOAT16))
        node.input[0], node.output[0] = half_in, half_out
        nodes.extend((node, helper.make_node("Cast", [half_out], [output], to=TensorProto.FLOAT)))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
