"""The model in training: a decoder without its vocabulary projection, and the K-row head on prompts' last tokens."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from darl_rerank.errors import InputError, MissingDependencyError
from darl_rerank.model.base_weights import load_causal_lm, with_adapter
from darl_rerank.model.checkpoint import Checkpoint
from darl_rerank.model.head import Head, Link

from ..recipe.settings import Trainable
from .lowrank import balanced, read_adapter, save_as_adapter
from .packing import ATTENTION, register


class GradeModel(nn.Module):
    """Packed prompts to grade logits.

    Attributes:
        lm: transformers' causal LM, under a PEFT adapter if there is one.
        head: K rows, float32.
        link: how the head's outputs are read once it is trained; the losses read them in their own way.
    """

    def __init__(self, lm: nn.Module, head: Head, link: Link = "softmax") -> None:
        super().__init__()
        self.link: Link = link
        self.lm = lm
        self.head = nn.Linear(head.weight.shape[1], head.weight.shape[0])
        with torch.no_grad():
            self.head.weight.copy_(torch.from_numpy(head.weight))
            self.head.bias.copy_(torch.from_numpy(head.bias))

    @property
    def body(self) -> Any:
        """The decoder, whose forward pass ends before the vocabulary projection."""
        lm: Any = self.lm
        return (lm.get_base_model() if hasattr(lm, "get_base_model") else lm).base_model

    @property
    def adapted(self) -> bool:
        return hasattr(self.lm, "peft_config")

    def forward(self, last: Tensor, **inputs: Any) -> Tensor:
        """The head's outputs, shape (n, K), float32, of the prompts that `PackedPrompts.inputs` and `last` describe."""
        states = self.body(**inputs, use_cache=False).last_hidden_state[0, last]
        with torch.autocast(states.device.type, enabled=False):
            logits: Tensor = self.head(states.float())
        return logits

    def head_values(self) -> Head:
        return Head(*(p.detach().float().cpu().numpy().astype(np.float32) for p in (self.head.weight, self.head.bias)))

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


def load_grade_model(checkpoint: Checkpoint, trainable: Trainable, *, seed: int = 0) -> GradeModel:
    """The model of `checkpoint`, ready to train; an adapter that it has is trained on under LoRA, else merged first.

    Raises:
        InputError: there are fewer layers than `trainable.layers`.
    """
    torch.manual_seed(seed)
    if checkpoint.model_folder is not None:
        from darl_rerank.model.base_model import BaseModel

        lm = load_causal_lm(BaseModel(str(checkpoint.model_folder)), torch.float32)
    else:
        lm = load_causal_lm(checkpoint.base, torch.float32)
    count = int(lm.config.get_text_config().num_hidden_layers)
    if trainable.layers is not None and trainable.layers > count:
        raise InputError(f"layers = {trainable.layers}, but {checkpoint.base.name} has {count}")
    first = 0 if trainable.layers is None else count - trainable.layers
    adapter = checkpoint.adapter_folder is not None
    if adapter and trainable.weights != "lora":
        lm = with_adapter(lm, checkpoint).merge_and_unload()
    lm.requires_grad_(False)
    if trainable.weights == "lora":
        if adapter:
            lm = _with_own_adapter(lm, checkpoint)
            for layer in lm.get_base_model().base_model.layers[:first]:
                layer.requires_grad_(False)
        else:
            lm = _with_lora(lm, trainable, range(first, count))
    elif trainable.weights == "all":
        for layer in lm.base_model.layers[first:]:
            for module in layer.modules():
                if isinstance(module, nn.Linear):
                    module.weight.requires_grad_(True)
    model = GradeModel(lm, checkpoint.head, checkpoint.link)
    register()
    model.body.config._attn_implementation = ATTENTION
    return model


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
    trained = checkpoint.replace(head=model.head_values(), trained=True)
    if not any(name.startswith("lm.") for name in model.trainable_state()):
        return trained.save(folder, overwrite=overwrite, card=card)
    with tempfile.TemporaryDirectory(dir=Path(folder).resolve().parent) as temporary:
        weights = Path(temporary) / "weights"
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
