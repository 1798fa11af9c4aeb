"""Loading a base model's weights with transformers, and starting a checkpoint's head from its LM head."""

from __future__ import annotations

import threading
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError, MissingDependencyError
from .base_model import BaseModel
from .head import Head
from .hub import unreachable
from .prompt import Prompt, PromptEncoder
from .quiet_loading import quiet_loading
from .scale import RelevanceScale

if TYPE_CHECKING:
    import torch

    from .checkpoint import Checkpoint


def require_torch() -> None:
    """Raise MissingDependencyError unless torch and transformers are installed."""
    for module in ("torch", "transformers"):
        if find_spec(module) is None:
            raise MissingDependencyError(module, "torch")


def load_body(checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    """The decoder without its LM head, adapter merged: a transformers model in evaluation mode on the CPU.

    An adapter is merged in float32 and only then rounded to `dtype`, so that a small difference is not lost. It has the
    layers that the checkpoint runs, and the norm that its head has.
    """
    import torch
    from transformers import AutoModel

    weights = weights_of(checkpoint)
    if checkpoint.adapter_folder is None:
        body = _from_pretrained(AutoModel, weights.resolve(), weights.revision, dtype)
    else:
        adapted = with_adapter(load_causal_lm(weights, torch.float32), checkpoint)
        body = adapted.merge_and_unload().base_model.to(dtype)
    return with_shared_states(ended(body.eval(), checkpoint), checkpoint.prefill_layers)


def weights_of(checkpoint: Checkpoint) -> BaseModel:
    """Where a checkpoint's weights are, without its adapter: in its own folder, or the base model's.

    Raises:
        InputError: an export, whose weights are in its ONNX graphs alone. The base model's would be another model's.
    """
    if checkpoint.model_folder is not None:
        return BaseModel(str(checkpoint.model_folder.resolve()))
    if checkpoint.export is not None and checkpoint.adapter_folder is None:
        raise InputError(
            "is an export, whose weights are in its ONNX graphs alone: engine='onnx' runs it, and torch runs the "
            "checkpoint that it was made from",
            path=checkpoint.folder,
        )
    return checkpoint.base


def ended(body: Any, checkpoint: Checkpoint) -> Any:
    """The decoder as the checkpoint ends it: without later layers, and with the head's norm for its final one.

    Args:
        body: transformers' decoder; it is changed.
        checkpoint: says how many layers, and has the head.

    Raises:
        InputError: the decoder has fewer layers, or a final norm that is no RMS norm.
    """
    import torch

    layers, weight = checkpoint.layers, checkpoint.head.norm
    if layers is not None:
        if len(getattr(body, "layers", ())) < layers:
            raise InputError(f"the model ends behind layer {layers}, which {checkpoint.base.name} does not have")
        body.layers = body.layers[:layers]
        config = body.config.get_text_config()
        config.num_hidden_layers = layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:layers]
    if weight is not None:
        norm: Any = getattr(body, "norm", None)
        if getattr(norm, "weight", None) is None or norm.weight.shape != weight.shape:
            raise InputError(f"{checkpoint.base.name} has no final RMS norm of size {len(weight)} to put the head's in")
        norm.weight.data = torch.from_numpy(weight).to(norm.weight.dtype)
        # A family whose norms are scaled otherwise (Gemma's by 1 + weight) is noticed by what they give.
        states = torch.linspace(-1, 2, len(weight)).to(norm.weight.dtype)
        wanted = states.float() * states.float().square().mean().rsqrt() * norm.weight.float()
        if not torch.allclose(norm(states).float(), wanted, rtol=0.02, atol=0.02):
            raise InputError(f"{checkpoint.base.name}'s final norm is no RMS norm as a head with its own needs it")
    return body


def with_shared_states(body: Any, prefill_layers: int | None) -> Any:
    """The decoder with keys and values behind `prefill_layers` made of what all tokens are there.

    All tokens still run all layers, so this is slower than it could be; what the last token comes to is the same.

    Args:
        body: transformers' decoder, under LoRA or not; it is changed.
        prefill_layers: see `Checkpoint.prefill_layers`.

    Raises:
        InputError: the decoder has no more layers than these, or none of the kind that can be changed.
    """
    if prefill_layers is None:
        return body
    layers = getattr(body, "layers", ())
    parts = ("input_layernorm", "self_attn.k_proj", "self_attn.v_proj")
    if len(layers) <= prefill_layers:
        raise InputError(f"prefill_layers {prefill_layers} is not below the model's {len(layers)} layers")
    try:
        found = [[layer.get_submodule(part) for part in parts] for layer in layers[prefill_layers:]]
    except AttributeError as error:
        raise InputError(f"{body.config.model_type} can't have prefill_layers: {error}") from error
    # Of each thread its own, as a decoder may be run by several.
    shared = threading.local()

    def keep(module: Any, arguments: Any, output: Any) -> None:
        shared.states = output[0] if isinstance(output, tuple) else output

    layers[prefill_layers - 1].register_forward_hook(keep)
    for norm, *products in found:
        for product in products:
            product.register_forward_pre_hook(lambda module, arguments, norm=norm: (norm(shared.states),))
    return body


