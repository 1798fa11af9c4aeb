"""Where what can be made again is kept."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path


def cache_folder() -> Path:
    """Where what can be made again is kept: $DARL_RERANK_CACHE, or darl-rerank in the system's folder for caches.

    That is ~/.cache (or $XDG_CACHE_HOME) on Linux, ~/Library/Caches on macOS, %LOCALAPPDATA% on Windows.
    """
    if own := os.environ.get("DARL_RERANK_CACHE"):
        return Path(own).expanduser()
    return user_cache_path("darl-rerank", appauthor=False)
