"""Rerankers that are decoders and answer with one token: what each family is asked, and which tokens it answers with.

Prompts, label tokens and scores are those of the scoring code that each family's authors publish (the model cards of
Qwen/Qwen3-Reranker-0.6B and BAAI/bge-reranker-v2-gemma, the package mxbai-rerank); benchmarks/published_scoring.py
writes these down again and holds ours to them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from ..errors import InputError
from .base_weights import read_base
from .head import Head
from .prompt import Prompt
from .scale import Grade, RelevanceScale

_TASK = "{task}"


@dataclass(frozen=True, slots=True)
class RerankerFamily:
    """How a family of rerankers is asked and answers.

    Attributes:
        prompt: its template, with "{task}" where the task stands. `max_length` is what the authors' code uses.
        special_tokens: those that the template has; without them a tokenizer is not of this family.
        irrelevant, relevant: the label tokens.
        by_relevant_alone: the authors' score is the logit of `relevant` alone, or its logistic function, not its
            difference from that of `irrelevant`.
        task: the authors' own; what is asked of the model if nobody says otherwise.
        task_line: how a task is written into the prompt, with "{task}"; nothing is written without a task.
    """

    prompt: Prompt
    special_tokens: tuple[str, ...]
    irrelevant: str
    relevant: str
    by_relevant_alone: bool = False
    task: str = ""
    task_line: str = _TASK

    def prompt_for(self, task: str | None = None) -> Prompt:
        """The prompt with `task`, the family's own if None, in its place."""
        chosen = self.task if task is None else task
        line = self.task_line.replace(_TASK, chosen) if chosen else ""
        return replace(
            self.prompt,
            instruction=self.prompt.instruction.replace(_TASK, line),
            answer=self.prompt.answer.replace(_TASK, line),
        )


FAMILIES: Mapping[str, RerankerFamily] = {
    "qwen3-reranker": RerankerFamily(
        Prompt(
            instruction=(
                "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the "
                'Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n{task}'
            ),
            before_query="<Query>: ",
            after_query="\n<Document>:",
            separator="",
            before_document=" ",
            answer="<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
            word_prefix="",
            max_length=8192,
        ),
        special_tokens=("<|im_start|>", "<|im_end|>"),
        irrelevant="no",
        relevant="yes",
        task="Given a web search query, retrieve relevant passages that answer the query",
        task_line="<Instruct>: {task}\n",
    ),
    "mxbai-rerank-v2": RerankerFamily(
        Prompt(
            instruction=(
                "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
                "<|im_start|>user\n{task}"
            ),
            before_query="query: ",
            separator="\n",
            before_document="document: ",
            answer=(
                "\nYou are a search relevance expert who evaluates how well documents match search queries. For each "
                "query-document pair, carefully analyze the semantic relationship between them, then provide your "
                "binary relevance judgment (0 for not relevant, 1 for relevant).\nRelevance:<|im_end|>\n"
                "<|im_start|>assistant\n"
            ),
            word_prefix="",
            max_length=8192,
        ),
        special_tokens=("<|im_start|>", "<|im_end|>"),
        irrelevant="0",
        relevant="1",
        task_line="instruction: {task}\n",
    ),
    "bge-reranker-v2-gemma": RerankerFamily(
        Prompt(
            instruction="<bos>",
            before_query="A: ",
            separator="\n",
            before_document="B: ",
            answer="\n{task}",
            word_prefix="",
            max_length=1024,
        ),
        special_tokens=("<bos>",),
        irrelevant="No",
        relevant="Yes",
        by_relevant_alone=True,
        task=(
            "Given a query A and a passage B, determine whether the passage contains an answer to the query by "
            "providing a prediction of either 'Yes' or 'No'."
        ),
    ),
}
# What else a model of a family may be called: mxbai-rerank-base-v2, mxbai-rerank-large-v2.
_OTHER_NAMES = {"mxbai-rerank-base-v2": "mxbai-rerank-v2", "mxbai-rerank-large-v2": "mxbai-rerank-v2"}


