"""The checkpoint that a training begins with."""

from __future__ import annotations

from collections.abc import Sequence

from darl_rerank.errors import InputError
from darl_rerank.model.checkpoint import Checkpoint
from darl_rerank.model.prompt import Prompt, PromptEncoder
from darl_rerank.trec.graded_pairs import GradedPair

from .recipe import ModelChoice


def start_checkpoint(choice: ModelChoice) -> Checkpoint:
    """The checkpoint named, or a new one whose head comes from the grade words; with the prompt length asked for.

    Raises:
        InputError: it can't be read, or the length leaves no room for query and document.
    """
    if choice.checkpoint is not None:
        checkpoint = Checkpoint.load(choice.checkpoint)
    else:
        checkpoint = Checkpoint.from_base(choice.base, choice.scale)
    if choice.max_length is not None:
        prompt = Prompt.from_dict({**checkpoint.prompt.to_dict(), "max_length": choice.max_length})
        checkpoint = checkpoint.replace(prompt=prompt)
        checkpoint.encoder()
    return checkpoint


def that_fit(pairs: Sequence[GradedPair], encoder: PromptEncoder) -> list[GradedPair]:
    """The pairs whose query leaves room for a document in the prompt; serving refuses the others too."""
    fits: dict[str, bool] = {}
    for pair in pairs:
        if pair.query not in fits:
            try:
                encoder.encode(pair.query, ["."])
            except InputError:
                fits[pair.query] = False
            else:
                fits[pair.query] = True
    return [pair for pair in pairs if fits[pair.query]]
