"""The options of a ranking: one list of them for all that rerank, read and checked in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from .arguments import check_count
from .effort import Depth, Effort
from .model.checkpoint import Checkpoint
from .rules import Fuse, Prevalence, Rules


class RerankOptions(TypedDict, total=False):
    """Keyword arguments of `Reranker.rerank`, which says what each means."""

    top_k: int | None
    strict: bool
    cut: str | None
    min_grade: str | int | None
    min_probability: float | None
    fuse: Fuse | None
    prevalence: Prevalence | None
    budget_ms: float | None
    depth: Depth | None


@dataclass(frozen=True, slots=True)
class Options:
    """`RerankOptions`, checked against a checkpoint.

    Attributes:
        top_k: how many documents to return; all if None.
        strict: whether what can't be judged is an error.
        rules: what decides the order and which documents stay out.
        effort: how much of a list is judged; None for all.
    """

    top_k: int | None
    strict: bool
    rules: Rules
    effort: Effort | None

    @classmethod
    def read(cls, checkpoint: Checkpoint, options: RerankOptions) -> Options:
        """The options that were given.

        Raises:
            InputError: one that is not what it should be, or two that don't go together.
            TypeError: one that there is not.
        """
        given = {**options}
        if unknown := given.keys() - RerankOptions.__annotations__.keys():
            raise TypeError(f"unexpected option {min(unknown)!r}; known: {', '.join(RerankOptions.__annotations__)}")
        top_k, strict = options.get("top_k"), bool(options.get("strict"))
        if top_k is not None:
            check_count("top_k", top_k)
        effort = Effort.read(
            checkpoint.reach, budget_ms=options.get("budget_ms"), depth=options.get("depth"), top_k=top_k
        )
        rules = Rules.read(
            checkpoint,
            cut=options.get("cut"),
            min_grade=options.get("min_grade"),
            min_probability=options.get("min_probability"),
            fuse=options.get("fuse"),
            prevalence=options.get("prevalence"),
        )
        return cls(top_k, strict, rules, effort)
