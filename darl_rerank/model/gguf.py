"""GGUF files, read once into an ordinary transformers folder with float16 safetensors."""

from __future__ import annotations

from pathlib import Path

from ..errors import MissingDependencyError
from ..files import atomic_folder


def dequantise(gguf: Path, folder: Path) -> None:
    """Write the model and the tokenizer of `gguf` into `folder`, which is replaced if it exists.

    Raises:
        MissingDependencyError: torch, transformers or gguf is not installed.
    """
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise MissingDependencyError(error.name or "torch", "torch", f"it reads {gguf.name}") from error

    from .quiet_loading import quiet_loading

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    with quiet_loading(), atomic_folder(folder, overwrite=True) as temporary:
        quantised = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        # transformers marks the model as quantised and then refuses to save it: a fresh model takes the weights.
        config = quantised.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(quantised.state_dict())
        # Blocks of few bits with float16 scales: float16 holds the products to within its own rounding, in half the
        # space.
        model.to(torch.float16).save_pretrained(temporary)
        AutoTokenizer.from_pretrained(**source).save_pretrained(temporary)
