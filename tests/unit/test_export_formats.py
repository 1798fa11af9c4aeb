"""Graphs of two products brought to int8 and float16."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from darl_rerank.export.activations import activations
from darl_rerank.export.fp16 import halve
from darl_rerank.export.int8 import quantize, quantized_tokens
from darl_rerank.export.precision import convert, products, quantized_blocks
from darl_rerank.export.rounding import column_scales, rounded_columns
from darl_rerank.export.smoothing import channel_sizes, smooth, smoothing
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

WIDTH = 64
RNG = np.random.default_rng(0)
UP, DOWN = (RNG.normal(size=(WIDTH, WIDTH)).astype(np.float32) / 8 for _ in range(2))


def graph() -> Any:
    """y = x + (x / max |x|) · UP · DOWN: a residual branch behind a norm, x and y of shape (rows, tokens, WIDTH)."""
    shape = ["rows", "tokens", WIDTH]
    nodes = [
        helper.make_node("Abs", ["x"], ["abs"]),
        helper.make_node("ReduceMax", ["abs", "axis"], ["norm"], keepdims=1),
        helper.make_node("Div", ["x", "norm"], ["normed"]),
        helper.make_node("MatMul", ["normed", "up"], ["wide"], name="first"),
        helper.make_node("MatMul", ["wide", "down"], ["branch"], name="second"),
        helper.make_node("Add", ["x", "branch"], ["y"]),
    ]
    constants = {"up": UP, "down": DOWN, "axis": np.array([-1])}
    model = helper.make_model(
        helper.make_graph(
            nodes, "residual",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 21)],
    )  # fmt: skip
    model.ir_version = 10
    return model


def run(model: Any, x: NDArray[np.float32]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: NDArray[np.float32] = session.run(None, {"x": x})[0]
    return found


@pytest.fixture
def states() -> NDArray[np.float32]:
    """Tokens of very different size in one batch; the largest is beyond what float16 holds."""
    x = RNG.normal(size=(1, 12, WIDTH)).astype(np.float32)
    x[0, 0] *= 1e6
    return x


def seen(path: Path, names: Collection[str], batch: list[dict[str, NDArray[np.float32]]]) -> dict[str, Any]:
    (found,) = activations(path, list(names), batch)
    return found


def sizes(path: Path, batch: list[dict[str, NDArray[np.float32]]]) -> Any:
    return lambda readers: {name: channel_sizes([value]) for name, value in seen(path, readers, batch).items()}


def lost(path: Path, batch: list[dict[str, NDArray[np.float32]]]) -> dict[str, float]:
    """The share of each product's output that int8 costs it."""
    model = onnx.load(str(path))
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    found = {}
    for name, node in products(model).items():
        (tokens,) = seen(path, [node.input[0]], batch).values()
        tokens = tokens.reshape(-1, tokens.shape[-1])
        whole, scale = rounded_columns(weights[name]), column_scales(weights[name])
        exact = tokens @ weights[name]
        error = quantized_tokens(tokens) @ (whole * scale) - exact
        found[name] = float(np.linalg.norm(error) / np.linalg.norm(exact))
    return found


def gated_graph() -> Any:
    """sigmoid(normed · GATE) · (normed · UP), as in a gated MLP."""
    model = graph()
    gate = RNG.normal(size=(WIDTH, WIDTH)).astype(np.float32) / 8
    model.graph.node.insert(4, helper.make_node("MatMul", ["normed", "gate"], ["gated"], name="third"))
    model.graph.node.insert(5, helper.make_node("Sigmoid", ["gated"], ["open"]))
    model.graph.node.insert(6, helper.make_node("Mul", ["open", "wide"], ["inner"]))
    model.graph.node[7].input[0] = "inner"
    model.graph.initializer.append(numpy_helper.from_array(gate, "gate"))
    return model


@pytest.mark.parametrize("with_gate", [False, True])
def test_int8_takes_each_token_on_its_own(with_gate: bool, states: NDArray[np.float32]) -> None:
    model = gated_graph() if with_gate else graph()
    exact = run(model, states)
    quantize(model, products(model))
    onnx.checker.check_model(model, check_custom_domain=False)
    found = run(model, states)
    np.testing.assert_array_equal(found[0], [run(model, token[None, None])[0, 0] for token in states[0]])
    branch = np.abs(exact - states)[0, 1:].max()
    assert 0 < np.abs(found - exact)[0, 1:].max() < 0.05 * branch
    # One scale a product, but for that of the gate's other side, which waits for the next.
    assert [n.input[0] for n in model.graph.node if n.op_type == "Mul" and n.input[0].endswith(".unscaled")] == (
        ["gated.unscaled", "branch.unscaled"] if with_gate else ["wide.unscaled", "branch.unscaled"]
    )


