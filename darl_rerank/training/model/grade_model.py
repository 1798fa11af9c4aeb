"""The model in training: a decoder without its vocabulary projection, and the K-row head on prompts' last tokens."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from darl_rerank.errors import InputError, MissingDependencyError
from darl_rerank.files import temporary_folder
from darl_rerank.model.base_weights import ended, load_causal_lm, weights_of, with_adapter, with_shared_states
from darl_rerank.model.checkpoint import Checkpoint
from darl_rerank.model.exits import EPSILON, ExitHead, Exits
from darl_rerank.model.head import Head, Link

from ..recipe.settings import ExitsStage, Trainable
from .lowrank import balanced, read_adapter, save_as_adapter
from .packing import ATTENTION, register


class GradeModel(nn.Module):
    """Packed prompts to grade logits.

    Attributes:
        lm: transformers' causal LM, under a PEFT adapter if there is one.
        head: K rows, float32.
        exits: behind which layers the states are supervised as well, rising.
        exit_heads: K rows for each of them.
        link: how the head's outputs are read once it is trained; the losses read them in their own way.
    """

    def __init__(
        self, lm: nn.Module, head: Head, link: Link = "softmax", exits: Mapping[int, Head] | None = None
    ) -> None:
        super().__init__()
        self.link: Link = link
        self.lm = lm
        self.head = _linear(head)
        self._norm = head.norm
        self.exits = tuple(sorted(exits or ()))
        self.exit_heads = nn.ModuleList(_linear((exits or {})[layer]) for layer in self.exits)
        norms = [torch.from_numpy((exits or {})[layer].norm) for layer in self.exits]
        self.exit_norms: Tensor
        self.register_buffer("exit_norms", torch.stack(norms) if norms else torch.zeros(0), persistent=False)

    @property
    def body(self) -> Any:
        """The decoder, whose forward pass ends before the vocabulary projection."""
        return _decoder(self.lm)

    @property
    def adapted(self) -> bool:
        return hasattr(self.lm, "peft_config")

    def forward(self, last: Tensor, **inputs: Any) -> Tensor:
        """The heads' outputs, float32, of the prompts that `PackedPrompts.inputs` and `last` describe.

        Returns:
            shape (1 + exits, n, K): the whole model's, and in training those of `exit_heads`; else (1, n, K).
        """
        supervised = self.exits if self.training else ()
        output = self.body(**inputs, use_cache=False, output_hidden_states=bool(supervised))
        with torch.autocast(output.last_hidden_state.device.type, enabled=False):
            logits = [self.head(output.last_hidden_state[0, last].float())]
            for layer, head, norm in zip(supervised, self.exit_heads, self.exit_norms, strict=False):
                states = output.hidden_states[layer][0, last].float()
                unit = states * torch.rsqrt(states.square().mean(-1, keepdim=True) + EPSILON)
                logits.append(head(unit * norm))
        return torch.stack(logits)

    def head_values(self) -> Head:
        return Head(*_values(self.head), self._norm)

    def exit_values(self) -> Exits | None:
        """The exits as trained, neither calibrated nor with a rule; None if there are none."""
        heads = (
            ExitHead(layer, Head(*_values(head), norm.cpu().numpy().copy()))
            for layer, head, norm in zip(self.exits, self.exit_heads, self.exit_norms, strict=True)
        )
        return Exits(tuple(heads)) if self.exits else None

    def trainable_state(self) -> dict[str, Tensor]:
        """A copy of the weights that training changes, by name, on the CPU."""
        return {
            name: p.detach().to("cpu", copy=True).contiguous() for name, p in self.named_parameters() if p.requires_grad
        }

    def load_trainable(self, state: dict[str, Tensor]) -> None:
        """Put back what `trainable_state` gave.

        Raises:
            InputError: the names or shapes are not this model's.
        """
        own = {name: p for name, p in self.named_parameters() if p.requires_grad}
        if own.keys() != state.keys() or any(own[name].shape != state[name].shape for name in own):
            raise InputError("the saved weights are not those of this model: it trains other layers or another rank")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(state[name])


def _linear(head: Head) -> nn.Linear:
    linear = nn.Linear(head.weight.shape[1], head.weight.shape[0])
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(head.weight))
        linear.bias.copy_(torch.from_numpy(head.bias))
    return linear


def _values(linear: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    weight, bias = (p.detach().float().cpu().numpy().astype(np.float32) for p in (linear.weight, linear.bias))
    return weight, bias


def supervised_layers(stage: ExitsStage | None) -> tuple[int, ...]:
    """The layers with a loss of their own in fine-tuning."""
    return stage.layers if stage is not None and stage.weight else ()


def load_grade_model(
    checkpoint: Checkpoint, trainable: Trainable, *, exits: Sequence[int] = (), seed: int = 0
) -> GradeModel:
    """The model of `checkpoint`, ready to train; an adapter that it has is trained on under LoRA, else merged first.

    Args:
        checkpoint: what to begin with.
        trainable: which weights are trained.
        exits: layers that get a head and a loss of their own; a head that the checkpoint has there is begun with.
        seed: of LoRA's start.

    Raises:
        InputError: there are fewer layers than `trainable.layers`, or no more than the last of `exits`.
    """
    torch.manual_seed(seed)
    lora, adapted = trainable.weights == "lora", checkpoint.adapter_folder is not None
    lm = load_causal_lm(weights_of(checkpoint), torch.float32).requires_grad_(False)
    if adapted:
        lm = _with_own_adapter(lm, checkpoint) if lora else with_adapter(lm, checkpoint).merge_and_unload()
    layers = ended(_decoder(lm), checkpoint).layers
    count = len(layers)
    if trainable.layers is not None and trainable.layers > count:
        raise InputError(f"layers = {trainable.layers}, but {checkpoint.base.name} has {count}")
    if exits and max(exits) >= count:
        raise InputError(f"exits stand before the last of {count} layers, got {max(exits)}")
    if exits and max(exits) > (checkpoint.prefill_layers or count):
        raise InputError(f"exits stand no later than prefill_layers, {checkpoint.prefill_layers}, got {max(exits)}")
    first = 0 if trainable.layers is None else count - trainable.layers
    if lora and adapted:
        for layer in layers[:first]:
            layer.requires_grad_(False)
    elif lora:
        lm = _with_lora(lm, trainable, range(first, count))
    elif trainable.weights == "all":
        for layer in layers[first:]:
            for module in layer.modules():
                if isinstance(module, nn.Linear):
                    module.weight.requires_grad_(True)
    with_shared_states(_decoder(lm), checkpoint.prefill_layers)
    model = GradeModel(lm, checkpoint.head, checkpoint.link, _begun(checkpoint, exits, _decoder(lm)))
    register()
    model.body.config._attn_implementation = ATTENTION
    return model


def _decoder(lm: Any) -> Any:
    """The decoder of a causal LM, under a PEFT adapter or not."""
    return (lm.get_base_model() if hasattr(lm, "get_base_model") else lm).base_model


def _begun(checkpoint: Checkpoint, exits: Sequence[int], body: Any) -> dict[int, Head]:
    """Heads for exits to begin with: their own, or the model's under its final norm."""
    norm = getattr(getattr(body, "norm", None), "weight", None)
    size = checkpoint.head.weight.shape[1]
    scale = np.ones(size, np.float32) if norm is None else norm.detach().float().cpu().numpy().copy()
    new = Head(checkpoint.head.weight, checkpoint.head.bias, scale)
    own = {} if checkpoint.exits is None else {each.layer: each.head for each in checkpoint.exits.heads}
    return {layer: own.get(layer, new) for layer in exits}


