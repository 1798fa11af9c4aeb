"""From a checkpoint to the decoder that runs it: the fused one where it computes what the model does."""

from __future__ import annotations

import os
from typing import Any

import torch

from ..errors import InputError
from ..model.base_weights import load_body, weights_of
from ..model.checkpoint import Checkpoint
from .decoder import Decoder, PlainDecoder
from .fused_decoder import FusedDecoder
from .fused_weights import FusedWeights, cache_path, keep


def load_decoder(
    checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, *, fused: bool = True, model: Any = None
) -> Decoder:
    """The checkpoint's decoder with its adapter merged.

    Args:
        checkpoint: what to run.
        dtype: number format of the weights.
        device: where it runs.
        fused: False for transformers' own forward pass, which is slower.
        model: the decoder as `load_body` gives it, if it is loaded already; it is not changed.

    Raises:
        InputError: the model can't be read, it is an export, or head, feature layer, prefill_layers or exits do not
            fit it.
    """
    if model is None:
        # Before the cache is looked into, which has the base model's under the same name.
        weights_of(checkpoint)
    path = cache_path(checkpoint, dtype) if fused and model is None else None
    weights = None if path is None else FusedWeights.load(path)
    if weights is not None and path is not None:
        os.utime(path)  # of several, the cache keeps those used last
    if weights is None:
        given, model = model, load_body(checkpoint, dtype) if model is None else model
        model.requires_grad_(False)
        weights = FusedWeights.of_model(model) if fused else None
        if weights is None or not weights.fits(checkpoint.prompt.max_length):
            if not hasattr(model, "layers"):
                raise InputError(f"{model.config.model_type} can't be run: expected a decoder with a list of layers")
            _check(checkpoint, model.config.get_text_config().hidden_size, len(model.layers))
            # One of its own: it hooks into the model.
            model = model if given is None else load_body(checkpoint, dtype)
            return PlainDecoder(model.to(device), checkpoint.feature_layer)
        if path is not None:
            keep(weights, path)
        # What is taken out of `weights` is then free to go.
        del model
    elif not weights.fits(checkpoint.prompt.max_length):
        return load_decoder(checkpoint, dtype, device, fused=False)
    _check(checkpoint, weights.tensors["embed_tokens.weight"].shape[1], weights.shape.layers)
    return FusedDecoder(weights, checkpoint.feature_layer, device, prefill_layers=checkpoint.prefill_layers)


def _check(checkpoint: Checkpoint, hidden: int, layers: int) -> None:
    """Raise InputError unless head, feature layer, prefill_layers and exits fit a decoder of this size."""
    found = checkpoint.head.weight.shape[1]
    if found != hidden:
        raise InputError(f"the head expects hidden size {found}, {checkpoint.base.name} has another")
    if not 1 <= checkpoint.feature_layer <= layers:
        raise InputError(f"feature_layer {checkpoint.feature_layer} is not one of the {layers} layers")
    if checkpoint.prefill_layers is not None and checkpoint.prefill_layers >= layers:
        raise InputError(f"prefill_layers {checkpoint.prefill_layers} is not below the model's {layers} layers")
    if checkpoint.exits is not None and checkpoint.exits.layers[-1] >= layers:
        raise InputError(
            f"the exit behind layer {checkpoint.exits.layers[-1]} is not one before the last of {layers} layers"
        )