def test_two_parts_of_an_activation_leave_the_error_of_the_weights_alone(states: NDArray[np.float32]) -> None:
    model = gated_graph()
    coarse, finer, some = (onnx.ModelProto.FromString(model.SerializeToString()) for _ in range(3))
    for tensor in model.graph.initializer:
        if tensor.name in ("up", "gate", "down"):
            weight = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(rounded_columns(weight) * column_scales(weight), tensor.name))
    expected = run(model, states)
    quantize(coarse, products(coarse))
    quantize(finer, products(finer), finer=products(finer))
    errors = [np.abs(run(low, states) - expected)[0, 1:].max() for low in (coarse, finer)]
    assert errors[1] < errors[0] / 50
    quantize(some, products(some), finer=["gate"])  # its input is read by another product too
    assert np.abs(run(some, states) - expected)[0, 1:].max() < 1.5 * errors[0]


def test_int8_takes_the_rounded_weights_that_it_is_given(states: NDArray[np.float32]) -> None:
    model = graph()
    quantize(model, products(model), rounded={"up": rounded_columns(UP) + np.int8(1)})
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    np.testing.assert_array_equal(found["up"], rounded_columns(UP) + np.int8(1))
    np.testing.assert_array_equal(found["down"], rounded_columns(DOWN))
    np.testing.assert_allclose(found["up.scale"], column_scales(UP)[0])


def test_int4_blocks_are_those_of_the_quantizer(states: NDArray[np.float32]) -> None:
    """What the sensitivity takes int4 for is what ONNX Runtime makes of it, but for rounded activations."""
    low = graph()
    convert(low, "int4")
    found = run(low, states)
    model = graph()
    exact = run(model, states)
    for tensor in model.graph.initializer:
        if tensor.name in ("up", "down"):
            rounded = quantized_blocks(numpy_helper.to_array(tensor))
            tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))
    error, expected = found - exact, run(model, states) - exact
    assert np.linalg.norm(error - expected) < 0.15 * np.linalg.norm(expected)


def test_blocks_keep_what_a_last_short_one_holds() -> None:
    weight = np.concatenate([np.linspace(-7, 8, 32), [3.0, 0.0]]).astype(np.float32)[:, None]
    low = quantized_blocks(weight)
    assert low.shape == weight.shape
    np.testing.assert_allclose(low[:32, 0], np.rint(weight[:32, 0]), atol=1e-5)
    np.testing.assert_allclose(low[32:, 0], [3.0, 0.0], atol=1e-6)


def test_smoothing_moves_large_channels_into_the_weights(states: NDArray[np.float32], tmp_path: Path) -> None:
    """A norm with some large channels, as language models have: float32 is unchanged, int8 loses less."""
    model = graph()
    model.graph.node[2].CopyFrom(helper.make_node("Div", ["x", "norm"], ["unit"]))
    model.graph.node.insert(3, helper.make_node("Mul", ["unit", "scale"], ["normed"]))
    scale = np.ones(WIDTH, np.float32)
    scale[:3] = 60
    model.graph.initializer.append(numpy_helper.from_array(scale, "scale"))
    path = tmp_path / "graph.onnx"
    onnx.save(model, str(path))
    exact = run(model, states)
    batch = [{"x": states}]
    before = lost(path, batch)
    factors = smoothing(model, products(model), sizes(path, batch))
    assert set(factors) == {"up"}  # what the second product reads comes from no norm
    smooth(model, products(model), factors)
    np.testing.assert_allclose(run(model, states), exact, rtol=1e-5, atol=1e-4)
    onnx.save(model, str(path))
    after = lost(path, batch)
    assert after["up"] < 0.5 * before["up"]


def test_smoothing_reaches_behind_a_gate(states: NDArray[np.float32], tmp_path: Path) -> None:
    """sigmoid(normed · GATE) · (normed · UP) with some large channels in UP, as in a gated MLP."""
    model = gated_graph()
    uneven = UP.copy()
    uneven[:, :3] *= 60
    next(t for t in model.graph.initializer if t.name == "up").CopyFrom(numpy_helper.from_array(uneven, "up"))
    path = tmp_path / "graph.onnx"
    onnx.save(model, str(path))
    exact = run(model, states)
    batch = [{"x": states}]
    before = lost(path, batch)
    factors = smoothing(model, products(model), sizes(path, batch))
    assert set(factors) == {"down"}
    smooth(model, products(model), factors)
    np.testing.assert_allclose(run(model, states), exact, rtol=1e-5, atol=1e-4)
    onnx.save(model, str(path))
    after = lost(path, batch)
    assert after["down"] < 0.7 * before["down"]
    # A gate that is read twice, or without an activation of its own, scales nothing.
    twice = graph()
    twice.graph.node.insert(4, helper.make_node("Mul", ["wide", "wide"], ["inner"]))
    twice.graph.node[5].input[0] = "inner"
    onnx.save(twice, str(path))
    assert smoothing(twice, products(twice), sizes(path, batch)) == {}


