"""Where what can be made again is kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Where what can be made again is kept: $DARL_RERANK_CACHE, or darl-rerank in the user's cache folder."""
    if own := os.environ.get("DARL_RERANK_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "darl-rerank"