def with_adapter(model: Any, checkpoint: Checkpoint, folder: Path | None = None, *, trainable: bool = False) -> Any:
    """`model` under the checkpoint's PEFT adapter, or under that in `folder`."""
    try:
        from peft import PeftModel
    except ImportError as error:
        raise MissingDependencyError("peft", "torch") from error
    try:
        with warnings.catch_warnings():
            # PEFT reads a property that transformers is about to rename; neither is ours.
            warnings.simplefilter("ignore", FutureWarning)
            # One trained on a model that ends early has nothing for the layers behind.
            warnings.filterwarnings("ignore", "Found missing adapter keys")
            return PeftModel.from_pretrained(model, str(folder or checkpoint.adapter_folder), is_trainable=trainable)
    except (ValueError, RuntimeError, KeyError) as error:
        raise InputError(f"the adapter does not fit {checkpoint.base.name}: {error}", path=checkpoint.folder) from error


def load_causal_lm(base: BaseModel, dtype: torch.dtype) -> Any:
    """The base model with its LM head, in evaluation mode on the CPU."""
    from transformers import AutoModelForCausalLM

    return _from_pretrained(AutoModelForCausalLM, base.resolve(), base.revision, dtype).eval()


def _only_cached(source: Any) -> bool:
    """Whether transformers is to ask the hub's cache alone: SOURCE is no folder here, and the hub is not there."""
    return not Path(source).is_dir() and unreachable() is not None


def _from_pretrained(auto: Any, source: Any, revision: str | None, dtype: torch.dtype) -> Any:
    try:
        with quiet_loading():
            model, found = auto.from_pretrained(
                str(source),
                revision=revision,
                dtype=dtype,
                attn_implementation="sdpa",
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=_only_cached(source),
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"base model {source} could not be loaded: {reason}") from error
    # transformers makes up what is not there, an LM head for instance.
    if missing := sorted(found["missing_keys"]):
        raise InputError(f"base model {source} lacks {len(missing)} weights, the first of them {missing[0]}")
    return model


def read_base(
    base: str | Path, scale: RelevanceScale, prompt: Prompt | None, prefill_layers: int | None = None
) -> dict[str, Any]:
    """What an untrained checkpoint takes from its base model; see `Checkpoint.from_base`."""
    require_torch()
    import torch
    from transformers import AutoTokenizer

    reference = BaseModel.locate(base)
    source = reference.resolve()
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source, revision=reference.revision, trust_remote_code=False, local_files_only=_only_cached(source)
        )
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"the tokenizer of {base} could not be loaded: {str(error).splitlines()[0]}") from error
    if not tokenizer.is_fast:
        raise InputError(f"the tokenizer of {base} has no tokenizer.json; a fast tokenizer is needed")
    model = load_causal_lm(reference, torch.float32)
    commit = getattr(model.config, "_commit_hash", None)
    if commit is not None:
        reference = BaseModel(reference.name, commit, reference.sha256)
    if prompt is None:
        first = tokenizer("")["input_ids"][:1]
        starts_with_bos = bool(first) and first[0] == tokenizer.bos_token_id
        prompt = Prompt.default(scale, bos=tokenizer.bos_token if starts_with_bos else "")
    tokenizer_json = tokenizer.backend_tokenizer.to_str()
    encoder = PromptEncoder(prompt, tokenizer_json)
    head = head_from_words(model.get_output_embeddings(), scale, encoder, base=str(base))
    layers = int(model.config.get_text_config().num_hidden_layers)
    if prefill_layers is not None and not 1 <= prefill_layers < layers:
        raise InputError(f"prefill_layers must lie between 1 and {layers - 1} for {base}, got {prefill_layers}")
    return {
        "prompt": prompt,
        "tokenizer_json": tokenizer_json,
        "head": head,
        "base": reference,
        "feature_layer": max(1, min(layers // 2, prefill_layers or layers)),
        "prefill_layers": prefill_layers,
    }


def head_from_words(lm_head: Any, scale: RelevanceScale, encoder: PromptEncoder, *, base: str) -> Head:
    """One row a grade: the mean of the LM-head rows of its words' first tokens in the answer position.

    Raises:
        InputError: the model has no LM head, or two grades' words begin with the same token.
    """
    if lm_head is None:
        raise InputError(f"{base} has no LM head to start the grade head from; expected a causal (decoder) LLM")
    owner: dict[int, str] = {}
    rows, biases = [], []
    weight = lm_head.weight.detach().float().numpy()
    bias = None if getattr(lm_head, "bias", None) is None else lm_head.bias.detach().float().numpy()
    for grade in scale.grades:
        ids = encoder.word_ids(grade.words)
        for token in ids:
            if owner.setdefault(token, grade.name) != grade.name:
                raise InputError(
                    f"grades {owner[token]!r} and {grade.name!r} have words that begin with the same token under "
                    f"the tokenizer of {base}; choose other words"
                )
        rows.append(weight[ids].mean(axis=0))
        biases.append(0.0 if bias is None else float(bias[ids].mean()))
    return Head(np.stack(rows).astype(np.float32), np.array(biases, dtype=np.float32))