def test_smoothing_reaches_through_attention(tmp_path: Path) -> None:
    """Two heads of values, each for two heads of queries: an uneven channel of theirs is evened out in both."""
    heads, shared, size = 4, 2, WIDTH // 4
    values = RNG.normal(size=(WIDTH, shared * size)).astype(np.float32) / 8
    values[:, :3] *= 60
    node = helper.make_node
    nodes = [
        node("MatMul", ["x", "up"], ["queries"], name="first"),
        node("MatMul", ["x", "values"], ["flat"], name="second"),
        node("Reshape", ["queries", "query_shape"], ["apart"]),
        node("Reshape", ["flat", "value_shape"], ["flat_apart"]),
        node("Transpose", ["apart"], ["q"], perm=[0, 2, 1, 3]),
        node("Transpose", ["flat_apart"], ["v"], perm=[0, 2, 1, 3]),
        node("Attention", ["q", "v", "v"], ["summed"]),
        node("Transpose", ["summed"], ["together"], perm=[0, 2, 1, 3]),
        node("Reshape", ["together", "shape"], ["inner"]),
        node("MatMul", ["inner", "down"], ["y"], name="third"),
    ]
    constants = {
        "up": UP, "values": values, "down": DOWN, "query_shape": np.array([0, 0, heads, size]),
        "value_shape": np.array([0, 0, shared, size]), "shape": np.array([0, 0, WIDTH]),
    }  # fmt: skip
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", "tokens", WIDTH]) for name in "xy"]
    known = helper.make_tensor_value_info("v", TensorProto.FLOAT, ["rows", shared, "tokens", size])
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "attention", ends[:1], ends[1:], tensors, value_info=[known]),
        opset_imports=[helper.make_opsetid("", 23)],
    )
    model.ir_version = 10
    path = tmp_path / "graph.onnx"
    onnx.save(model, str(path))
    batch = [{"x": RNG.normal(size=(3, 5, WIDTH)).astype(np.float32)}]
    assert (
        smoothing(model, products(model), sizes(path, batch)) == {}
    )  # here the keys are the values: they can't be divided
    keys = numpy_helper.from_array(RNG.normal(size=values.shape).astype(np.float32) / 8, "keys")
    model.graph.initializer.append(keys)
    model.graph.node.insert(0, node("MatMul", ["x", "keys"], ["flat_keys"], name="fourth"))
    model.graph.node.insert(1, node("Reshape", ["flat_keys", "value_shape"], ["keys_apart"]))
    model.graph.node.insert(2, node("Transpose", ["keys_apart"], ["k"], perm=[0, 2, 1, 3]))
    next(found for found in model.graph.node if found.op_type == "Attention").input[1] = "k"
    onnx.save(model, str(path))
    exact = run(model, batch[0]["x"])
    before = lost(path, batch)
    factors = smoothing(model, products(model), sizes(path, batch))
    assert set(factors) == {"down"}
    grouped = factors["down"].reshape(shared, heads // shared, size)
    np.testing.assert_array_equal(grouped[:, 0], grouped[:, 1])
    smooth(model, products(model), factors)
    np.testing.assert_allclose(run(model, batch[0]["x"]), exact, rtol=1e-4, atol=1e-4)
    onnx.save(model, str(path))
    after = lost(path, batch)
    assert after["down"] < 0.7 * before["down"]


def test_half_precision_keeps_sums_in_float32(states: NDArray[np.float32]) -> None:
    model = graph()
    exact = run(model, states)
    halve(model, products(model))
    found = run(model, states)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, exact, rtol=1e-6, atol=5e-3)
    casts = [node for node in model.graph.node if node.op_type == "Cast"]
    assert len(casts) == 2  # to float16 behind the norm, back at the sum; none between the products
    assert {numpy_helper.to_array(t).dtype for t in model.graph.initializer if t.name in ("up", "down")} == {
        np.dtype(np.float16)
    }
