"""A Llama decoder with trainable low-rank differences, as fast as plain torch makes it on one GPU.

Every step adds B·A to each frozen weight and then runs whole products: on thousands of tokens that costs a hundredth of
what running LoRA's own two products beside each weight does, and gives the same result. Sequences are padded on the
right, so causal attention needs no mask and takes the flash kernel.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

PRODUCTS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "out": ("self_attn.o_proj",),
    "up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}


class LowRankDecoder(nn.Module):
    """The decoder of a transformers folder.

    Args:
        folder: config.json and safetensors of a Llama model whose input and output embeddings are tied.
        rank: of each linear layer's difference.
        scale: what B·A is multiplied by.
        exits: layers, counted from 1, behind which the last token's state is kept.
    """

    def __init__(self, folder: Path, rank: int, scale: float, exits: Sequence[int] = ()) -> None:
        super().__init__()
        config = json.loads((folder / "config.json").read_text("utf-8"))
        weights: dict[str, Tensor] = {}
        for path in sorted(folder.glob("*.safetensors")):
            weights |= load_file(path)
        self.scale, self.exits = scale, tuple(exits)
        self._layer = _layer
        self.layers = int(config["num_hidden_layers"])
        self.heads, self.key_heads = int(config["num_attention_heads"]), int(config["num_key_value_heads"])
        self.hidden = int(config["hidden_size"])
        self.size = int(config.get("head_dim") or self.hidden // self.heads)
        self.epsilon = float(config["rms_norm_eps"])
        rope = config.get("rope_parameters") or config
        inverse = float(rope["rope_theta"]) ** (-torch.arange(0, self.size, 2).float() / self.size)
        angles = torch.outer(torch.arange(1024).float(), inverse)
        self.register_buffer("cos", torch.cat([angles.cos(), angles.cos()], dim=1))
        self.register_buffer("sin", torch.cat([-angles.sin(), angles.sin()], dim=1))
        self.register_buffer("embedding", weights["model.embed_tokens.weight"].bfloat16())
        self.register_buffer("norm", weights["model.norm.weight"].float())
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        for layer in range(self.layers):
            before = f"model.layers.{layer}."
            for name in ("input_layernorm", "post_attention_layernorm"):
                self.register_buffer(f"{name}_{layer}", weights[f"{before}{name}.weight"].bfloat16())
            for kind, modules in PRODUCTS.items():
                frozen = torch.cat([weights[f"{before}{module}.weight"] for module in modules])
                self.register_buffer(f"{kind}_{layer}", frozen.bfloat16())
                for module in modules:
                    outputs, inputs = weights[f"{before}{module}.weight"].shape
                    key = f"{layer}:{module.split('.')[1]}"
                    self.down[key] = nn.Parameter(nn.init.kaiming_uniform_(torch.empty(rank, inputs), a=5**0.5))
                    self.up[key] = nn.Parameter(torch.zeros(outputs, rank))

    def products(self, layer: int) -> list[Tensor]:
        """The layer's weights with their differences added, in bfloat16."""
        result = []
        for kind, modules in PRODUCTS.items():
            keys = [f"{layer}:{module.split('.')[1]}" for module in modules]
            added = torch.cat([self.up[key].bfloat16() @ self.down[key].bfloat16() for key in keys])
            result.append(getattr(self, f"{kind}_{layer}") + self.scale * added)
        return result

    def forward(self, ids: Tensor, last: Tensor) -> dict[str, Any]:
        """States of right-padded sequences.

        Args:
            ids: shape (n, L).
            last: place of each sequence's last token, shape (n,).

        Returns:
            "final", shape (n, hidden), after the final norm; "exits", one such tensor a layer of `exits`, of unit RMS.
        """
        rows = torch.arange(len(ids), device=ids.device)
        states = self.embedding[ids]
        cos, sin = (part[: ids.shape[1]].to(states.dtype)[None, :, None] for part in (self.cos, self.sin))
        result: dict[str, Any] = {"exits": []}
        for layer in range(self.layers):
            states = self._layer(
                states, *self.products(layer), getattr(self, f"input_layernorm_{layer}"),
                getattr(self, f"post_attention_layernorm_{layer}"), cos, sin, self.heads, self.key_heads, self.epsilon,
            )  # fmt: skip
            if layer + 1 in self.exits:
                result["exits"].append(_unit(states[rows, last].float(), self.epsilon))
        result["final"] = _unit(states[rows, last].float(), self.epsilon) * self.norm
        return result

    def merge(self, factors: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Add differences to the frozen weights.

        Args:
            factors: by module name, A (rank, in) and B (out, rank); modules that it lacks stay as they are.
        """
        for layer in range(self.layers):
            for kind, modules in PRODUCTS.items():
                frozen = getattr(self, f"{kind}_{layer}").float()
                start = 0
                for module in modules:
                    rows = len(self.up[f"{layer}:{module.split('.')[1]}"])
                    if found := factors.get(f"model.layers.{layer}.{module}"):
                        frozen[start : start + rows] += found[1] @ found[0]
                    start += rows
                setattr(self, f"{kind}_{layer}", frozen.bfloat16())

    def compiled(self) -> None:
        """Run the layer through torch.compile, once for all layers and shapes."""
        self._layer = torch.compile(_layer, dynamic=True)

    def adapter(self) -> dict[str, Tensor]:
        """PEFT's names and tensors; a difference is `scale` times B·A."""
        return {name: value.detach().float().cpu().contiguous() for name, value in self._named().items()}

    def load_adapter(self, tensors: dict[str, Tensor]) -> None:
        """Take what `adapter` gave."""
        for name, parameter in self._named().items():
            parameter.data.copy_(tensors[name])

    def _named(self) -> dict[str, Tensor]:
        named = {}
        for kind, parameters in (("lora_A", self.down), ("lora_B", self.up)):
            for key, value in parameters.items():
                layer, module = key.split(":")
                part = "self_attn" if module in ("q_proj", "k_proj", "v_proj", "o_proj") else "mlp"
                named[f"base_model.model.model.layers.{layer}.{part}.{module}.{kind}.weight"] = value
        return named


def _layer(
    states: Tensor, qkv: Tensor, out: Tensor, up: Tensor, down: Tensor, first: Tensor, second: Tensor,
    cos: Tensor, sin: Tensor, heads: int, key_heads: int, epsilon: float,
) -> Tensor:  # fmt: skip
    count, length, _ = states.shape
    found = F.linear(_normed(states, first, epsilon), qkv).view(count, length, heads + 2 * key_heads, -1)
    turned = found[:, :, : heads + key_heads]
    half = turned.shape[-1] // 2
    turned = turned * cos + torch.cat([turned[..., half:], turned[..., :half]], dim=-1) * sin
    queries, keys = turned[:, :, :heads].transpose(1, 2), turned[:, :, heads:].transpose(1, 2)
    values = found[:, :, heads + key_heads :].transpose(1, 2)
    attended = F.scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=True)
    states = states + F.linear(attended.transpose(1, 2).flatten(2), out)
    gate, value = F.linear(_normed(states, second, epsilon), up).chunk(2, dim=-1)
    return states + F.linear(F.silu(gate) * value, down)


def _normed(states: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return F.rms_norm(states, weight.shape, weight, epsilon)


def _unit(states: Tensor, epsilon: float) -> Tensor:
    return states * torch.rsqrt(states.square().mean(-1, keepdim=True) + epsilon)
