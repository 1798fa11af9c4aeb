"""Behind the layers that run all tokens only each row's last token goes on: nobody reads the others.

A later layer takes its keys and values of all tokens from what these are behind the last layer that runs them all
(SwiftKV's SingleInputKV; Qiao et al. 2024, arXiv 2410.03960). Of a model that knows nothing of this only the last
layer is a later one, and this is what it computes anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..model.checkpoint import Checkpoint
from .product import Product

_PRODUCTS = ("q_proj", "k_proj", "v_proj", "o_proj")


def layers_of_all_tokens(checkpoint: Checkpoint, layers: Sequence[Any]) -> int:
    """How many of the decoder's layers run all tokens.

    Args:
        checkpoint: whose decoder it is, as `load_body` gives it.
        layers: of the decoder, their products as `Product`.
    """
    if checkpoint.prefill_layers is not None:
        return checkpoint.prefill_layers
    last = len(layers)
    # Some families make queries, keys and values in one product.
    apart = all(isinstance(getattr(layers[-1].self_attn, name, None), Product) for name in _PRODUCTS)
    return max(checkpoint.feature_layer, last - 1) if apart else last


class LastTokens:
    """Lets the layers of a decoder behind the first ones run last tokens only.

    Args:
        layers: of the decoder; hooks are put on them.
        first: how many run all tokens.

    Attributes:
        layers: how many run all tokens, and how many the last ones.
        places: where each row's last token stands among the packed ones, shape (n,); set before the decoder runs.
        collecting: whether a later layer's attention makes keys and values of all tokens, and has no queries yet.
    """

    def __init__(self, layers: Sequence[Any], first: int) -> None:
        self.layers = first, len(layers) - first
        self.places: torch.Tensor | None = None
        self.collecting = False
        self._later = list(layers[first:])
        # For each later layer the first one with the same norm, which all have that were rotated: it is computed once.
        self._like = {id(layer): next(other for other in self._later if _alike(other, layer)) for layer in self._later}
        self._states: torch.Tensor | None = None
        self._normed: dict[int, torch.Tensor] = {}
        for layer in self._later:
            layer.register_forward_pre_hook(self._begin, with_kwargs=True)

    def products(self) -> set[Product]:
        """Those that run last tokens alone."""
        found = {part for layer in self._later for part in layer.modules() if isinstance(part, Product)}
        return found - {part for layer in self._later for part in (layer.self_attn.k_proj, layer.self_attn.v_proj)}

    def _begin(self, layer: Any, given: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """A later layer is to run: it makes the keys and values of all tokens, then takes the last ones."""
        assert self.places is not None
        states, *others = given
        if layer is self._later[0]:
            self._states, self._normed = states, {}
            states = states.index_select(1, self.places)
        attention = layer.self_attn
        self._let(attention, collect=True)
        attention(hidden_states=self._read(layer), **options)
        self._let(attention, collect=False)
        cosine, sine = options["position_embeddings"]
        options |= {
            "position_embeddings": (cosine.index_select(1, self.places), sine.index_select(1, self.places)),
            "position_ids": options["position_ids"].index_select(1, self.places),
        }
        return (states, *others), options

    def _let(self, attention: Any, *, collect: bool) -> None:
        """An attention is to make keys and values of all tokens, or all else of the last ones."""
        self.collecting = collect
        attention.q_proj.idle = attention.o_proj.idle = collect
        attention.k_proj.idle = attention.v_proj.idle = not collect

    def _read(self, layer: Any) -> torch.Tensor:
        """What a later layer's keys and values are made of, shape (1, T, hidden)."""
        assert self._states is not None
        norm = getattr(self._like[id(layer)], "input_layernorm", None)
        if norm is None:
            return self._states
        if id(norm) not in self._normed:
            self._normed[id(norm)] = norm(self._states)
        return self._normed[id(norm)]


def _alike(first: Any, second: Any) -> bool:
    """Whether two layers' norms before attention give the same."""
    norms = [getattr(layer, "input_layernorm", None) for layer in (first, second)]
    states = [{} if norm is None else norm.state_dict() for norm in norms]
    return states[0].keys() == states[1].keys() and all(
        torch.equal(value, states[1][name]) for name, value in states[0].items()
    )
