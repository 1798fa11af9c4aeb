"""Which products a low precision harms: how far the error of each moves the logits.

How much of its output a product loses says little of that: on SmolLM2-135M it is a few products of the first layers
that move the grades most, and others lose as much. So each error is followed to the logits, to first order: an error
e in the output y of a product moves logit k by

    sum over tokens and channels of (d logit_k / d y) · e

with the gradients that torch gives, one backward pass a logit for all products at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from .activations import activations
from .graph import GradeGraph
from .int8 import quantized_columns, quantized_tokens
from .precision import products, quantized_blocks

# Products take the finer way until this share of the squared movement is left; the next is tried where the graph
# as a whole does not grade as torch does. Small steps, because the finer way is slow: one product less in it is worth
# an attempt of some seconds. The last takes them all.
LEFT = (0.5, 0.35, 0.25, 0.15, 0.1, 0.05, 0.0)
_TINY = 1e-12


@torch.inference_mode(False)
@torch.enable_grad()
def effects(
    graph: GradeGraph, traced: Path, precision: str, calibration: Sequence[Mapping[str, NDArray[Any]]]
) -> dict[str, float]:
    """How far one product alone in `precision` moves the logits less their mean: root mean square over batches, grades.

    Args:
        graph: the module.
        traced: its float32 graph without a prefix, products named by their modules; it may be smoothed.
        precision: "int8" or "int4".
        calibration: inputs of the graph, one row each, without padding.

    Returns:
        effect in logits by the product's name; infinite for a product that no module has the name of.
    """
    made = products(onnx.load(str(traced)))
    modules: dict[str, Any] = {name: module for name, module in graph.body.named_modules() if name in made}
    squares = {name: 0.0 if name in modules else np.inf for name in made}
    for batch, errors in zip(calibration, product_errors(traced, precision, calibration), strict=True):
        logits, outputs = _forward(graph, modules, batch)
        gradients = [torch.autograd.grad(logit, list(outputs.values()), retain_graph=True) for logit in logits]
        for i, (name, output) in enumerate(outputs.items()):
            exact, error = errors[name]
            scaled = torch.from_numpy(error * _scale(output, modules[name].bias, exact))
            moved = [float((gradient[i][0] * scaled).sum()) for gradient in gradients]
            squares[name] += float(np.mean(np.square(moved))) / len(calibration)
    return {name: float(np.sqrt(square)) for name, square in squares.items()}


def product_errors(
    traced: Path, precision: str, calibration: Sequence[Mapping[str, NDArray[Any]]]
) -> Iterator[dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]]:
    """For each batch what each product gives and what `precision` adds to that, by its name, both (tokens, out).

    Every product is computed from the float32 graph's own activations, quantised and not.

    Args:
        traced: the float32 graph.
        precision: "int8" or "int4"; the latter's activations are quantised so finely that they count as exact.
        calibration: inputs of the graph.
    """
    model = onnx.load(str(traced))
    made = products(model)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name in made}
    low = {name: _lowered(weight, precision) for name, weight in weights.items()}
    for seen in activations(traced, [node.input[0] for node in made.values()], calibration):
        found = {}
        for name, node in made.items():
            tokens = seen[node.input[0]].reshape(-1, weights[name].shape[0])
            exact = tokens @ weights[name]
            found[name] = exact, (quantized_tokens(tokens) if precision == "int8" else tokens) @ low[name] - exact
        yield found


def _lowered(weight: NDArray[np.float32], precision: str) -> NDArray[np.float32]:
    if precision == "int4":
        return quantized_blocks(weight)
    whole, scale = quantized_columns(weight)
    return whole * scale


def sensitive(moved: Mapping[str, float], left: float) -> list[str]:
    """The fewest products without which the others have at most the share `left` of all squared effects; sorted.

    Args:
        moved: from `effects`; products of infinite effect are taken always, and all are if `left` is 0.
    """
    squares = {name: effect**2 for name, effect in moved.items() if np.isfinite(effect)}
    chosen = [name for name in moved if name not in squares]
    order = sorted(squares, key=lambda name: (-squares[name], name))
    rests = np.cumsum([squares[name] for name in reversed(order)])[::-1]
    for name, rest in zip(order, rests, strict=True):
        if left and rest <= left * rests[0]:
            break
        chosen.append(name)
    return sorted(chosen)


def _forward(
    graph: GradeGraph, modules: Mapping[str, Any], batch: Mapping[str, NDArray[Any]]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits of the only row less their mean, shape (K,), and what each module gives, (1, tokens, out)."""
    outputs: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Any:
        return lambda _, __, output: outputs.__setitem__(name, output)

    hooks = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    # No weight takes a gradient, so the first states have to.
    embedding = graph.body.get_input_embeddings()
    hooks.append(embedding.register_forward_hook(lambda _, __, states: states.requires_grad_()))
    attention, graph.attention = graph.attention, "plain"  # the operator Attention has no gradient
    try:
        logits = graph(torch.from_numpy(batch["input_ids"]), torch.from_numpy(batch["attention_mask"]))[0][0]
    finally:
        graph.attention = attention
        for hook in hooks:
            hook.remove()
    return logits - logits.mean(), outputs


def _scale(output: torch.Tensor, bias: torch.Tensor | None, exact: NDArray[np.float32]) -> NDArray[np.float32]:
    """What smoothing divided each channel of a product's output by, shape (out,): it did so to all tokens alike."""
    own = (output if bias is None else output - bias).detach()[0].numpy()
    scale: NDArray[np.float32] = np.linalg.norm(own, axis=0) / np.maximum(np.linalg.norm(exact, axis=0), _TINY)
    return scale
