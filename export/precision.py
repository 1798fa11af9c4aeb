"""A float32 graph in another number format.

- fp16: weights of all products in float16, each product in float16, everything between them (norms, rotary, softmax,
  residual sums, head) in float32, so that only a product can overflow.
- int8: weights per channel, activations uint8, quantised as they come (MatMulInteger). Products that lose more than
  `SENSITIVE` of their output on a calibration set stay float32.
- int4: weights in blocks of 32 (com.microsoft MatMulNBits).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

PRECISIONS = ("fp32", "fp16", "int8", "int4")
# A product stays float32 if quantising loses more than this share of its output (relative error in L2).
SENSITIVE = 0.05
_Inputs = dict[str, NDArray[Any]]


def convert(source: Path, target: Path, precision: str, keep: Sequence[str] = ()) -> None:
    """Write `source` in `precision` to `target` (with external data beside it); products named in `keep` stay float32.

    Args:
        source: a float32 graph.
        target: the graph to write.
        precision: one of `PRECISIONS` but "fp32".
        keep: names of the weights that stay float32.
    """
    model = onnx.load(str(source))
    excluded = [node.name for node in model.graph.node if node.op_type in ("MatMul", "Gemm") and _kept(node, keep)]
    if precision == "fp16":
        _half(model, excluded)
        onnx.save(model, str(target), save_as_external_data=True, location=target.name + ".data")
    elif precision == "int8":
        from onnxruntime.quantization import QuantType, quantize_dynamic

        logging.getLogger().setLevel(logging.ERROR)
        quantize_dynamic(
            str(source), str(target), op_types_to_quantize=["MatMul"], per_channel=True, weight_type=QuantType.QInt8,
            nodes_to_exclude=excluded, use_external_data_format=True,
        )  # fmt: skip
    else:
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

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


def sensitive(source: Path, calibration: Sequence[_Inputs], bound: float = SENSITIVE) -> dict[str, float]:
    """Products that quantising to int8 hurts most: weight's name and the largest relative error of its output.

    Every product is computed from the float32 graph's own activations, with uint8 activations (one scale a batch) and
    int8 weights (one scale a column), and compared with the exact one.

    Args:
        source: the float32 graph.
        calibration: inputs of the graph.
        bound: report products with a larger error.
    """
    model = onnx.load(str(source))
    found = products(model)
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if t.name in found}
    inputs = sorted({node.input[0] for name, node in found.items() if not name.startswith("head.")})
    for name in inputs:
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    watched = source.with_name("watched.onnx")
    onnx.save(model, str(watched), save_as_external_data=True, location="watched.data")
    session = onnxruntime.InferenceSession(str(watched), providers=["CPUExecutionProvider"])
    errors: dict[str, float] = {}
    for batch in calibration:
        seen = dict(zip(inputs, session.run(inputs, batch), strict=True))
        for name, node in found.items():
            if node.input[0] not in seen:
                continue
            activations = seen[node.input[0]].reshape(-1, weights[name].shape[0])
            exact = activations @ weights[name]
            error = _uint8(activations) @ _int8(weights[name]) - exact
            share = float(np.linalg.norm(error) / max(float(np.linalg.norm(exact)), 1e-12))
            errors[name] = max(errors.get(name, 0.0), share)
    del session
    watched.unlink()
    watched.with_name("watched.data").unlink()
    return {name: error for name, error in sorted(errors.items(), key=lambda item: -item[1]) if error > bound}


def _uint8(values: NDArray[np.float32]) -> NDArray[np.float32]:
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    scale = (high - low) / 255 or 1.0
    zero = round(-low / scale)
    rounded: NDArray[np.float32] = (np.clip(np.rint(values / scale) + zero, 0, 255) - zero).astype(np.float32) * scale
    return rounded


def _int8(values: NDArray[np.float32]) -> NDArray[np.float32]:
    scale = np.abs(values).max(axis=0, keepdims=True) / 127
    scale[scale == 0] = 1.0
    rounded: NDArray[np.float32] = np.rint(values / scale) * scale
    return rounded
