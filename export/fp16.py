"""Products and attention in float16; what could overflow or lose a small difference stays in float32.

Float16: weights of all products, the products, rotary, attention (its softmax computed in float32) and the gate.
Float32: norms, residual sums, head, features. So a token's running state, which in some models grows over the layers
beyond what float16 holds, is never rounded to it, and between two products values pass without a cast.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from .weights import values

# Operators that stay in float16 if the first of these inputs is: what they do to others is to cast them.
_FOLLOWS = {
    "Reshape": (0,),
    "Transpose": (0,),
    "Unsqueeze": (0,),
    "Gather": (0,),
    "Slice": (0,),
    "Sigmoid": (0,),
    "RotaryEmbedding": (0, 1, 2),
}
_SOFTMAX_PRECISION = "softmax_precision"


class Halves:
    """Rewrites a graph's nodes in order; knows which tensors are there in float16 and casts at the borders."""

    def __init__(self, products: Mapping[str, Any]) -> None:
        self._products = products
        self._half: dict[str, str] = {}  # tensor: the name of its float16 form
        self._whole: set[str] = set()  # of those, which are there in float32 as well
        self.nodes: list[Any] = []

    def add(self, node: Any) -> None:
        if node.op_type == "MatMul" and node.input[1] in self._products:
            self._in_half(node, (0,))
        elif node.op_type == "Attention":
            if all(attribute.name != _SOFTMAX_PRECISION for attribute in node.attribute):
                node.attribute.append(helper.make_attribute(_SOFTMAX_PRECISION, TensorProto.FLOAT))
            self._in_half(node, (0, 1, 2))
        elif node.op_type in _FOLLOWS and node.input[0] in self._half:
            self._in_half(node, _FOLLOWS[node.op_type])
        elif node.op_type == "Concat" and node.input[-1] in self._half:  # keys and values behind a prefix's
            self._in_half(node, tuple(range(len(node.input))))
        elif node.op_type == "Mul" and all(name in self._half for name in node.input):
            self._in_half(node, (0, 1))
        else:
            for name in node.input:
                self.whole(name)
            self.nodes.append(node)

    def whole(self, name: str) -> None:
        """See to it that `name` is there in float32, if it is a tensor in float16."""
        if name in self._half and name not in self._whole:
            self._whole.add(name)
            self.nodes.append(helper.make_node("Cast", [self._half[name]], [name], to=TensorProto.FLOAT))

    def _in_half(self, node: Any, places: tuple[int, ...]) -> None:
        for place in places:
            name = node.input[place]
            if name not in self._half:
                self._half[name] = f"{name}.fp16"
                self._whole.add(name)
                self.nodes.append(helper.make_node("Cast", [name], [f"{name}.fp16"], to=TensorProto.FLOAT16))
            node.input[place] = self._half[name]
        output = node.output[0]
        self._half[output] = node.output[0] = f"{output}.fp16"
        self.nodes.append(node)


def halve(model: Any, chosen: Mapping[str, Any], folder: Path | None = None) -> None:
    """Bring a float32 graph to float16 as above, in place.

    Args:
        model: the graph.
        chosen: MatMul nodes by the name of their constant weight.
        folder: where the graph's external data are.
    """
    for tensor in model.graph.initializer:
        if tensor.name in chosen:
            tensor.CopyFrom(numpy_helper.from_array(values(tensor, folder).astype(np.float16), tensor.name))
    halves = Halves(chosen)
    for node in model.graph.node:
        halves.add(node)
    for output in model.graph.output:
        halves.whole(output.name)
    # Types that the tracer noted on the way no longer hold.
    del model.graph.value_info[:]
    del model.graph.node[:]
    model.graph.node.extend(halves.nodes)
