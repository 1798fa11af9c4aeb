"""What the torch engine needs of a decoder, and transformers' own forward pass behind it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from .torch_exits import Leaving


@dataclass(frozen=True, slots=True)
class DecoderStates:
    """What a decoder computes for n sequences of T tokens together.

    Attributes:
        final: the last layer's state of each sequence's last token, after the final norm, shape (n, hidden); of the
            sequences that stayed to the end, where some left early.
        middle: the middle layer's states, the sequences one after the other without padding, shape (T, hidden); of the
            sequences that came as far.
        keys_values: of all layers, as the decoder itself takes them for a prefix; None or empty if not asked for.
    """

    final: Tensor
    middle: Tensor
    keys_values: Any


class Decoder(Protocol):
    """Runs sequences, each behind the same prefix or behind none; thread-safe."""

    def run(
        self,
        sequences: Sequence[Sequence[int]],
        before: Any = None,
        *,
        keep: bool = False,
        exits: Leaving | None = None,
    ) -> DecoderStates:
        """States of `sequences`.

        Args:
            sequences: token ids, each at least one.
            before: keys and values of the prefix that stands before each sequence; None if none does.
            keep: also return keys and values, to pass as `before`; asked for one sequence alone.
            exits: says which sequences leave, and is told their states for it; None if all stay.
        """
        ...


class PlainDecoder:
    """Any decoder of transformers, by its own forward pass on a padded batch.

    Sequences that leave early are run to the end all the same: they get the same result as where that saves time.

    Args:
        model: the decoder.
        feature_layer: the middle layer, counted from 1.
    """

    def __init__(self, model: Any, feature_layer: int) -> None:
        self._model, self._feature_layer = model, feature_layer
        self._local = threading.local()
        for layer, module in enumerate(model.layers, 1):
            module.register_forward_hook(partial(self._keep, layer))

    def _keep(self, layer: int, module: Any, arguments: Any, output: Any) -> None:
        if layer in self._local.wanted:
            self._local.states[layer] = output[0] if isinstance(output, tuple) else output

    def run(
        self,
        sequences: Sequence[Sequence[int]],
        before: Any = None,
        *,
        keep: bool = False,
        exits: Leaving | None = None,
    ) -> DecoderStates:
        """See `Decoder.run`; keys and values are pairs of shape (1, heads, length, size), one for each layer."""
        lengths = torch.tensor([len(sequence) for sequence in sequences])
        # Padding stands on the right and attention is causal, so no real token ever sees it: its id does not matter,
        # and without a prefix no mask is needed either.
        ids = torch.zeros((len(sequences), int(lengths.max())), dtype=torch.long)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = torch.tensor(sequence)
        device = self._model.device
        more: dict[str, Any] = {"use_cache": keep}
        if before is not None:
            more = self._after_prefix(before, *ids.shape)
        self._local.wanted = {self._feature_layer, *(() if exits is None else exits.layers)}
        self._local.states = {}
        output = self._model(input_ids=ids.to(device), **more)
        # Each thread sees its own; it is let go of here.
        states = self._local.__dict__.pop("states")
        last = lengths.to(device) - 1
        rows = reached = torch.arange(len(sequences), device=device)
        if exits is not None:
            for layer in exits.layers:
                gone = exits.leaving(layer, states[layer][rows, last[rows]])
                rows = rows[torch.from_numpy(~gone).to(device)]
                if layer < self._feature_layer:
                    reached = rows
        real = torch.arange(ids.shape[1]) < lengths[reached.cpu(), None]
        middle = states[self._feature_layer][reached][real]
        kept = [(layer.keys, layer.values) for layer in output.past_key_values.layers] if keep else None
        return DecoderStates(output.last_hidden_state[rows, last[rows]], middle, kept)

    def _after_prefix(self, before: Sequence[tuple[Tensor, Tensor]], count: int, length: int) -> dict[str, Any]:
        from transformers import DynamicCache

        cache = DynamicCache()
        for index, (keys, values) in enumerate(before):
            # A view: the prefix's keys and values are not copied for each document here.
            cache.update(keys.expand(count, -1, -1, -1), values.expand(count, -1, -1, -1), index)
        start = before[0][0].shape[2]
        positions = torch.arange(start, start + length, device=self._model.device)[None].expand(count, -1)
        return {"position_ids": positions, "past_key_values": cache, "use_cache": True}