def family_of(model: str | Path) -> str:
    """The family that a hub id or a folder's name says a model is of.

    Raises:
        InputError: none is named.
    """
    name = str(model).replace("_", "-").casefold()
    for part, family in {**{name: name for name in FAMILIES}, **_OTHER_NAMES}.items():
        if part in name:
            return family
    raise InputError(f"{model} names no family of rerankers; give one of: {', '.join(FAMILIES)}")


def read_reranker(
    model: str | Path,
    *,
    family: str | None = None,
    task: str | None = None,
    scale: RelevanceScale | None = None,
    max_length: int | None = None,
) -> dict[str, Any]:
    """What a checkpoint takes from a reranker; see `Checkpoint.from_reranker`."""
    name = family_of(model) if family is None else family
    if name not in FAMILIES:
        raise InputError(f"unknown family of rerankers {name!r}; known: {', '.join(FAMILIES)}")
    chosen = FAMILIES[name]
    _check_causal(model)
    labels = RelevanceScale(
        name,
        (Grade("irrelevant", (chosen.irrelevant,), 0.0), Grade("relevant", (chosen.relevant,), 1.0)),
    )
    prompt = chosen.prompt_for(task)
    if max_length is not None:
        prompt = replace(prompt, max_length=max_length)
    parts = read_base(model, labels, prompt)
    _check_tokens(parts["tokenizer_json"], chosen, name)
    head: Head = parts["head"]
    if chosen.by_relevant_alone:
        # With 0 for the other label the probability is the logistic function of the one logit.
        counts = np.array([0, 1], dtype=np.float32)
        head = Head(head.weight * counts[:, None], head.bias * counts)
    scale = scale or labels
    origin = {"family": name, "model": parts["base"].name, "task": chosen.task if task is None else task}
    return {
        **parts,
        "scale": scale,
        "head": between(head, scale),
        "trained": True,
        "provenance": {"reranker": origin},
    }


def between(head: Head, scale: RelevanceScale) -> Head:
    """A head for `scale` from one of two grades: each grade's row lies between the two by its gain.

    The logit of grade k is z_0 + (g_k − g_0) / (g_max − g_0) · (z_1 − z_0). The expected gain then rises with
    z_1 − z_0, so that documents stand in the same order as by two grades, whatever the scale.
    """
    gains = scale.gains
    share = ((gains - gains[0]) / (gains[-1] - gains[0]))[:, None]
    weight = head.weight[:1] + share * (head.weight[1:] - head.weight[:1])
    bias = head.bias[:1] + share[:, 0] * (head.bias[1:] - head.bias[:1])
    # The ends exactly as they were: a sum of differences may round.
    weight[[0, -1]], bias[[0, -1]] = head.weight, head.bias
    return Head(weight.astype(np.float32), bias.astype(np.float32))


def _check_tokens(tokenizer_json: str, family: RerankerFamily, name: str) -> None:
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokens = (*family.special_tokens, family.irrelevant, family.relevant)
    if missing := [token for token in tokens if tokenizer.token_to_id(token) is None]:
        raise InputError(f"the tokenizer has no {', '.join(missing)}: this is no {name}")


def _check_causal(model: str | Path) -> None:
    """Refuse what is known not to have an LM head: transformers would make one up."""
    config = Path(model) / "config.json"
    if not config.is_file():
        return
    try:
        names = json.loads(config.read_text("utf-8")).get("architectures") or []
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise InputError(f"expected JSON: {error}", path=config) from error
    if names and not any(str(name).endswith("ForCausalLM") for name in names):
        raise InputError(
            f"expected a decoder with its LM head (…ForCausalLM), found {', '.join(map(str, names))}; "
            "convert the original model, not one that was made into a sequence classifier",
            path=config,
        )
