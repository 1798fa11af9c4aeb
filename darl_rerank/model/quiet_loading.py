"""Loading a model without what transformers shows meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any
from unittest.mock import patch


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """No progress bar and no report of transformers for a load of a second, whatever the caller's own settings are.

    The report lists weights that the file has and the model does not want, such as an LM head's; who loads asks for
    what is missing.
    """
    from transformers import modeling_gguf_pytorch_utils
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        # The bar over a GGUF file's tensors is tqdm's own, which that setting doesn't reach.
        with patch.object(modeling_gguf_pytorch_utils, "tqdm", _no_bar, create=True):
            yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def _no_bar(items: Iterable[Any], **_: Any) -> Iterable[Any]:
    return items
