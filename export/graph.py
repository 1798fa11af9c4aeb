"""The ONNX graphs of a checkpoint: last token's state, K head rows in float32, novelty features.

One graph is traced, that with a prefix; the plain one is the same with an empty prefix built in (`weights`):

    plain         input_ids (n, t), attention_mask (n, t) -> logits (n, K), features (n, 3·hidden)
    with prefix   input_ids, attention_mask of what follows the prefix, prefix_keys_values (layers, 2, heads, p, size),
                  prefix_own_sum (hidden) -> the same, and keys_values (layers, 2, heads, t, size) and own_sum (hidden)
                  of the first row; with p = 0 and one row it is what runs the prefix itself

Real tokens are first moved to the front of their row. Then padding, wherever it stood, comes last, causal attention
never sees it, and positions count from 0: no mask over keys is needed for left, right or no padding.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import onnx
import torch

from ..errors import InputError
from ..model.base_weights import load_body
from ..model.checkpoint import Checkpoint
from ..model.head import Link

Attention = Literal["fused", "plain"]
OPSET = 23
# The first opset with the Attention operator.
FUSED_OPSET = 23
OLDEST_OPSET = 18
PREFIX_INPUTS = ("prefix_keys_values", "prefix_own_sum")
_IMPLEMENTATION = "darl_rerank_export"


class _Prefix:
    """What the decoder takes for a cache: puts a prefix's keys and values before a layer's own, and keeps the own."""

    def __init__(self, keys_values: torch.Tensor | None) -> None:
        self._prefix = keys_values
        self.own: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.own[layer_idx] = keys, values
        if self._prefix is None:
            return keys, values
        rows = keys.shape[0]
        before = self._prefix[layer_idx].unsqueeze(1).expand(-1, rows, -1, -1, -1)
        return torch.cat([before[0], keys], dim=2), torch.cat([before[1], values], dim=2)

    def get_seq_length(self, layer_idx: int = 0) -> Any:
        return 0 if self._prefix is None else self._prefix.shape[3]


class Product(torch.nn.Module):
    """A linear layer y = x W + b whose weight, shape (in, out), is what the traced MatMul reads, under its own name."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(linear.weight.detach().T, requires_grad=False)
        self.bias = linear.bias

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """`states`, shape (…, in), to (…, out)."""
        product = states @ self.weight
        return product if self.bias is None else product + self.bias


class GradeGraph(torch.nn.Module):
    """The module that is traced.

    Args:
        checkpoint: what to export; its adapter is merged.
        attention: "fused" for the ONNX operator Attention, "plain" for products and a softmax.
        body: its decoder as `load_body` gives it in float32, if it is loaded already; it is changed.
    """

    def __init__(self, checkpoint: Checkpoint, attention: Attention = "fused", body: Any = None) -> None:
        super().__init__()
        self.body = load_body(checkpoint, torch.float32) if body is None else body
        self.body.requires_grad_(False)
        self.config = self.body.config.get_text_config()
        layers = require_llama_kind(self.body)
        if checkpoint.head.weight.shape[1] != self.config.hidden_size:
            raise InputError(
                f"the head expects hidden size {checkpoint.head.weight.shape[1]}, {checkpoint.base.name} has another"
            )
        for part in list(self.body.modules()):
            for name, child in part.named_children():
                if isinstance(child, torch.nn.Linear):
                    setattr(part, name, Product(child))
        self.head = torch.nn.Linear(*checkpoint.head.weight.T.shape)
        self.head.weight.data = torch.from_numpy(checkpoint.head.weight)
        self.head.bias.data = torch.from_numpy(checkpoint.head.bias)
        self.requires_grad_(False)
        self.link = checkpoint.link
        self.instruction_length = checkpoint.encoder().instruction_length
        self.attention = attention
        self._masks: dict[int | None, torch.Tensor] = {}
        self._middle: torch.Tensor | None = None
        layers[checkpoint.feature_layer - 1].register_forward_hook(self._keep_middle)
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        ALL_ATTENTION_FUNCTIONS.register(_IMPLEMENTATION, _attend)
        for part in self.body.modules():
            if hasattr(part, "config"):
                part.config._attn_implementation = _IMPLEMENTATION
        for layer in layers:
            # Not as a submodule: it would be traced as the layer's own.
            layer.self_attn.__dict__["export_graph"] = self

    def products(self) -> dict[str, Product]:
        """The products with a constant weight, by the module's name in the decoder: that of the weight in the graph."""
        return {name: module for name, module in self.body.named_modules() if isinstance(module, Product)}

    def _keep_middle(self, module: Any, arguments: Any, output: Any) -> None:
        self._middle = output[0] if isinstance(output, tuple) else output

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        prefix_keys_values: torch.Tensor | None = None,
        prefix_own_sum: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        length = input_ids.shape[1]
        places = torch.arange(length, device=input_ids.device)
        mask = attention_mask.to(torch.int64)
        # Distinct keys: real tokens first, in order, then padding in order.
        order = torch.topk(mask * length * 2 - places, length, dim=1).indices
        ids = torch.gather(input_ids, 1, order)
        lengths = mask.sum(1)
        before = 0 if prefix_keys_values is None else prefix_keys_values.shape[3]
        self._masks = {}
        prefix = _Prefix(prefix_keys_values)
        # One row of positions would do, but ONNX Runtime's RotaryEmbedding does not spread it over the rows.
        positions = (places + before)[None].expand(ids.shape[0], -1)
        states = self.body(
            input_ids=ids, position_ids=positions, past_key_values=prefix, use_cache=True
        ).last_hidden_state
        middle = self._middle
        assert middle is not None
        # A row without any real token reads its first place rather than failing.
        last = (lengths - 1).clamp(min=0)[:, None, None].expand(-1, 1, states.shape[2])
        final = torch.gather(states, 1, last)[:, 0].float()
        logits = _grade_logits(self.link, self.head(final))
        own = (places + before >= self.instruction_length)[None] & (places[None] < lengths[:, None])
        total = (middle * own[..., None].to(middle.dtype)).sum(1)
        if prefix_own_sum is not None:
            total = total + prefix_own_sum
        count = (lengths + before - self.instruction_length).clamp(min=1)
        parts = (total / count[:, None], torch.gather(middle, 1, last)[:, 0], final)
        features = torch.cat([part / part.norm(dim=-1, keepdim=True).clamp(min=1e-12) for part in parts], dim=-1)
        if prefix_keys_values is None:
            return logits, features
        pairs = [torch.stack([keys[0], values[0]]) for _, (keys, values) in sorted(prefix.own.items())]
        return logits, features, torch.stack(pairs), total[0]

    def mask(self, queries: int, keys: int, window: int | None) -> torch.Tensor:
        """True where query i may see key j, shape (1, 1, queries, keys); made once for all layers of a kind."""
        if window not in self._masks:
            row = (torch.arange(queries) + (keys - queries))[:, None]
            column = torch.arange(keys)[None]
            seen = column <= row
            if window is not None:
                seen = seen & (column > row - window)
            self._masks[window] = seen[None, None]
        return self._masks[window]


