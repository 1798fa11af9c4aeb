"""Graded-relevance reranking with LLMs fine-tuned by DaRL (distribution-aware robust learning, arXiv 2412.12504)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import InputError
    from .model.checkpoint import Checkpoint
    from .model.scale import RelevanceScale
    from .reranker import Reranker
    from .results import PairScores, RankedDocument, Ranking

__version__ = "0.7.0"
__all__ = [
    "Checkpoint",
    "InputError",
    "PairScores",
    "RankedDocument",
    "Ranking",
    "RelevanceScale",
    "Reranker",
    "__version__",
]

_HOME = {
    "Checkpoint": "model.checkpoint",
    "InputError": "errors",
    "PairScores": "results",
    "RankedDocument": "results",
    "Ranking": "results",
    "RelevanceScale": "model.scale",
    "Reranker": "reranker",
}


def __getattr__(name: str) -> Any:
    # Public names load on first use, so that `import darl_rerank` costs a search stack nothing at start-up.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
