"""Behind the last layer's attention only each row's last token is run: nobody reads the others.

The traced graph takes the last tokens at its end. Here that step moves up, past every operator that treats each token
on its own.
"""

from __future__ import annotations

from typing import Any

from onnx import helper

# Operators whose result for a token depends on that token alone, and besides on constants.
_BY_TOKEN = {
    "Add", "Cast", "Div", "Gelu", "MatMul", "Mul", "Pow", "RMSNormalization", "Reciprocal", "ReduceMean", "Sigmoid",
    "Sqrt", "Tanh",
}  # fmt: skip
LAST = "last"


def run_last_tokens_only(model: Any) -> None:
    """Take last tokens as soon as no other token is needed, in place.

    Args:
        model: a traced graph, in which last tokens are taken by `Gather` on axis 1, with the indices `LAST`.
    """
    graph = model.graph
    indices = {LAST} | {node.output[0] for node in graph.node if node.op_type == "Reshape" and node.input[0] == LAST}
    takes = [node for node in graph.node if node.op_type == "Gather" and node.input[1] in indices and _axis(node) == 1]
    for output in [node.output[0] for node in takes]:
        _move_up(graph, output)


def _move_up(graph: Any, output: str) -> None:
    """Let the operators before the one that makes `output`, which takes last tokens, have no others either."""
    constants, readers = _constants(graph), _readers(graph)
    shortened = {output}  # what is there for last tokens only
    for node in reversed(graph.node):
        name = node.output[0]
        by_token = node.op_type in _BY_TOKEN and not (node.op_type == "MatMul" and node.input[1] not in constants)
        if name not in constants and (by_token and all(reader in shortened for reader in readers.get(name, "?"))):
            shortened.add(name)
    shortened.remove(output)
    if not shortened:
        return
    nodes: list[Any] = []
    taken: set[str] = set()
    for node in graph.node:
        if node.output[0] == output:
            nodes.append(helper.make_node("Identity", [node.input[0]], [output]))
            continue
        if node.output[0] in shortened:
            for place, name in enumerate(node.input):
                if name in constants or name in shortened:
                    continue
                node.input[place] = f"{name}.{LAST}"
                if name not in taken:
                    taken.add(name)
                    nodes.append(helper.make_node("Gather", [name, LAST], [f"{name}.{LAST}"], axis=1))
        nodes.append(node)
    # Their shapes, as the tracer noted them, no longer hold.
    for value in [value for value in graph.value_info if value.name in shortened]:
        graph.value_info.remove(value)
    del graph.node[:]
    graph.node.extend(nodes)


def _axis(node: Any) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == "axis"), 0)


def _readers(graph: Any) -> dict[str, list[str]]:
    """What is made of each tensor, by name; an output of the graph is read by someone unknown."""
    found: dict[str, list[str]] = {value.name: ["?"] for value in graph.output}
    for node in graph.node:
        for name in node.input:
            found.setdefault(name, []).append(node.output[0])
    return found


def _constants(graph: Any) -> set[str]:
    """Tensors that no input decides."""
    found = {tensor.name for tensor in graph.initializer} | {""}
    for node in graph.node:
        if all(name in found for name in node.input):
            found.update(node.output)
    return found
