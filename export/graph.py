"""The ONNX graphs of a checkpoint: last token's state, K head rows in float32, novelty features.

One graph is made, that with a prefix; the plain one is the same with an empty prefix built in (`weights`):

    plain         input_ids (n, t), attention_mask (n, t) -> logits (n, K), features (n, 3·hidden)
    with prefix   input_ids, attention_mask of what follows the prefix, prefix_keys_values (layers, 2, heads, p, size),
                  prefix_own_sum (hidden) -> the same, and keys_values (layers, 2, heads, t, size) and own_sum (hidden)
                  of the first row; with p = 0 and one row it is what runs the prefix itself

What is traced runs packed tokens, the real ones of all rows one after the other: nothing is computed for padding, on
whichever side it stands. Attention alone gathers them into blocks of equal length; there padding repeats a row's last
token and comes last, where causal attention never sees it. `packing` puts in front what packs the rows.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import onnx
import torch

from ..errors import InputError
from ..model.base_weights import load_body
from ..model.checkpoint import Checkpoint
from .blocks import Blocks, KeysValues, LastQueries, OneRow, Part, rows_of
from .graph_exits import GraphExit, exits_of, grade_logits, linear
from .last_tokens import LastTokens, layers_of_all_tokens
from .names import OUTPUTS, PREFIX_INPUTS, segment_outputs
from .packing import TABLES, pack, tables
from .product import Product
from .rotation import rotate
from .simplification import simplify

Attention = Literal["fused", "plain"]
OPSET = 23
# The first opset with the Attention operator.
FUSED_OPSET = 23
OLDEST_OPSET = 18
_IMPLEMENTATION = "darl_rerank_export"


class GradeGraph(torch.nn.Module):
    """The module that is traced.

    Args:
        checkpoint: what to export; its adapter is merged.
        attention: "fused" for the ONNX operator Attention, "plain" for products and a softmax.
        body: its decoder as `load_body` gives it in float32, if it is loaded already; it is changed.
        rotated: whether to rotate what its layers pass on, see `rotation`.
    """

    def __init__(
        self, checkpoint: Checkpoint, attention: Attention = "fused", body: Any = None, *, rotated: bool = False
    ) -> None:
        super().__init__()
        self.body = load_body(checkpoint, torch.float32) if body is None else body
        self.body.requires_grad_(False)
        self.config = self.body.config.get_text_config()
        layers = require_llama_kind(self.body)
        if checkpoint.head.weight.shape[1] != self.config.hidden_size:
            raise InputError(
                f"the head expects hidden size {checkpoint.head.weight.shape[1]}, {checkpoint.base.name} has another"
            )
        self.back, self.back_final = rotate(self.body) if rotated else (torch.nn.Identity(), torch.nn.Identity())
        for part in list(self.body.modules()):
            for name, child in part.named_children():
                if isinstance(child, torch.nn.Linear):
                    setattr(part, name, Product(child))
        self.head = linear(checkpoint.head)
        self.link = checkpoint.link
        self.instruction_length = checkpoint.encoder().instruction_length
        self.attention = attention
        self.last_tokens = LastTokens(layers, layers_of_all_tokens(checkpoint, layers))
        self.blocks: list[Blocks | LastQueries] = []
        self.one_row = self.every_token = False
        self._feature_layer = checkpoint.feature_layer
        self.exits = exits_of(checkpoint, len(layers))
        heads = checkpoint.exits.heads if checkpoint.exits is not None and self.exits else ()
        self.exit_heads = torch.nn.ModuleList(GraphExit(each.head) for each in heads)
        self._states: dict[int, torch.Tensor] = {}
        for layer in {self._feature_layer, *self.exits}:
            layers[layer - 1].register_forward_hook(partial(self._keep, layer))
        self.requires_grad_(False)
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

    def _keep(self, layer: int, module: Any, arguments: Any, output: Any) -> None:
        self._states[layer] = output[0] if isinstance(output, tuple) else output

    def forward(
        self,
        ids: torch.Tensor,
        rows: torch.Tensor,
        inside: torch.Tensor,
        places: torch.Tensor,
        lengths: torch.Tensor,
        last: torch.Tensor,
        prefix_keys_values: torch.Tensor | None = None,
        prefix_own_sum: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """Logits and features, with a prefix also keys and values and the sum that it takes to be one itself.

        With a prefix and early exits also what `segments` cuts the graph at, see `names.segment_outputs`.

        Args:
            ids, rows, inside, places, lengths, last: of `packing.tables`.
            prefix_keys_values, prefix_own_sum: see the module.
        """
        before = 0 if prefix_keys_values is None else prefix_keys_values.shape[3]
        blocks = (OneRow if self.one_row else Blocks)(places, rows, inside, prefix_keys_values)
        all_tokens, later = self.last_tokens.layers
        of_later: Blocks | LastQueries = blocks if self.every_token else LastQueries(blocks, lengths)
        self.blocks = [*[blocks] * all_tokens, *[of_later] * later]
        self.last_tokens.places = inside if self.every_token else last
        prefix, positions = KeysValues(before), inside + before
        states = self.body(
            input_ids=ids[None], position_ids=positions[None], past_key_values=prefix, use_cache=True
        ).last_hidden_state
        middle = self._states[self._feature_layer]
        if not later or self.every_token:
            states = states.index_select(1, last)
        final = self.back_final(states.squeeze(0).float())
        logits = grade_logits(self.link, self.head(final))
        own = middle.squeeze(0) * (positions >= self.instruction_length)[:, None].to(middle.dtype)
        real = torch.arange(places.shape[1])[None] < lengths[:, None]
        total = (rows_of(own, places) * real[..., None].to(middle.dtype)).sum(1)
        if prefix_own_sum is not None:
            total = total + prefix_own_sum
        count = (lengths + before - self.instruction_length).clamp(min=1)
        parts = (self.back(total / count[:, None]), self.back(middle.index_select(1, last).squeeze(0)), final)
        units = [part / part.norm(dim=-1, keepdim=True).clamp(min=1e-12) for part in parts]
        features = torch.cat(units, dim=-1)
        if prefix_keys_values is None:
            return logits, features
        pairs = [torch.cat([*map(blocks.first_row, pair)]) for _, pair in sorted(prefix.own.items())]
        found = logits, features, torch.stack(pairs), total[0]
        if not self.exits:
            return found
        of_exits = []
        for layer, head in zip(self.exits, self.exit_heads, strict=True):
            states = self._states[layer]
            of_exits += [states, grade_logits(self.link, head(self.back(states.index_select(1, last).squeeze(0))))]
        by_segment = [torch.stack(pairs[start:end]) for start, end in pairwise([0, *self.exits, len(pairs)])]
        return (*found, *of_exits, torch.cat(units[:2], dim=-1), units[2], *by_segment)

    def of_row(self, input_ids: torch.Tensor, *, every_token: bool = False) -> tuple[torch.Tensor, ...]:
        """The plain graph's outputs for one row without padding, shape (1, t); gradients go through it fast.

        Args:
            input_ids: the row.
            every_token: whether later layers run each token as they run the last, so that they show what they read on
                more than one; the outputs are the same.
        """
        self.one_row, self.every_token = True, every_token
        try:
            found: tuple[torch.Tensor, ...] = self(*tables(input_ids, torch.ones_like(input_ids)))
        finally:
            self.one_row = self.every_token = False
        return found


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


def _attend(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **options: Any
) -> tuple[torch.Tensor, None]:
    graph: GradeGraph = module.export_graph
    if options.get("softcap") is not None or options.get("s_aux") is not None:
        raise InputError(f"{graph.config.model_type} can't be exported: capped logits and attention sinks are not")
    window = options.get("sliding_window", getattr(module, "sliding_window", None))
    scale = options.get("scaling") or query.shape[-1] ** -0.5
    if graph.last_tokens.collecting:
        return query.transpose(1, 2), None
    blocks = graph.blocks[module.layer_idx]
    parts = blocks.parts(query, key, value, module.layer_idx, window)
    return blocks.packed([_attended(graph, part, scale) for part in parts], query.shape[1]), None


def _attended(graph: GradeGraph, part: Part, scale: float) -> torch.Tensor:
    query, key, value, mask = part
    if graph.attention == "fused":
        return torch.onnx.ops.attention(query, key, value, mask, scale=scale)[0]
    additive = torch.where(mask, 0.0, torch.finfo(torch.float32).min)
    return torch.softmax((query * scale) @ key.transpose(2, 3) + additive, dim=-1) @ value


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
    ids, mask = torch.arange(2 * 7).reshape(2, 7) + 3, torch.ones(2, 7, dtype=torch.int64)
    mask[1, 5:] = 0
    state = torch.randn(config.num_hidden_layers, 2, config.num_key_value_heads, 5, size)
    inputs = (*tables(ids, mask), state, torch.randn(config.hidden_size))
    rows, length, tokens, before = (torch.export.Dim(name) for name in ("rows", "length", "tokens", "prefix"))
    packed = {"ids": tokens, "rows": tokens, "inside": tokens, "lengths": rows, "last": rows}
    sizes = {name: {0: dimension} for name, dimension in packed.items()} | {"places": {0: rows, 1: length}}
    try:
        with _quiet():
            program = torch.onnx.export(
                graph, inputs, dynamo=True, opset_version=opset, external_data=True, verbose=False, optimize=False,
                dynamic_shapes=(*(sizes[name] for name in TABLES), {3: before}, {}),
                input_names=[*TABLES, *PREFIX_INPUTS],
                output_names=[*OUTPUTS, *(segment_outputs(graph.exits) if graph.exits else ())],
            )  # fmt: skip
            assert program is not None
            simplify(program.model)
            program.save(str(path), external_data=True)
    except (InputError, OSError):
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{graph.config.model_type} can't be exported to ONNX: {reason}") from error
    model = onnx.load(str(path), load_external_data=False)
    _name_products(model, {f"body.{name}.weight": name for name in graph.products()})
    pack(model)
    path.write_bytes(model.SerializeToString())


def _name_products(model: Any, names: Mapping[str, str]) -> None:
    """Rename weights in a graph; their data stay where they are."""
    for tensor in model.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if name in names:
                node.input[place] = names[name]
    stale = [value for value in model.graph.value_info if value.name in names]
    for value in stale:
        model.graph.value_info.remove(value)