def require_llama_kind(body: Any) -> Any:
    """The layers of a decoder, if they are what can be traced.

    Raises:
        InputError: a decoder of another kind.
    """
    layers = getattr(body, "layers", None)
    if layers is None or not all(hasattr(getattr(layer, "mlp", None), "down_proj") for layer in layers):
        raise InputError(
            f"{body.config.get_text_config().model_type} can't be exported: expected a decoder of the Llama kind "
            "(layers with attention and one dense gated MLP)"
        )
    return layers


def _grade_logits(link: Link, outputs: torch.Tensor) -> torch.Tensor:
    """`darl_rerank.model.head.grade_logits` in operators that can be traced."""
    if link == "softmax":
        return outputs
    conditionals = outputs[:, 1:] - outputs[:, :-1]
    beyond = torch.nn.functional.logsigmoid(conditionals).cumsum(dim=1)
    at = torch.nn.functional.logsigmoid(-conditionals)
    return torch.nn.functional.pad(beyond, (1, 0)) + torch.nn.functional.pad(at, (0, 1))


def _attend(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **options: Any
) -> tuple[torch.Tensor, None]:
    graph: GradeGraph = module.export_graph
    if options.get("softcap") is not None or options.get("s_aux") is not None:
        raise InputError(f"{graph.config.model_type} can't be exported: capped logits and attention sinks are not")
    window = options.get("sliding_window", getattr(module, "sliding_window", None))
    scale = options.get("scaling") or query.shape[-1] ** -0.5
    mask = graph.mask(query.shape[2], key.shape[2], window)
    if graph.attention == "fused":
        output = torch.onnx.ops.attention(query, key, value, mask, scale=scale)[0]
    else:
        repeat = query.shape[1] // key.shape[1]
        rows, heads, keys, size = key.shape
        shape = (rows, heads, repeat, keys, size)
        key, value = (t[:, :, None].expand(shape).reshape(rows, heads * repeat, keys, size) for t in (key, value))
        additive = torch.where(mask, 0.0, torch.finfo(torch.float32).min)
        weights = torch.softmax((query * scale) @ key.transpose(2, 3) + additive, dim=-1)
        output = weights @ value
    return output.transpose(1, 2), None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints and warns about its own internals; errors still come through as exceptions."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


@torch.inference_mode(False)
@torch.no_grad()
def trace(graph: GradeGraph, path: Path, *, opset: int = OPSET) -> None:
    """Write the graph with a prefix, its weights beside it in external data; products bear their modules' names.

    Args:
        graph: the module.
        path: the .onnx file to write; weights go to the same name with ".data" added.
        opset: version of the ONNX operators.

    Raises:
        InputError: the decoder can't be traced.
    """
    config = graph.config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    ids = torch.arange(2 * 7).reshape(2, 7) + 3
    state = torch.randn(config.num_hidden_layers, 2, config.num_key_value_heads, 5, size)
    inputs = (ids, torch.ones_like(ids), state, torch.randn(config.hidden_size))
    rows, length, before = torch.export.Dim("rows"), torch.export.Dim("length"), torch.export.Dim("prefix")
    try:
        with _quiet():
            program = torch.onnx.export(
                graph, inputs, dynamo=True, opset_version=opset, external_data=True, verbose=False,
                dynamic_shapes=({0: rows, 1: length}, {0: rows, 1: length}, {3: before}, {}),
                input_names=["input_ids", "attention_mask", *PREFIX_INPUTS],
                output_names=["logits", "features", "keys_values", "own_sum"],
            )  # fmt: skip
            assert program is not None
            program.save(str(path), external_data=True)
    except (InputError, OSError):
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{graph.config.model_type} can't be exported to ONNX: {reason}") from error
    _name_products(path, {f"body.{name}.weight": name for name in graph.products()})


def _name_products(path: Path, names: Mapping[str, str]) -> None:
    """Rename weights in a graph; their data stay where they are."""
    model = onnx.load(str(path), load_external_data=False)
    for tensor in model.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if name in names:
                node.input[place] = names[name]
    stale = [value for value in model.graph.value_info if value.name in names]
    for value in stale:
        model.graph.value_info.remove(value)
    path.write_bytes(model.SerializeToString())
