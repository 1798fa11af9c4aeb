"""Decoders of the Llama kind, run over packed tokens with as little as possible besides the products.

The tokens of a micro-batch's sequences stand one after the other, without padding. Only attention gathers them into
blocks of equal length, each sequence behind the prefix that all share. Against transformers' forward pass:

- queries, keys and values are one product; activation, gating and residual sums are done inside the products;
- attention is two batched products and a softmax with one mask for all sequences; keys are not repeated for the query
  heads that share them;
- of the last layer all but keys and values is computed for each sequence's last token only.

benchmarks/torch_steps.py measures what each is worth. The result is transformers' own to within rounding, which tests
hold it to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .attention import masked_attention
from .decoder import DecoderStates
from .products import Product, product_kind

# Decoders whose layers are: RMS norm, attention with rotary positions, RMS norm, gated MLP, two residual sums.
_MODEL_TYPES = {"llama", "mistral", "qwen2", "qwen3"}
# Packed lengths are multiples of this: each new size takes memory that is not given back (blocks that fit no other
# size, and what oneDNN keeps for it), so that there should be few.
_TOKEN_MULTIPLE = 32


def is_fusable(model: Any, longest: int) -> bool:
    """Whether `FusedDecoder` computes what `model`, a transformers decoder, does for up to `longest` tokens."""
    config = model.config
    window = getattr(config, "sliding_window", None)
    return config.model_type in _MODEL_TYPES and config.hidden_act == "silu" and (window is None or window >= longest)


@dataclass(frozen=True, slots=True)
class _Layer:
    """One layer's weights; the norms of queries and keys, shape (head size,), are None where there are none."""

    attention_norm: Tensor
    query_norm: Tensor | None
    key_norm: Tensor | None
    qkv: Product
    output: Product
    mlp_norm: Tensor
    gate: Product
    up: Product
    down: Product


@dataclass(frozen=True, slots=True)
class _Packing:
    """Where n sequences of T tokens stand, up to L each, behind a prefix of P tokens; A is P + L.

    Attributes:
        ids: token ids, shape (T,), with padding at the end.
        tokens: how many of the T are real.
        cos, sin: rotary factors of the tokens' positions, shape (T, 1, head size); the first half of `sin` is negated.
        last: where each sequence's last token stands among the T, shape (n,).
        queries: which of the T · (heads + 2 · key heads) rows stands where in a block (n, heads, L).
        keys_values: the same for keys and values, a block of (2, n, key heads, L).
        outputs: which of the block's n · heads · L rows stands where among the T · heads outputs.
        mask: 0 where query l may see key a, -inf elsewhere, shape (L, A); the same for all sequences, since the padding
            of shorter ones comes last, where causal attention does not see it.
        last_mask: the same for each sequence's last token, shape (n, 1, 1, A).
    """

    ids: Tensor
    tokens: int
    cos: Tensor
    sin: Tensor
    last: Tensor
    queries: Tensor
    keys_values: Tensor
    outputs: Tensor
    mask: Tensor
    last_mask: Tensor


