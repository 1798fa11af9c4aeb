"""The checkpoint that a training begins with."""

from __future__ import annotations

from darl_rerank.model.checkpoint import Checkpoint
from darl_rerank.model.prompt import Prompt

from ..recipe.settings import ModelChoice


def initial_checkpoint(choice: ModelChoice) -> Checkpoint:
    """The checkpoint named, or a new one whose head comes from the grade words; with the prompt length of `choice`.

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
