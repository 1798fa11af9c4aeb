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

from .graph import GradeGraph
from .inputs import forward
from .int8 import Rounded, quantized_tokens
from .precision import quantized_blocks
from .product import Product
from .rounding import column_scales, rounded_columns

# Products take the finer way until this share of the squared movement is left; the next is tried where the graph as a
# whole does not grade as torch does. First none do, and nothing need be searched; then the steps are small, because the
# finer way takes at least twice the time: one product less in it is worth an attempt of some seconds. The last takes
# all of them.
LEFT = (1.0, 0.5, 0.35, 0.25, 0.15, 0.1, 0.05, 0.0)


@torch.inference_mode(False)
@torch.enable_grad()
def effects(
    graph: GradeGraph,
    factors: Mapping[str, NDArray[np.float32]],
    precision: str,
    calibration: Iterable[Mapping[str, NDArray[Any]]],
    rounded: Rounded | None = None,
) -> dict[str, float]:
    """How far one product alone in `precision` moves the logits less their mean: root mean square over batches, grades.

    Args:
        graph: the module.
        factors: of `smoothing`, by the product's name; what has none is not smoothed.
        precision: "int8" or "int4".
        calibration: inputs of the graph, one row each, without padding.
        rounded: int8 weights, smoothed; of products that have none each number is rounded to the nearest.

    Returns:
        effect in logits by the product's name.
    """
    modules = graph.products()
    low = {
        name: _Lowered(module.weight, factors.get(name), precision, (rounded or {}).get(name))
        for name, module in modules.items()
    }
    squares, count = dict.fromkeys(modules, 0.0), 0
    for batch in calibration:
        logits, seen = forward(graph, modules, batch)
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
        rounded: the weight in int8, if it is known.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        factor: NDArray[np.float32] | None,
        precision: str,
        rounded: NDArray[np.int8] | None,
    ) -> None:
        self._factor, self._tokens = factor, precision == "int8"
        exact = weight.detach().numpy()
        if factor is not None:
            exact = exact * factor[:, None]
        if precision == "int8":
            # A quarter of the memory: all products of the model are held at once.
            self._whole: NDArray[Any] = rounded_columns(exact) if rounded is None else rounded
            self._scale = column_scales(exact)
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


def sensitive(moved: Mapping[str, float], left: float, sizes: Mapping[str, int] | None = None) -> list[str]:
    """The products without which the others have at most the share `left` of all squared effects; sorted.

    Args:
        moved: from `effects`; products of infinite effect are taken always, and all are if `left` is 0.
        left: 0 to 1.
        sizes: of the weights, for as many tokens as run through them, which a product's time is in proportion to: those
            come first that take away most for it. All alike if None.
    """
    squares = {name: effect**2 for name, effect in moved.items() if np.isfinite(effect)}
    chosen = [name for name in moved if name not in squares]
    order = sorted(squares, key=lambda name: (-squares[name] / (sizes or {}).get(name, 1), name))
    rests = np.cumsum([squares[name] for name in reversed(order)])[::-1]
    for name, rest in zip(order, rests, strict=True):
        if left and rest <= left * rests[0]:
            break
        chosen.append(name)
    return sorted(chosen)
