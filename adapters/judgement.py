"""What the adapters share: which reranker is meant, and what stands beside a document that it has judged."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from darl_rerank import Reranker
from darl_rerank.errors import InputError, MissingDependencyError, OutdatedDependencyError
from darl_rerank.model.scale import RelevanceScale
from darl_rerank.options import RerankOptions
from darl_rerank.results import RankedDocument


def judgement(ranked: RankedDocument, scale: RelevanceScale) -> dict[str, Any]:
    """A document's judgement as JSON types, under the names that the HTTP server's answers have.

    `relevance_score` is the expected gain as a share of the largest gain, in [0, 1]; `expected_gain` is
    `RankedDocument.score`; the other fields are those of `RankedDocument`, without its place. What was not judged has
    `judged` False, a `reason`, a relevance of 0 and no expected gain.
    """
    values = ranked.to_dict()
    for place in ("rank", "index", "docid"):
        values.pop(place, None)
    gain = values.pop("score")
    share = scale.relevance(np.array(np.nan if gain is None else gain))
    return {"relevance_score": float(share), "expected_gain": gain, **values}


def as_reranker(reranker: Reranker | str | Path | None) -> Reranker:
    """A reranker as given, or loaded by what `Reranker.from_pretrained` takes.

    Raises:
        InputError: no such checkpoint.
    """
    if reranker is None or isinstance(reranker, (str, Path)):
        return Reranker.from_pretrained(reranker)
    return reranker


def checked_options(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Arguments of `Reranker.rerank` that a framework's class takes on, such as {"min_grade": "relevant"}.

    Raises:
        InputError: one that is no such argument.
    """
    given = dict(options or {})
    known = RerankOptions.__annotations__.keys() - {"top_k"}
    if unknown := given.keys() - known:
        raise InputError(
            f"unknown options {', '.join(sorted(unknown))}; Reranker.rerank takes {', '.join(sorted(known))}"
        )
    return given


def require(distribution: str, extra: str, at_least: str) -> None:
    """Check that a framework is installed and has the contract that its adapter was written for.

    Args:
        distribution: its name on the package index.
        extra: of darl-rerank, which installs it.
        at_least: the first version that the adapter's tests passed with.

    Raises:
        MissingDependencyError: it is not installed.
        OutdatedDependencyError: it is older.
    """
    try:
        found = version(distribution)
    except PackageNotFoundError as error:
        raise MissingDependencyError(distribution, extra) from error
    if _numbers(found) < _numbers(at_least):
        raise OutdatedDependencyError(distribution, extra, found=found, at_least=at_least)


def _numbers(text: str) -> tuple[int, ...]:
    """The release part of a version: "1.2.0rc1" is (1, 2, 0)."""
    found = re.match(r"\d+(\.\d+)*", text)
    return tuple(map(int, found[0].split("."))) if found else ()
