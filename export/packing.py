"""What packs rows: the tables that a traced graph takes, and the operators that make them of rows with padding."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper

# ids, rows, inside: of each of the T real tokens its id, its row, and its place among the row's real ones, shape (T,).
# places: where the L tokens of each row stand among the T, shape (n, L); padding takes the row's last token.
# lengths, last: of each row its real tokens, and where the last of them stands among the T, shape (n,).
TABLES = ("ids", "rows", "inside", "places", "lengths", "last")
# Of the traced graph's dimensions a table that is as long.
COUNTED = {"tokens": "rows", "rows": "lengths"}
_CONSTANTS = {
    "packing.zero": np.array(0, np.int64),
    "packing.one": np.array(1, np.int64),
    "packing.columns": np.array([1], np.int64),
    "packing.axis": np.array([0], np.int64),
}


def tables(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """`TABLES` of rows with padding on any side, shape (n, t) each."""
    rows, columns = attention_mask.nonzero(as_tuple=True)
    lengths = attention_mask.sum(1)
    starts = lengths.cumsum(0) - lengths
    inside = torch.arange(len(rows)) - starts[rows]
    # A row without any real token takes another's rather than failing.
    last = (starts + lengths - 1).clamp(min=0)
    places = torch.minimum(starts[:, None] + torch.arange(int(lengths.max())), last[:, None])
    return input_ids[rows, columns], rows, inside, places, lengths, last


def pack(model: Any) -> None:
    """Give a graph that takes `TABLES` the inputs input_ids and attention_mask, shape (n, t), instead; in place."""
    node = helper.make_node
    nodes = [
        node("NonZero", ["attention_mask"], ["packing.real"]),
        node("Transpose", ["packing.real"], ["packing.indices"], perm=[1, 0]),
        node("GatherND", ["input_ids", "packing.indices"], ["ids"]),
        node("Gather", ["packing.real", "packing.zero"], ["rows"], axis=0),
        node("ReduceSum", ["attention_mask", "packing.columns"], ["lengths"], keepdims=0),
        node("CumSum", ["lengths", "packing.zero"], ["packing.starts"], exclusive=1),
        node("Shape", ["rows"], ["packing.shape"]),
        node("Squeeze", ["packing.shape", "packing.axis"], ["packing.tokens"]),
        node("Range", ["packing.zero", "packing.tokens", "packing.one"], ["packing.all"]),
        node("Gather", ["packing.starts", "rows"], ["packing.begin"], axis=0),
        node("Sub", ["packing.all", "packing.begin"], ["inside"]),
        node("Add", ["packing.starts", "lengths"], ["packing.ends"]),
        node("Sub", ["packing.ends", "packing.one"], ["packing.final"]),
        node("Max", ["packing.final", "packing.zero"], ["last"]),
        node("ReduceMax", ["lengths", "packing.axis"], ["packing.longest"], keepdims=0),
        node("Range", ["packing.zero", "packing.longest", "packing.one"], ["packing.steps"]),
        node("Unsqueeze", ["packing.starts", "packing.columns"], ["packing.column"]),
        node("Add", ["packing.column", "packing.steps"], ["packing.spread"]),
        node("Unsqueeze", ["last", "packing.columns"], ["packing.limit"]),
        node("Min", ["packing.spread", "packing.limit"], ["places"]),
    ]
    graph = model.graph
    kept = [value for value in graph.input if value.name not in TABLES]
    rows = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["rows", "columns"])
        for name in ("input_ids", "attention_mask")
    ]
    del graph.input[:]
    graph.input.extend([*rows, *kept])
    traced = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *traced])
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in _CONSTANTS.items())
