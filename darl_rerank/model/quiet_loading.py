"""Loading a model without what transformers shows meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """No progress bar and no report of transformers for a load of a second, whatever the caller's own settings are.

    The report lists weights that the file has and the model does not want, such as an LM head's; who loads asks for
    what is missing.
    """
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()
