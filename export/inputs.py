"""What the products of a decoder read on a few sequences: sizes of channels, and how channels go together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..model.checkpoint import Checkpoint
from ..model.scoring import scored
from ..trec.graded_pairs import GradedPair
from .graph import GradeGraph
from .product import Product
from .smoothing import channel_sizes, unit_tokens


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
        _, seen = forward(graph, {name: modules[reader] for name, reader in readers.items()}, batch, every_token=True)
        for name, (given, _) in seen.items():
            squares[name].append(channel_sizes([given.numpy()]))
    return {name: np.sqrt(np.mean(np.square(found), axis=0)) for name, found in squares.items()}


@torch.inference_mode()
def grams(
    graph: GradeGraph,
    factors: Mapping[str, NDArray[np.float32]],
    calibration: Iterable[Mapping[str, NDArray[Any]]],
) -> dict[str, NDArray[np.float32]]:
    """X'X of what each product reads, shape (in, in), tokens at length 1; products of one input share the array.

    Args:
        graph: the module.
        factors: of `smoothing`, which inputs are divided by first.
        calibration: inputs of the graph, without padding.
    """
    modules, found = graph.products(), dict[str, NDArray[np.float32]]()
    for batch in calibration:
        first: dict[int, str] = {}
        for name, (given, _) in forward(graph, modules, batch, every_token=True)[1].items():
            owner = first.setdefault(id(given), name)
            if owner != name:
                found[name] = found[owner]
                continue
            tokens: NDArray[np.float32] = given[0].numpy()
            if name in factors:
                tokens = tokens / factors[name]
            tokens = unit_tokens(tokens)
            if name in found:
                found[name] += tokens.T @ tokens
            else:
                found[name] = tokens.T @ tokens
    return found


@torch.inference_mode()
def torch_grades(graph: GradeGraph, checkpoint: Checkpoint, pairs: Sequence[GradedPair]) -> NDArray[np.intp]:
    """The grades of pairs, shape (n,), by the module that was traced, in float32, one row each: nothing is loaded anew.

    Args:
        graph: the module.
        checkpoint: whose prompt, calibration, novelty and cuts; of exits nothing.
        pairs: at least one.
    """
    encoder, found = checkpoint.encoder(), []
    for pair in pairs:
        group = encoder.encode(pair.query, [pair.document])
        found.append([part.numpy() for part in graph.of_row(torch.tensor([group.prefix + group.suffixes[0]]))[:2]])
    logits, features = (np.concatenate(parts) for parts in zip(*found, strict=True))
    novelty = None if checkpoint.novelty is None else checkpoint.novelty.score(features)
    grades: NDArray[np.intp] = checkpoint.grade_cuts.grades(scored(checkpoint, logits, novelty)[1])
    return grades


def forward(
    graph: GradeGraph, modules: Mapping[str, Product], batch: Mapping[str, NDArray[Any]], *, every_token: bool = False
) -> tuple[torch.Tensor, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """Logits of the only row less their mean, shape (K,), and what each module is given and gives, (1, tokens, …).

    `every_token` as for `GradeGraph.of_row`.
    """
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def keep(name: str) -> Any:
        def hook(module: Product, given: tuple[torch.Tensor], output: torch.Tensor) -> None:
            if not module.idle:
                seen[name] = given[0], output

        return hook

    hooks = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    if torch.is_grad_enabled():
        # No weight takes a gradient, so the first states have to.
        embedding = graph.body.get_input_embeddings()
        hooks.append(embedding.register_forward_hook(lambda _, __, states: states.requires_grad_()))
    attention, graph.attention = graph.attention, "plain"  # the operator Attention has no gradient
    try:
        logits = graph.of_row(torch.from_numpy(batch["input_ids"]), every_token=every_token)[0][0]
    finally:
        graph.attention = attention
        for hook in hooks:
            hook.remove()
    return logits - logits.mean(), seen
