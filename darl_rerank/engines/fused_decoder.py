"""Decoders of the Llama kind, run over packed tokens with as little as possible besides the products.

The tokens of a micro-batch's sequences stand one after the other, without padding. Only attention gathers them into
blocks of equal length, each sequence behind the prefix that all share, and not even that on a GPU that has a kernel for
sequences of different lengths. Against transformers' forward pass:

- queries, keys and values are one product; activation, gating and residual sums are done inside the products;
- attention is two batched products and a softmax with one mask for all sequences; keys are not repeated for the query
  heads that share them;
- of the last layer all but keys and values is computed for each sequence's last token only, and so of all layers behind
  the checkpoint's `prefill_layers`, whose keys and values are made of what all tokens are there;
- sequences that leave early are taken out of the packing between two layers.

benchmarks/torch_steps.py measures what each is worth. The result is transformers' own to within rounding, which tests
hold it to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from .block_attention import BlockAttention, Heads, Packed
from .decoder import DecoderStates
from .fused_weights import FusedWeights
from .products import Product, product_kind
from .torch_exits import Leaving
from .varlen_attention import VarlenAttention, varlen_works

# Packed lengths are multiples of this: each new size takes memory that is not given back (blocks that fit no other
# size, and what oneDNN keeps for it), so that there should be few.
_TOKEN_MULTIPLE = 32


@dataclass(frozen=True, slots=True)
class _Layer:
    """One layer's weights; the norms of queries and keys, shape (head size,), are None where there are none.

    Attributes:
        inputs: queries, keys and values of all tokens; keys and values alone where only the last tokens go on.
        queries: those of the last tokens there.
    """

    attention_norm: Tensor
    query_norm: Tensor | None
    key_norm: Tensor | None
    inputs: Product
    queries: Product | None
    output: Product
    mlp_norm: Tensor
    gate: Product
    up: Product
    down: Product


class FusedDecoder:
    """See the module.

    Args:
        weights: a decoder's, in the precision it is to run in; they are taken out of it.
        feature_layer: the middle layer, counted from 1.
        device: where it runs.
        prefill_layers: see `Checkpoint.prefill_layers`.
    """

    def __init__(
        self,
        weights: FusedWeights,
        feature_layer: int,
        device: torch.device | None = None,
        *,
        prefill_layers: int | None = None,
    ) -> None:
        shape, tensors = weights.shape, weights.tensors
        self._device = device or torch.device("cpu")
        self._heads = Heads(shape.heads, shape.key_heads, shape.size)
        self._epsilon, self._rotary_scale = shape.epsilon, shape.rotary_scale
        self._feature_layer = feature_layer
        self._embedding = tensors.pop("embed_tokens.weight").to(self._device)
        self._dtype = self._embedding.dtype
        self._frequencies = tensors.pop("rotary.frequencies").to(self._device)
        self._norm = tensors.pop("norm.weight").to(self._device)
        on_cpu = self._device.type == "cpu"
        packed = not on_cpu and varlen_works(self._device, self._dtype)
        self._attention: Any = VarlenAttention(self._heads) if packed else BlockAttention(self._heads, fused=not on_cpu)
        self._token_multiple = _TOKEN_MULTIPLE if on_cpu else 1
        kind = product_kind(self._device, self._dtype)
        # How many layers run all tokens. Without `prefill_layers` all but the last, whose states of other tokens nobody
        # reads; it too where they are the middle ones.
        self._prefill = prefill_layers or shape.layers - (feature_layer < shape.layers)
        self._layers = [
            self._take(tensors, f"layers.{i}.", kind, last=i >= self._prefill) for i in range(shape.layers)
        ]  # fmt: skip

    def _take(self, tensors: dict[str, Tensor], layer: str, kind: type[Product], *, last: bool) -> _Layer:
        def taken(name: str) -> Tensor | None:
            # The weights stand in the product afterwards, perhaps in another layout: once is enough.
            found = tensors.pop(layer + name, None)
            return None if found is None else found.to(self._device)

        def product(*names: str) -> Product:
            pairs = [(taken(f"{name}.weight"), taken(f"{name}.bias")) for name in names]
            return kind([weight for weight, _ in pairs if weight is not None], [bias for _, bias in pairs])

        def norm(name: str) -> Tensor:
            found = taken(f"{name}.weight")
            assert found is not None, name
            return found

        return _Layer(
            attention_norm=norm("input_layernorm"),
            query_norm=taken("self_attn.q_norm.weight"),
            key_norm=taken("self_attn.k_norm.weight"),
            inputs=product(*([] if last else ["self_attn.q_proj"]), "self_attn.k_proj", "self_attn.v_proj"),
            queries=product("self_attn.q_proj") if last else None,
            output=product("self_attn.o_proj"),
            mlp_norm=norm("post_attention_layernorm"),
            gate=product("mlp.gate_proj"),
            up=product("mlp.up_proj"),
            down=product("mlp.down_proj"),
        )

    def run(
        self,
        sequences: Sequence[Sequence[int]],
        before: list[Tensor] | None = None,
        *,
        keep: bool = False,
        exits: Leaving | None = None,
    ) -> DecoderStates:
        """See `Decoder.run`; keys and values are a tensor for each layer, as the way of attention has them."""
        prefix_length = 0 if before is None else self._attention.length(before[0])
        packed = Packed.of(sequences, prefix_length, self._token_multiple, self._device)
        plan, (cos, sin) = self._attention.plan(packed, self._dtype), self._factors(packed)
        flat = [token for sequence in sequences for token in sequence] + [0] * packed.padding
        states = self._embedding[torch.tensor(flat, device=self._device)]
        kept: list[Tensor] = []
        middle = states
        all_tokens = states
        for index, layer in enumerate(self._layers):
            if index == self._prefill:
                all_tokens, states = self._scaled(states), states[packed.last]
            prefix = None if before is None else before[index]
            if layer.queries is None:
                heads = self._heads_of(layer.inputs, self._normed(states, layer.attention_norm))
                self._turn_all(heads, layer, cos, sin)
                attended = self._attention.attend(heads, plan, prefix)
            else:
                heads = self._heads_of(layer.inputs, all_tokens * layer.attention_norm)
                queries = self._heads_of(layer.queries, self._normed(states, layer.attention_norm))
                self._turn(queries, layer.query_norm, cos[packed.last], sin[packed.last])
                self._turn(heads[:, : self._heads.keys], layer.key_norm, cos, sin)
                attended = self._attention.attend_last(queries, heads, plan, prefix)
            if keep:
                kept.append(self._attention.kept(heads, plan))
            states = layer.output.plus(attended, states)
            normed = self._normed(states, layer.mlp_norm)
            states = layer.down.plus(layer.up.times(normed, layer.gate.swish(normed)), states)
            if index == self._feature_layer - 1:
                middle = states[: packed.tokens]
            if exits is not None and index + 1 in exits.layers:
                gone = exits.leaving(index + 1, states[packed.last])
                if gone.all():
                    return DecoderStates(states[:0], middle if index + 1 >= self._feature_layer else states[:0], kept)
                if gone.any():
                    states, sequences = self._without(gone, states, sequences)
                    packed = Packed.of(sequences, prefix_length, self._token_multiple, self._device)
                    plan, (cos, sin) = self._attention.plan(packed, self._dtype), self._factors(packed)
        if self._prefill == len(self._layers):
            states = states[packed.last]
        return DecoderStates(self._normed(states, self._norm), middle, kept)

    def _without(
        self, gone: NDArray[np.bool_], states: Tensor, sequences: Sequence[Sequence[int]]
    ) -> tuple[Tensor, list[Sequence[int]]]:
        """States of packed tokens, shape (T, hidden), and sequences, without those that are gone, at least one left."""
        kept = np.flatnonzero(np.repeat(~gone, [len(sequence) for sequence in sequences]))
        # Padding becomes some real token's: finite, and nothing reads it.
        rows = np.pad(kept, (0, -len(kept) % self._token_multiple), mode="edge")
        left = [sequence for sequence, leaves in zip(sequences, gone, strict=True) if not leaves]
        return states.index_select(0, torch.from_numpy(rows).to(self._device)), left

    def _factors(self, packed: Packed) -> tuple[Tensor, Tensor]:
        """cos and sin of the tokens' positions, shape (T, 1, head size); the first half of sin is negated."""
        positions = F.pad(packed.inside + packed.before, (0, packed.padding))
        # In float32 whatever the precision, and half of it twice, as transformers does it.
        angles = positions[:, None].float() * self._frequencies
        cos, sin = ((part * self._rotary_scale).to(self._dtype)[:, None] for part in (angles.cos(), angles.sin()))
        return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)

    def _normed(self, states: Tensor, weight: Tensor) -> Tensor:
        """RMS norm over the last axis, taken in float32 (Zhang and Sennrich 2019), as transformers does it."""
        return self._scaled(states) * weight

    def _scaled(self, states: Tensor) -> Tensor:
        """`states` of unit root mean square."""
        exact = states.float()
        scale = exact.square().mean(-1, keepdim=True).add_(self._epsilon).rsqrt_()
        return (exact * scale).to(states.dtype)

    def _heads_of(self, product: Product, normed: Tensor) -> Tensor:
        """Shape (tokens, heads, size)."""
        return product(normed).view(len(normed), -1, self._heads.size)

    def _turn_all(self, heads: Tensor, layer: _Layer, cos: Tensor, sin: Tensor) -> None:
        """Queries and keys of `heads`, shape (tokens, heads + 2 · key heads, size): at once if they have no norms."""
        queries, turned = self._heads.queries, self._heads.queries + self._heads.keys
        if layer.query_norm is None and layer.key_norm is None:
            self._turn(heads[:, :turned], None, cos, sin)
        else:
            self._turn(heads[:, :queries], layer.query_norm, cos, sin)
            self._turn(heads[:, queries:turned], layer.key_norm, cos, sin)

    def _turn(self, heads: Tensor, norm: Tensor | None, cos: Tensor, sin: Tensor) -> None:
        """Turn heads, shape (tokens, heads, size), by their positions, in place, behind their norm if they have one."""
        if norm is not None:
            heads.copy_(self._normed(heads, norm))
        half = self._heads.size // 2
        swapped = torch.cat([heads[..., half:], heads[..., :half]], dim=-1)
        heads.mul_(cos).addcmul_(swapped, sin)
