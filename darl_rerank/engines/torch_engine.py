"""The torch engine: transformers' decoder, the last token's hidden state, K head rows in float32."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import torch

from ..batching import MicroBatch
from ..checkpoint import Checkpoint
from ..errors import InputError
from .base import GradeOutput
from .base_weights import load_body
from .hardware import cpu_has_bfloat16

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class PrefixState:
    """A prefix that was run once.

    Attributes:
        length: its tokens.
        keys_values: for each layer keys and values, each of shape (1, heads, length, head size).
        own_sum: sum of the middle layer's states over the prefix's own tokens, shape (hidden,), float32.
    """

    length: int
    keys_values: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    own_sum: torch.Tensor


class TorchEngine:
    """Runs a checkpoint with torch.

    Args:
        checkpoint: what to run; an adapter is merged into the weights.
        device: "cpu", "cuda", "cuda:1" …; the first GPU if there is one, else the CPU, if None.
        precision: "float32", "bfloat16" or "float16"; if None bfloat16 on a GPU and on CPUs that multiply it in
            hardware, float32 otherwise.

    Raises:
        InputError: unknown precision, or a device that is not there.
    """

    name = "torch"

    def __init__(self, checkpoint: Checkpoint, *, device: str | None = None, precision: str | None = None) -> None:
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            self._device = torch.device(self.device)
        except RuntimeError as error:
            raise InputError(f"unknown device {self.device!r}: expected cpu, cuda, cuda:1 …") from error
        if self._device.type == "cuda" and (self._device.index or 0) >= torch.cuda.device_count():
            raise InputError(f"device {self.device!r} is not there: torch sees {torch.cuda.device_count()} GPUs")
        on_gpu = self._device.type == "cuda"
        self.precision = precision or ("bfloat16" if on_gpu or cpu_has_bfloat16() else "float32")
        if self.precision not in _DTYPES:
            raise InputError(f"the torch engine has no precision {self.precision!r}; known: {', '.join(_DTYPES)}")
        # On a CPU small batches keep their activations in cache: 512 to 1024 tokens ran fastest, 4096 half as fast.
        self.batch_tokens = 65536 if on_gpu else 1024
        self._model = load_body(checkpoint, _DTYPES[self.precision]).to(self._device)
        self._model.requires_grad_(False)
        self._weight = torch.from_numpy(checkpoint.head.weight).to(self._device)
        self._bias = torch.from_numpy(checkpoint.head.bias).to(self._device)
        if self._weight.shape[1] != self._model.config.get_text_config().hidden_size:
            raise InputError(
                f"the head expects hidden size {self._weight.shape[1]}, {checkpoint.base.name} has another"
            )
        self._instruction_length = checkpoint.encoder().instruction_length
        self._middle = _MiddleLayer(self._model, checkpoint.feature_layer)

    @torch.inference_mode()
    def encode_prefix(self, prefix: tuple[int, ...]) -> PrefixState:
        ids = torch.tensor([prefix], device=self._device)
        with self._middle.watching() as middle:
            output = self._model(input_ids=ids, use_cache=True)
        keys_values = tuple((layer.keys, layer.values) for layer in output.past_key_values.layers)
        own_sum = middle.states()[0, self._instruction_length :].float().sum(0)
        return PrefixState(len(prefix), keys_values, own_sum)

    @torch.inference_mode()
    def grade(self, batch: MicroBatch, prefix: PrefixState | None, *, features: bool) -> GradeOutput:
        lengths = torch.tensor([len(sequence) for sequence in batch.sequences], device=self._device)
        # Padding stands on the right and attention is causal, so no real token ever sees it: its id does not matter,
        # and without a prefix no mask is needed either.
        ids = torch.zeros((len(batch.sequences), int(lengths.max())), dtype=torch.long)
        for row, sequence in enumerate(batch.sequences):
            ids[row, : len(sequence)] = torch.tensor(sequence)
        ids = ids.to(self._device)
        rows = torch.arange(len(batch.sequences), device=self._device)
        with self._middle.watching() as middle:
            if prefix is None:
                last = self._model(input_ids=ids, use_cache=False).last_hidden_state
            else:
                last = self._after_prefix(ids, prefix)
        final = last[rows, lengths - 1].float()
        logits = torch.nn.functional.linear(final, self._weight, self._bias)
        if not features:
            return GradeOutput(logits.cpu().numpy(), None)
        start = self._instruction_length if prefix is None else 0
        inside = torch.arange(ids.shape[1], device=self._device)
        own = (inside >= start) & (inside < lengths[:, None])
        states = middle.states()
        total = (states.float() * own[..., None]).sum(1)
        count = own.sum(1, keepdim=True)
        if prefix is not None:
            total = total + prefix.own_sum
            count = count + (prefix.length - self._instruction_length)
        parts = (total / count, states[rows, lengths - 1].float(), final)
        joined = torch.cat([torch.nn.functional.normalize(part, dim=-1) for part in parts], dim=-1)
        return GradeOutput(logits.cpu().numpy(), joined.cpu().numpy())

    def _after_prefix(self, ids: torch.Tensor, prefix: PrefixState) -> torch.Tensor:
        from transformers import DynamicCache

        count, length = ids.shape
        cache = DynamicCache()
        for index, (keys, values) in enumerate(prefix.keys_values):
            # A view: the prefix's keys and values are not copied for each document here.
            cache.update(keys.expand(count, -1, -1, -1), values.expand(count, -1, -1, -1), index)
        positions = torch.arange(prefix.length, prefix.length + length, device=self._device)[None].expand(count, -1)
        output = self._model(input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True)
        result: torch.Tensor = output.last_hidden_state
        return result


class _MiddleLayer:
    """Keeps one decoder layer's output while a forward pass runs; each thread sees its own."""

    def __init__(self, model: Any, feature_layer: int) -> None:
        if not 1 <= feature_layer <= len(model.layers):
            raise InputError(f"feature_layer {feature_layer} is not one of the {len(model.layers)} layers")
        self._local = threading.local()
        model.layers[feature_layer - 1].register_forward_hook(self._keep)

    def _keep(self, module: Any, arguments: Any, output: Any) -> None:
        if getattr(self._local, "wanted", False):
            self._local.states = output[0] if isinstance(output, tuple) else output

    def watching(self) -> _MiddleLayer:
        return self

    def __enter__(self) -> _MiddleLayer:
        self._local.wanted = True
        return self

    def __exit__(self, *_: object) -> None:
        self._local.wanted = False

    def states(self) -> torch.Tensor:
        """The output, shape (rows, tokens, hidden), of this thread's last pass; it is let go of."""
        result: torch.Tensor = self._local.__dict__.pop("states")
        return result
