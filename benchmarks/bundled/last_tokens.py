"""The later layers of a checkpoint with `prefill_layers`, to be trained on what all tokens are behind these.

Keys and values of each later layer are made of these states, and only the last token goes on: SwiftKV's SingleInputKV
(Qiao et al. 2024, arXiv 2410.03960), of which the whole cost here is a product of keys and values a layer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from darl_rerank.model.checkpoint import Checkpoint
from darl_rerank.model.smollm2 import smollm2_folder
from darl_rerank.training.model.lowrank import read_adapter

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
NORMS = ("input_layernorm", "post_attention_layernorm")
MODULES = (*ATTENTION, "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class States:
    """A query and its n documents behind a layer.

    Attributes:
        prefix: states of the tokens that all documents stand behind, shape (P, hidden).
        tokens: of the documents' tokens, one document after the other, shape (T, hidden).
        lengths: tokens of each document, shape (n,).
        logits, final: what the whole model gives, shape (n, K), and its last tokens' states, (n, hidden).
    """

    prefix: Tensor
    tokens: Tensor
    lengths: Tensor
    logits: Tensor
    final: Tensor


class LastTokens(nn.Module):
    """Layers behind the first `prefill` ones, whose adapter and head are trained; the base's weights are not.

    Args:
        checkpoint: with an adapter on SmolLM2-135M, ended behind a layer with a head that has its own norm.
        prefill: how many layers run all tokens.
    """

    def __init__(self, checkpoint: Checkpoint, prefill: int) -> None:
        super().__init__()
        folder = smollm2_folder()
        config = json.loads((folder / "config.json").read_text("utf-8"))
        weights: dict[str, Tensor] = {}
        for path in sorted(folder.glob("*.safetensors")):
            weights |= load_file(path)
        if checkpoint.layers is None or checkpoint.adapter_folder is None or checkpoint.head.norm is None:
            raise ValueError("expected a checkpoint with an adapter that ends behind an exit")
        self.layers = range(prefill, checkpoint.layers)
        self.heads, self.key_heads = int(config["num_attention_heads"]), int(config["num_key_value_heads"])
        self.hidden, self.epsilon = int(config["hidden_size"]), float(config["rms_norm_eps"])
        self.size = self.hidden // self.heads
        theta = float((config.get("rope_parameters") or config)["rope_theta"])
        angles = torch.outer(torch.arange(1024).float(), theta ** (-torch.arange(0, self.size, 2).float() / self.size))
        self._cos: Tensor
        self._sin: Tensor
        self._constant("_cos", torch.cat([angles.cos()] * 2, dim=1))
        self._constant("_sin", torch.cat([-angles.sin(), angles.sin()], dim=1))
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        factors = read_adapter(checkpoint.adapter_folder).factors
        for layer in self.layers:
            for part in NORMS:
                self._constant(f"{part}_{layer}", weights[f"model.layers.{layer}.{part}.weight"])
            for module in MODULES:
                name = full_name(layer, module)
                self._constant(f"{module}_{layer}", weights[f"{name}.weight"])
                a, b = factors[name]
                self.down[f"{layer}:{module}"] = nn.Parameter(a.float().clone())
                self.up[f"{layer}:{module}"] = nn.Parameter(b.float().clone())
        self._norm: Tensor
        self._constant("_norm", torch.from_numpy(checkpoint.head.norm))
        self.rows = nn.Parameter(torch.from_numpy(checkpoint.head.weight).float().clone())
        self.biases = nn.Parameter(torch.from_numpy(checkpoint.head.bias).float().clone())

    def factors(self) -> Mapping[str, tuple[Tensor, Tensor]]:
        """A and B of each module's difference by transformers' name, as `LowRank.factors`."""
        return {
            full_name(int(key.split(":")[0]), key.split(":")[1]): (a.detach().cpu(), self.up[key].detach().cpu())
            for key, a in self.down.items()
        }

    def forward(self, batch: Sequence[States]) -> tuple[Tensor, Tensor]:
        """Final states, shape (n, hidden), and logits, (n, K), of all queries' documents."""
        states, positions, places, lasts = [], [], [], []
        begin, device = 0, self.rows.device
        for each in batch:
            before, first = torch.arange(len(each.prefix)), begin + len(each.prefix)
            states += [each.prefix, each.tokens]
            positions.append(before)
            for length in each.lengths.tolist():
                own = torch.arange(length)
                positions.append(len(before) + own)
                places.append(torch.cat([begin + before, first + own]))
                first += length
                lasts.append(first - 1)
            begin = first
        every, position = torch.cat(states).float(), torch.cat(positions).to(device)
        last = torch.tensor(lasts, device=device)
        # Rows of documents' keys, filled up with any; a mask keeps these out.
        rows = nn.utils.rnn.pad_sequence(places, batch_first=True).to(device)
        lengths = torch.tensor([len(each) for each in places], device=device)
        seen = (torch.arange(rows.shape[1], device=device) < lengths[:, None])[:, None, None]
        unit, x = self._unit(every), every[last]
        for layer in self.layers:
            first_norm, second_norm = (getattr(self, f"{part}_{layer}") for part in NORMS)
            both = torch.cat([self._weight(layer, "k_proj"), self._weight(layer, "v_proj")])
            keys, values = F.linear(unit * first_norm, both).view(len(every), 2, self.key_heads, self.size).unbind(1)
            keys = self._turned(keys, position)
            query = F.linear(self._unit(x) * first_norm, self._weight(layer, "q_proj")).view(len(x), -1, self.size)
            attended = F.scaled_dot_product_attention(
                self._turned(query, position[last])[:, :, None], keys[rows].transpose(1, 2),
                values[rows].transpose(1, 2), attn_mask=seen, enable_gqa=True,
            )  # fmt: skip
            x = x + F.linear(attended.flatten(1), self._weight(layer, "o_proj"))
            normed = self._unit(x) * second_norm
            gate, up = (F.linear(normed, self._weight(layer, name)) for name in ("gate_proj", "up_proj"))
            x = x + F.linear(F.silu(gate) * up, self._weight(layer, "down_proj"))
        final = self._unit(x) * self._norm
        return final, F.linear(final, self.rows, self.biases)

    def _weight(self, layer: int, module: str) -> Tensor:
        key = f"{layer}:{module}"
        frozen: Tensor = getattr(self, f"{module}_{layer}")
        return frozen + self.up[key] @ self.down[key]

    def _constant(self, name: str, values: Tensor) -> None:
        self.register_buffer(name, values.float(), persistent=False)

    def _unit(self, states: Tensor) -> Tensor:
        return states * torch.rsqrt(states.square().mean(-1, keepdim=True) + self.epsilon)

    def _turned(self, heads: Tensor, position: Tensor) -> Tensor:
        half = self.size // 2
        swapped = torch.cat([heads[..., half:], heads[..., :half]], dim=-1)
        return heads * self._cos[position][:, None] + swapped * self._sin[position][:, None]


def full_name(layer: int, module: str) -> str:
    return f"model.layers.{layer}.{'self_attn' if module in ATTENTION else 'mlp'}.{module}"