def _with_own_adapter(lm: Any, checkpoint: Checkpoint) -> Any:
    """`lm` under the checkpoint's adapter, to train on: the same differences, of `balanced` factors scaled by 1.

    Adam's steps are as large as the learning rate whatever a weight's size. Factors as they may be stored, 8-bit ones
    of a size of 200 that are scaled by a millionth, would hardly move.
    """
    folder = checkpoint.adapter_folder
    assert folder is not None
    stored = read_adapter(folder)
    factors, _ = balanced(stored.factors)
    with tempfile.TemporaryDirectory() as temporary:
        save_as_adapter(
            replace(stored, factors=factors), temporary, base_name=checkpoint.base.name, dtype=torch.float32
        )
        return with_adapter(lm, checkpoint, Path(temporary), trainable=True)


def _with_lora(lm: Any, trainable: Trainable, layers: Sequence[int]) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise MissingDependencyError("peft", "torch") from error
    # PEFT takes "all-linear", or a choice of layers, but not both: full names say the same.
    names = {id(module): name for name, module in lm.named_modules()}
    blocks = lm.base_model.layers
    chosen = [names[id(m)] for i in layers for m in blocks[i].modules() if isinstance(m, nn.Linear)]
    config = LoraConfig(
        r=trainable.rank,
        lora_alpha=trainable.alpha,
        lora_dropout=trainable.dropout,
        target_modules="all-linear" if trainable.layers is None else chosen,
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # PEFT reads a property that transformers is about to rename; neither is ours.
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(lm, config)


def save_trained(
    model: GradeModel, checkpoint: Checkpoint, folder: str | Path, *, overwrite: bool = False, card: str | None = None
) -> Checkpoint:
    """Write `checkpoint` with the trained head and weights: an adapter under LoRA, else the whole model.

    Raises:
        DarlRerankError: `folder` exists and `overwrite` is false, or can't be written.
    """
    # Exits that the checkpoint had belong to the states it had.
    trained = checkpoint.replace(head=model.head_values(), exits=model.exit_values(), trained=True)
    if not any(name.startswith("lm.") for name in model.trainable_state()):
        return trained.save(folder, overwrite=overwrite, card=card)
    with temporary_folder(folder) as temporary:
        weights = temporary / "weights"
        if model.adapted:
            save_adapter(model, weights, base_name=checkpoint.base.name)
            # An adapter on a checkpoint with weights of its own stands on those.
            return trained.save(folder, overwrite=overwrite, adapter=weights, model=checkpoint.model_folder, card=card)
        lm: Any = model.lm
        attention, lm.config._attn_implementation = lm.config._attn_implementation, "sdpa"
        lm.save_pretrained(weights)
        lm.config._attn_implementation = attention
        return trained.save(folder, overwrite=overwrite, model=weights, card=card)


def save_adapter(model: GradeModel, folder: Path, *, base_name: str) -> None:
    """The PEFT adapter of `model` as PEFT writes it, with no path of this machine in it."""
    lm: Any = model.lm
    for config in lm.peft_config.values():
        config.base_model_name_or_path = base_name
        config.inference_mode = True
        # PEFT holds a set and would write its members in another order each time: other bytes for the same model.
        if not isinstance(config.target_modules, str | None):
            config.target_modules = sorted(config.target_modules)
    # "auto" would ask the hub for the base model's vocabulary size.
    lm.save_pretrained(folder, save_embedding_layers=False)


def save_weights(path: Path, state: dict[str, Tensor]) -> None:
    """Write tensors to `path` as safetensors, whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    save_file(state, temporary)
    temporary.replace(path)
