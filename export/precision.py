"""A float32 graph in another number format.

- all three: the token embedding in float16.
- fp16: products and attention in float16, norms, softmax, sums and head in float32; see `fp16`.
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

from .fp16 import halve
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
    chosen = {name: node for name, node in products(model).items() if name not in keep}
    _half_embedding(model)
    if precision == "int4":
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        # It reports every node it leaves alone.
        logging.getLogger("onnxruntime.quantization.matmul_nbits_quantizer").setLevel(logging.WARNING)
        quantizer = MatMulNBitsQuantizer(
            model, bits=4, block_size=32, is_symmetric=False, accuracy_level=4,
            nodes_to_exclude=[node.name for node in model.graph.node if node.op_type in ("MatMul", "Gemm")
                              and node.input[1] not in chosen],
        )  # fmt: skip
        quantizer.process()
        quantizer.model.save_model_to_file(str(target), use_external_data_format=True)
        return
    if precision == "fp16":
        halve(model, chosen)
    else:
        quantize(model, chosen)
    onnx.save(model, str(target), save_as_external_data=True, location=target.name + ".data")


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