class FusedDecoder:
    """See the module.

    Args:
        model: a transformers decoder for which `is_fusable` holds, on its device and in its precision. Its weights are
            taken out of it.
        feature_layer: the middle layer, counted from 1.
    """

    def __init__(self, model: Any, feature_layer: int) -> None:
        config = model.config
        self._heads = int(config.num_attention_heads)
        self._key_heads = int(config.num_key_value_heads)
        self._size = int(getattr(config, "head_dim", None) or config.hidden_size // self._heads)
        self._epsilon = float(config.rms_norm_eps)
        self._feature_layer = feature_layer
        self._embedding = model.embed_tokens.weight.detach()
        self._device, self._dtype = self._embedding.device, self._embedding.dtype
        self._rotary = model.rotary_emb
        self._norm = model.norm.weight.detach()
        # torch's fused kernel takes nearly twice as long on a CPU, on sequences this short.
        self._attention_kernel = self._device.type != "cpu"
        kind = product_kind(self._device, self._dtype)
        self._layers = [self._take(layer, kind) for layer in model.layers]
        # The layer behind whose keys and values only the sequences' last tokens are run: the last one, or none where
        # all tokens' states there are the middle ones.
        self._shortened = len(self._layers) - (feature_layer < len(self._layers))

    @staticmethod
    def _take(layer: Any, kind: type[Product]) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp

        def product(*modules: Any) -> Product:
            taken = kind(
                [module.weight.detach() for module in modules],
                [None if module.bias is None else module.bias.detach() for module in modules],
            )
            # The weights stand in the product now, perhaps in another layout: once is enough.
            for module in modules:
                module.weight = None
            return taken

        def norm(module: Any) -> Tensor | None:
            return None if module is None else module.weight.detach()

        return _Layer(
            attention_norm=layer.input_layernorm.weight.detach(),
            query_norm=norm(getattr(attention, "q_norm", None)),
            key_norm=norm(getattr(attention, "k_norm", None)),
            qkv=product(attention.q_proj, attention.k_proj, attention.v_proj),
            output=product(attention.o_proj),
            mlp_norm=layer.post_attention_layernorm.weight.detach(),
            gate=product(mlp.gate_proj),
            up=product(mlp.up_proj),
            down=product(mlp.down_proj),
        )

    def run(
        self, sequences: Sequence[Sequence[int]], before: list[Tensor] | None = None, *, keep: bool = False
    ) -> DecoderStates:
        """See `Decoder.run`; keys and values are, for each layer, of shape (2, 1, key heads, length, head size)."""
        prefix_length = 0 if before is None else before[0].shape[3]
        packing = self._pack(sequences, prefix_length)
        kept: list[Tensor] = []
        states = self._embedding[packing.ids]
        middle = states
        for index, layer in enumerate(self._layers):
            heads = layer.qkv(self._normed(states, layer.attention_norm)).view(len(states), -1, self._size)
            self._rotate(heads, layer, packing)
            rows = heads.view(-1, self._size)
            keys_values = _taken(rows, packing.keys_values)
            if keep:
                kept.append(keys_values)
            if before is not None:
                count = keys_values.shape[1]
                keys_values = torch.cat([before[index].expand(-1, count, -1, -1, -1), keys_values], dim=3)
            if index == self._shortened:
                queries = heads[packing.last, : self._heads].unsqueeze(2)
                attended = self._attend(queries, keys_values, packing.last_mask).flatten(1)
                states = states[packing.last]
            else:
                attended = self._attend(_taken(rows, packing.queries), keys_values, packing.mask)
                attended = _taken(attended.view(-1, self._size), packing.outputs).view(len(states), -1)
            states = layer.output.plus(attended, states)
            normed = self._normed(states, layer.mlp_norm)
            states = layer.down.plus(layer.up.times(normed, layer.gate.swish(normed)), states)
            if index == self._feature_layer - 1:
                middle = states[: packing.tokens]
        if self._shortened == len(self._layers):
            states = states[packing.last]
        return DecoderStates(self._normed(states, self._norm), middle, kept)

    def _pack(self, sequences: Sequence[Sequence[int]], before: int) -> _Packing:
        device = self._device
        flat = [token for sequence in sequences for token in sequence]
        tokens, count, longest = len(flat), len(sequences), max(map(len, sequences))
        padding = -tokens % _TOKEN_MULTIPLE
        # Only lengths and ids go to the device; the tables, which are far larger, are made there.
        lengths = torch.tensor([len(sequence) for sequence in sequences], device=device)
        ids = torch.tensor(flat + [0] * padding, device=device)
        ends = lengths.cumsum(0)
        starts = ends - lengths
        # Padding reads its sequence's last token: finite, and never seen.
        places = starts[:, None] + torch.minimum(torch.arange(longest, device=device), lengths[:, None] - 1)
        width = self._heads + 2 * self._key_heads
        head = torch.arange(width, device=device)
        queries = places[:, None] * width + head[: self._heads, None]
        keys_values = places[None, :, None] * width + head[self._heads :].view(2, 1, self._key_heads, 1)
        sequence = torch.repeat_interleave(torch.arange(count, device=device), lengths, output_size=tokens)
        inside = torch.arange(tokens, device=device) - starts[sequence]
        rows = sequence * (self._heads * longest) + inside
        outputs = rows[:, None] + head[: self._heads] * longest
        query, key = torch.arange(longest, device=device), torch.arange(before + longest, device=device)
        mask = torch.zeros(longest, before + longest, device=device)
        mask.masked_fill_(key > query[:, None] + before, -torch.inf)
        # Padding at the end reads some real token's output: finite, and nothing reads the padding's own.
        positions, outputs = F.pad(inside + before, (0, padding)), F.pad(outputs, (0, 0, 0, padding))
        mask = mask.to(self._dtype if self._attention_kernel else torch.float32)
        cos, sin = self._rotary(self._embedding[:1], positions[None])
        sin = torch.cat([-sin[..., : self._size // 2], sin[..., self._size // 2 :]], dim=-1)
        last_mask = mask[lengths - 1][:, None, None]
        return _Packing(
            ids, tokens, cos[0, :, None], sin[0, :, None], ends - 1, queries, keys_values, outputs, mask, last_mask
        )

    def _normed(self, states: Tensor, weight: Tensor) -> Tensor:
        """RMS norm over the last axis, taken in float32 (Zhang and Sennrich 2019), as transformers does it."""
        exact = states.float()
        scale = exact.square().mean(-1, keepdim=True).add_(self._epsilon).rsqrt_()
        return (exact * scale).to(states.dtype) * weight

    def _rotate(self, heads: Tensor, layer: _Layer, packing: _Packing) -> None:
        """Turn queries and keys of `heads`, shape (T, heads + 2 · key heads, size), by their positions, in place."""
        if layer.query_norm is not None and layer.key_norm is not None:
            queries, keys = heads[:, : self._heads], heads[:, self._heads : self._heads + self._key_heads]
            queries.copy_(self._normed(queries, layer.query_norm))
            keys.copy_(self._normed(keys, layer.key_norm))
        turned = heads[:, : self._heads + self._key_heads]
        half = self._size // 2
        swapped = torch.cat([turned[..., half:], turned[..., :half]], dim=-1)
        turned.mul_(packing.cos).addcmul_(swapped, packing.sin)

    def _attend(self, queries: Tensor, keys_values: Tensor, mask: Tensor) -> Tensor:
        """Attention of all blocks.

        Args:
            queries: shape (n, heads, Q, size).
            keys_values: shape (2, n, key heads, A, size).
            mask: what is added to the products, shape (Q, A), or (n, 1, Q, A).

        Returns:
            shape (n, heads, Q, size).
        """
        count, _, length, size = queries.shape
        shared = self._heads // self._key_heads
        dtype = queries.dtype
        if self._attention_kernel:
            return masked_attention(queries, *keys_values, mask)
        # The query heads of one key head stand one below the other, so keys and values need not be repeated.
        # In float32, whose batched products keep no memory for each new shape as oneDNN's in bfloat16 do.
        queries = queries.reshape(count * self._key_heads, shared * length, size).float()
        keys, values = keys_values.flatten(1, 2).float()
        whole = mask.dim() == 2
        added = mask.repeat(shared, 1) if whole else mask.expand(-1, self._key_heads, shared, -1).flatten(0, 1)
        products = torch.baddbmm(added, queries, keys.transpose(1, 2), alpha=size**-0.5)
        attended = torch.bmm(products.softmax(dim=-1), values).to(dtype)
        return attended.view(count, self._heads, length, size)


def _taken(rows: Tensor, places: Tensor) -> Tensor:
    """`rows[places]`, of the shape of `places` and one axis more; index_select copies whole rows, indexing does not."""
    return rows.index_select(0, places.flatten()).view(*places.shape, -1)
