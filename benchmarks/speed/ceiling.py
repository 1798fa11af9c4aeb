"""The most that this machine's matrix products do, measured: what shares of a ceiling are taken of."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from darl_rerank import Checkpoint

TOKENS = 1024
SQUARE = 2048
_SECONDS = 0.5


def linear_shapes(checkpoint: Checkpoint) -> list[tuple[int, int]]:
    """(inputs, outputs) of one layer's products, queries, keys and values being one, gate and up another."""
    from darl_rerank.model.base_weights import load_body

    layer = load_body(checkpoint, torch.bfloat16).layers[0]
    found = [tuple(module.weight.T.shape) for module in layer.modules() if isinstance(module, torch.nn.Linear)]
    return [(int(i), int(o)) for i, o in dict.fromkeys(found)]


def linear_parameters(checkpoint: Checkpoint) -> int:
    """Weights of all linear layers: two floating-point operations each for every token."""
    from darl_rerank.model.base_weights import load_body

    body = load_body(checkpoint, torch.bfloat16)
    return sum(module.weight.numel() for module in body.layers.modules() if isinstance(module, torch.nn.Linear))


def ceilings(
    shapes: list[tuple[int, int]], device: str = "cpu", clock: Callable[[], float] = time.perf_counter
) -> dict[str, dict[str, float]]:
    """Operations a second of `clock` by number format and way; "best" is the ceiling.

    Each is the best of half a second; "model's shapes" are all of `shapes` with 1,024 tokens, one after the other.
    """
    square = [(SQUARE, SQUARE)]
    result: dict[str, dict[str, float]] = {}
    formats = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if device != "cpu":
        formats["float16"] = torch.float16
    for name, dtype in formats.items():
        ways = {
            "torch.mm, model's shapes": _torch(shapes, dtype, device, clock),
            "torch.mm, square": _torch(square, dtype, device, clock),
        }
        if device == "cpu" and (prepared := _onednn(shapes, dtype, clock)) is not None:
            ways["oneDNN, model's shapes"] = prepared
        result[name] = ways | {"best": max(ways.values())}
    if device == "cpu" and (found := _int8(shapes, square, clock)):
        if (prepared := _onednn_int8(shapes, clock)) is not None:
            found["oneDNN, model's shapes"] = prepared
        result["int8"] = found | {"best": max(found.values())}
    return result


def higher(a: dict[str, dict[str, float]], b: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Of two measurements the higher figures."""
    return {kind: {way: max(value, b[kind][way]) for way, value in ways.items()} for kind, ways in a.items()}


def _operations(shapes: list[tuple[int, int]], rows: int = TOKENS) -> int:
    return sum(2 * rows * inputs * outputs for inputs, outputs in shapes)


def _rate(
    run: Callable[[], Any], operations: int, clock: Callable[[], float], done: Callable[[], Any] = lambda: None
) -> float:
    run()
    done()
    best = float("inf")
    begun = clock()
    while clock() - begun < _SECONDS:
        start = clock()
        run()
        done()
        best = min(best, clock() - start)
    return operations / best


def _torch(shapes: list[tuple[int, int]], dtype: torch.dtype, device: str, clock: Callable[[], float]) -> float:
    rows = TOKENS if device == "cpu" else 8 * TOKENS
    pairs = [
        (torch.randn(rows, i, device=device).to(dtype), torch.randn(i, o, device=device).to(dtype)) for i, o in shapes
    ]
    done = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    return _rate(lambda: [torch.mm(a, b) for a, b in pairs], _operations(shapes, rows), clock, done)


def _onednn(shapes: list[tuple[int, int]], dtype: torch.dtype, clock: Callable[[], float]) -> float | None:
    from darl_rerank.engines.products import OneDnnProduct, product_kind

    if product_kind(torch.device("cpu"), dtype) is not OneDnnProduct:
        return None
    pairs = [
        (torch.randn(TOKENS, i).to(dtype), OneDnnProduct([torch.randn(o, i).to(dtype)], [None])) for i, o in shapes
    ]
    with torch.inference_mode():
        return _rate(lambda: [product(x) for x, product in pairs], _operations(shapes), clock)


def _onednn_int8(shapes: list[tuple[int, int]], clock: Callable[[], float]) -> float | None:
    """The same by oneDNN, from uint8 activations to float32; None where this torch has no such operator."""
    pairs = []
    try:
        for inputs, outputs in shapes:
            x = torch.randint(0, 255, (TOKENS, inputs), dtype=torch.uint8)
            weight = torch.randint(-127, 127, (outputs, inputs), dtype=torch.int8)
            scales, zeros = torch.ones(outputs), torch.zeros(outputs, dtype=torch.int64)
            pairs.append((x, torch.ops.onednn.qlinear_prepack(weight, None), scales, zeros))
        run = torch.ops.onednn.qlinear_pointwise
        with torch.inference_mode():
            return _rate(
                lambda: [
                    run(x, 1.0, 128, weight, scales, zeros, None, 1.0, 0, torch.float32, "none", [], "")
                    for x, weight, scales, zeros in pairs
                ],
                _operations(shapes),
                clock,
            )
    except (AttributeError, RuntimeError, TypeError):
        return None


def _int8(shapes: list[tuple[int, int]], square: list[tuple[int, int]], clock: Callable[[], float]) -> dict[str, float]:
    """MatMulInteger of ONNX Runtime, uint8 activations by int8 weights; nothing where it is not installed."""
    try:
        import onnxruntime
        from onnx import TensorProto, helper
    except ImportError:
        return {}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = min(torch.get_num_threads(), len(os.sched_getaffinity(0)))
    random = np.random.default_rng(0)

    def rate(of: list[tuple[int, int]]) -> float:
        runs = []
        for inputs, outputs in of:
            weight = random.integers(-127, 127, (inputs, outputs), dtype=np.int8)
            graph = helper.make_graph(
                [helper.make_node("MatMulInteger", ["x", "w"], ["y"])], "product",
                [helper.make_tensor_value_info("x", TensorProto.UINT8, [TOKENS, inputs])],
                [helper.make_tensor_value_info("y", TensorProto.INT32, [TOKENS, outputs])],
                [helper.make_tensor("w", TensorProto.INT8, weight.shape, weight.tobytes(), raw=True)],
            )  # fmt: skip
            model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
            session = onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
            x = random.integers(0, 255, (TOKENS, inputs), dtype=np.uint8)
            runs.append((session, {"x": x}))
        return _rate(lambda: [session.run(None, given) for session, given in runs], _operations(of), clock)

    return {
        "MatMulInteger, model's shapes": rate(shapes),
        "MatMulInteger, square": rate(square),
    }
