"""The graph in segments, from exit to exit, so that rows which leave early are dropped between two of them.

What runs layers 1 to e, e to f … is a graph of its own, cut out of the whole one; all read its file of weights, of
which no two need the same layer. Segment i has the whole graph's inputs as far as it needs them, and

    first        -> exit_E.states (1, T, hidden), exit_E.logits (n, K), keys_values_0 (its layers, 2, heads, t, size)
    later ones   states (1, T, hidden) of the one before, kept (T'): which of the T tokens are still there -> the same
    the last     -> logits (n, K), final_features (n, hidden), keys_values_i
    in whichever the middle layer is: middle_features (n, 2·hidden) and own_sum (hidden) besides
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from onnx import TensorProto, helper

from .names import FINAL, MIDDLE, exit_outputs
from .weights import sliced


def segments(model: Any, layers: Sequence[int], feature_layer: int, last: int) -> list[Any]:
    """The segments of a graph, first to last.

    Args:
        model: a graph with a prefix and with `names.segment_outputs`; not changed.
        layers: of the exits, rising.
        feature_layer: the middle layer, counted from 1.
        last: number of layers.
    """
    found = []
    for i, (start, end) in enumerate(pairwise([0, *layers, last]) if layers else ()):
        names = [*(("logits", FINAL) if end == last else exit_outputs(end)), f"keys_values_{i}"]
        if start < feature_layer <= end:
            names += [MIDDLE, "own_sum"]
        found.append(_segment(model, names, exit_outputs(start)[0] if start else None))
    return found


def _segment(model: Any, outputs: Sequence[str], begin: str | None) -> Any:
    """The part of a graph between the states called `begin` and `outputs`."""
    if begin is None:
        return sliced(model, outputs)
    value = next(value for value in model.graph.output if value.name == begin)
    maker = next(node for node in model.graph.node if begin in node.output)
    # The tracer may give a tensor a second name to return it under.
    cut = maker.input[0] if maker.op_type == "Identity" else begin
    part = sliced(model, outputs, cut)
    taken = helper.make_node("Gather", ["states", "kept"], [cut], axis=1, name="kept_tokens")
    nodes = list(part.graph.node)
    del part.graph.node[:]
    part.graph.node.extend([taken, *nodes])
    hidden = value.type.tensor_type.shape.dim[2].dim_value
    part.graph.input.extend([
        helper.make_tensor_value_info("states", TensorProto.FLOAT, [1, "before", hidden]),
        helper.make_tensor_value_info("kept", TensorProto.INT64, ["tokens_kept"]),
    ])  # fmt: skip
    return part
