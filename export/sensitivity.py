"""Which products a low precision harms: how far the error of each moves the logits.

How much of its output a product loses says little of that: on SmolLM2-135M it is a few products of the first layers
that move the grades most, and others lose as much. So each error is followed to the logits, to first order: an error
e in the output y of a product moves logit k by

    sum over tokens and channels of (d logit_k / d y) · e

with the gradients that torch gives, one backward pass a logit for all products at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .graph import GradeGraph, Product
from .int8 import quantized_columns, quantized_tokens
from .precision import quantized_blocks
from .smoothing import channel_sizes

# Products take the finer way until this share of the squared movement is left; the next is tried where the graph
# as a whole does not grade as torch does. Small steps, because the finer way is slow: one product less in it is worth
# an attempt of some seconds. The last takes them all.
LEFT = (0.5, 0.35, 0.25, 0.15, 0.1, 0.05, 0.0)


@torch.inference_mode(False)
@torch.enable_grad()
def effects(
    graph: GradeGraph,
    factors: Mapping[str, NDArray[np.float32]],
    precision: str,
    calibration: Iterable[Mapping[str, NDArray[Any]]],
) -> dict[str, float]:
    """How far one product alone in `precision` moves the logits less their mean: root mean square over batches, grades.

    Args:
        graph: the module.
        factors: of `smoothing`, by the product's name; what has none is not smoothed.
        precision: "int8" or "int4".
        calibration: inputs of the graph, one row each, without padding.

    Returns:
        effect in logits by the product's name.
    """
    modules = graph.products()
    low = {name: _Lowered(module.weight, factors.get(name), precision) for name, module in modules.items()}
    squares, count = dict.fromkeys(modules, 0.0), 0
    for batch in calibration:
        logits, seen = _forward(graph, modules, batch)
        count += 1
        outputs = [output for _, output in seen.values()]
        errors = [
            torch.from_numpy(low[name].error(given[0].detach().numpy(), _product(output, modules[name])))
            for name, (given, output) in seen.items()
        ]
        # One logit's gradients at a time: those of all products are some tens of megabytes.
        moved = np.zeros((len(logits), len(outputs)))
        for row, logit in enumerate(logits[:-1]):
            gradients = torch.autograd.grad(logit, outputs, retain_graph=True)
            moved[row] = [float((g[0] * error).sum()) for g, error in zip(gradients, errors, strict=True)]
        # The logits add up to 0, so that the last one moves by what the others do together, the other way.
        moved[-1] = -moved.sum(axis=0)
        for name, square in zip(seen, np.square(moved).mean(axis=0), strict=True):
            squares[name] += float(square)
    return {name: float(np.sqrt(square / max(count, 1))) for name, square in squares.items()}


class _Lowered:
    """One product in a low precision.

    Args:
        weight: shape (in, out).
        factor: what the channels of its input are divided by, shape (in,), and the weight's rows multiplied by.
        precision: "int8" or "int4"; the latter's activations are quantised so finely that they count as exact.
    """

    def __init__(self, weight: torch.Tensor, factor: NDArray[np.float32] | None, precision: str) -> None:
        self._factor, self._tokens = factor, precision == "int8"
        exact = weight.detach().numpy()
        if factor is not None:
            exact = exact * factor[:, None]
        if precision == "int8":
            whole, scale = quantized_columns(exact)
            # A quarter of the memory: all products of the model are held at once.
            self._whole: NDArray[Any] = whole.astype(np.int8)
            self._scale = scale
        else:
            self._whole, self._scale = quantized_blocks(exact), np.ones((1, exact.shape[1]), np.float32)

    def error(self, tokens: NDArray[np.float32], exact: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the precision adds to the product `exact`, shape (tokens, out), of `tokens`, shape (tokens, in)."""
        if self._factor is not None:
            tokens = tokens / self._factor
        if self._tokens:
            tokens = quantized_tokens(tokens)
        found: NDArray[np.float32] = tokens @ self._whole.astype(np.float32) * self._scale - exact
        return found


def _product(output: torch.Tensor, module: Product) -> NDArray[np.float32]:
    """The product itself, without the bias, shape (tokens, out)."""
    found: NDArray[np.float32] = (output if module.bias is None else output - module.bias).detach()[0].numpy()
    return found


@torch.inference_mode()
def input_sizes(
    graph: GradeGraph, readers: Mapping[str, str], calibration: Iterable[Mapping[str, NDArray[Any]]]
) -> dict[str, NDArray[np.float32]]:
    """`channel_sizes` of what products read.

    Args:
        graph: the module.
        readers: for each name that a size is returned under the product, by its module's name.
        calibration: inputs of the graph, without padding.
    """
    squares: dict[str, list[NDArray[np.float32]]] = {name: [] for name in readers}
    modules = graph.products()
    for batch in calibration:
        _, seen = _forward(graph, {name: modules[reader] for name, reader in readers.items()}, batch)
        for name, (given, _) in seen.items():
            squares[name].append(channel_sizes([given.numpy()]))
    return {name: np.sqrt(np.mean(np.square(found), axis=0)) for name, found in squares.items()}


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
    graph: GradeGraph, modules: Mapping[str, Product], batch: Mapping[str, NDArray[Any]]
) -> tuple[torch.Tensor, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """Logits of the only row less their mean, shape (K,), and what each module is given and gives, (1, tokens, …)."""
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def keep(name: str) -> Any:
        return lambda _, given, output: seen.__setitem__(name, (given[0], output))

    hooks = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    if torch.is_grad_enabled():
        # No weight takes a gradient, so the first states have to.
        embedding = graph.body.get_input_embeddings()
        hooks.append(embedding.register_forward_hook(lambda _, __, states: states.requires_grad_()))
    attention, graph.attention = graph.attention, "plain"  # the operator Attention has no gradient
    try:
        logits = graph.of_row(torch.from_numpy(batch["input_ids"]))[0][0]
    finally:
        graph.attention = attention
        for hook in hooks:
            hook.remove()
    return logits - logits.mean(), seen
