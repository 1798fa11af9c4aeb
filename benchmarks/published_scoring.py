"""How three families of rerankers are scored by their authors, written down from the scoring code they publish.

- qwen3-reranker: the transformers part of the model card of Qwen/Qwen3-Reranker-0.6B (Apache-2.0).
- mxbai-rerank-v2: `mxbai_rerank_v2.py` of the package mxbai-rerank (Apache-2.0).
- bge-reranker-v2-gemma: `get_inputs` of the model card of BAAI/bge-reranker-v2-gemma.

One pair at a time and in float32, so that neither padding nor rounding of a batch stands between these and ours. Where
`max_length` counts only a part of the prompt there, `whole_length` says how long the whole may become.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

SYSTEM = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
QWEN_TASK = "Given a web search query, retrieve relevant passages that answer the query"
BGE_TASK = (
    "Given a query A and a passage B, determine whether the passage contains an answer to the query by providing a "
    "prediction of either 'Yes' or 'No'."
)
MXBAI_TASK = (
    "You are a search relevance expert who evaluates how well documents match search queries. For each query-document "
    "pair, carefully analyze the semantic relationship between them, then provide your binary relevance judgment "
    "(0 for not relevant, 1 for relevant).\nRelevance:"
)
MXBAI_BEFORE = (
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n"
)
MXBAI_AFTER = "<|im_end|>\n<|im_start|>assistant\n"


class Published(Protocol):
    """One family's scoring code.

    Attributes:
        tokenizer: of transformers.
        max_length: as the authors' code counts it.
    """

    tokenizer: Any
    max_length: int

    def ids(self, query: str, document: str) -> list[int]:
        """Token ids of the whole prompt."""
        ...

    def probability(self, logits: torch.Tensor) -> float:
        """From the last position's logits over the vocabulary, shape (vocabulary,)."""
        ...

    def whole_length(self) -> int:
        """The longest a prompt becomes, in tokens."""
        ...


@dataclass(frozen=True, slots=True)
class Qwen3Reranker:
    tokenizer: Any
    max_length: int = 8192
    task: str = QWEN_TASK

    def ids(self, query: str, document: str) -> list[int]:
        before = self.tokenizer.encode(SYSTEM, add_special_tokens=False)
        after = self.tokenizer.encode(
            "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n", add_special_tokens=False
        )
        text = f"<Instruct>: {self.task}\n<Query>: {query}\n<Document>: {document}"
        middle = self.tokenizer(text, truncation="longest_first", max_length=self.max_length - len(before) - len(after))
        return [*before, *middle["input_ids"], *after]

    def probability(self, logits: torch.Tensor) -> float:
        yes, no = (self.tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no"))
        return float(torch.log_softmax(torch.stack([logits[no], logits[yes]]), dim=0)[1].exp())

    def whole_length(self) -> int:
        return self.max_length


@dataclass(frozen=True, slots=True)
class MxbaiRerankV2:
    tokenizer: Any
    max_length: int = 8192
    task: str = ""

    def _plain(self, text: str, length: int | None = None) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids[:length]

    def ids(self, query: str, document: str) -> list[int]:
        line = self._plain("\n")
        asked = f"query: {query}" if not self.task else f"instruction: {self.task}\nquery: {query}"
        first = self._plain(asked, self.max_length * 3 // 4)
        second = [*line, *self._plain(f"document: {document}", self.max_length)]
        pair = [*first, *second[: self.max_length - len(first)]]
        return [*self._plain(MXBAI_BEFORE), *pair, *line, *self._plain(MXBAI_TASK), *self._plain(MXBAI_AFTER)]

    def probability(self, logits: torch.Tensor) -> float:
        yes, no = (self._plain(label)[0] for label in ("1", "0"))
        return float(torch.sigmoid(logits[yes] - logits[no]))

    def whole_length(self) -> int:
        return self.max_length + sum(len(self._plain(text)) for text in (MXBAI_BEFORE, "\n", MXBAI_TASK, MXBAI_AFTER))


@dataclass(frozen=True, slots=True)
class BgeRerankerV2Gemma:
    tokenizer: Any
    max_length: int = 1024
    task: str = BGE_TASK

    def _plain(self, text: str, length: int | None = None) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids[:length]

    def ids(self, query: str, document: str) -> list[int]:
        line = self._plain("\n")
        first = [self.tokenizer.bos_token_id, *self._plain(f"A: {query}", self.max_length * 3 // 4)]
        second = [*line, *self._plain(f"B: {document}", self.max_length)]
        return [*first, *second[: self.max_length - len(first)], *line, *self._plain(self.task)]

    def probability(self, logits: torch.Tensor) -> float:
        return float(torch.sigmoid(logits[self._plain("Yes")[0]]))

    def whole_length(self) -> int:
        return self.max_length + len(self._plain("\n")) + len(self._plain(self.task))


PUBLISHED: dict[str, type[Qwen3Reranker] | type[MxbaiRerankV2] | type[BgeRerankerV2Gemma]] = {
    "qwen3-reranker": Qwen3Reranker,
    "mxbai-rerank-v2": MxbaiRerankV2,
    "bge-reranker-v2-gemma": BgeRerankerV2Gemma,
}
