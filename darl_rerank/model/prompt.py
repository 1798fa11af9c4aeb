"""Prompt: turns a query group into token ids, one prefix for the group and one suffix for each document.

Training, serving and export all read their token ids from here, so they can't drift apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from tokenizers import Tokenizer

from ..errors import InputError
from .scale import RelevanceScale

LongDocuments = Literal["truncate", "window"]

# A document needs room for at least this many tokens, or judging it would be a guess.
_MIN_DOCUMENT_TOKENS = 16
# Characters tokenised per token of room at first; natural text has 3 to 6 a token, so this seldom needs a second try.
_CHARACTERS_PER_TOKEN = 16
# Windows of a long document overlap by this share, so that a passage cut by one border lies whole in the next.
_WINDOW_OVERLAP = 0.25


@dataclass(frozen=True, slots=True)
class PromptGroup:
    """One query group as token ids; the ids of sequence i are `prefix + suffixes[i]`.

    Attributes:
        prefix: instruction and query, shared by all documents of the group.
        suffixes: document and answer cue, one for each sequence.
        owners: for each suffix, the index of the document it came from; a document split into windows owns several.
        truncated: for each document, whether it was cut.
        query: the query's text, for errors.
        query_truncated: whether the query was cut.
        spans: for each suffix, which characters of its document it holds, [start, end); empty unless documents were
            split into windows.
    """

    prefix: tuple[int, ...]
    suffixes: tuple[tuple[int, ...], ...]
    owners: tuple[int, ...]
    truncated: tuple[bool, ...]
    query: str = ""
    query_truncated: bool = False
    spans: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Prompt:
    """The text around query and document: `instruction query separator document answer`.

    Special tokens written in the three template parts are parsed as such; in queries and documents they are plain
    text, so no document can close its own part of the prompt.

    Attributes:
        instruction: constant text before the query, with the tokenizer's beginning-of-sequence token if it has one.
        separator: constant text between query and document.
        answer: constant text after the document; the grade is read from the position of its last token.
        word_prefix: what stands before a grade word in the answer position, a space for most tokenizers.
        max_length: longest sequence in tokens; documents are cut to fit, nothing else is.
    """

    instruction: str
    separator: str
    answer: str
    word_prefix: str = " "
    max_length: int = 512

    @classmethod
    def default(cls, scale: RelevanceScale, *, bos: str = "", max_length: int = 512) -> Prompt:
        """The prompt of new checkpoints: it names the grade words in order and asks for one of them."""
        words = ", ".join(grade.words[0] for grade in scale.grades)
        return cls(
            instruction=f"{bos}Grade how well the document answers the query: {words}.\nQuery: ",
            separator="\nDocument: ",
            answer="\nGrade:",
            max_length=max_length,
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Prompt:
        try:
            prompt = cls(**values)
        except TypeError as error:
            raise InputError(f"a prompt needs {', '.join(cls.__slots__)}: {error}") from error
        for name, value in asdict(prompt).items():
            wanted = int if name == "max_length" else str
            if type(value) is not wanted:
                raise InputError(f"expected {name} as {wanted.__name__}, got {value!r}")
        return prompt


@dataclass(slots=True)
class PromptEncoder:
    """A `Prompt` with its tokenizer; thread-safe.

    Args:
        prompt: the template.
        tokenizer_json: the content of a tokenizer.json.
    """

    prompt: Prompt
    tokenizer_json: str
    _template: Tokenizer = field(init=False, repr=False)
    _plain: Tokenizer = field(init=False, repr=False)
    _instruction: tuple[int, ...] = field(init=False, repr=False)
    _separator: tuple[int, ...] = field(init=False, repr=False)
    _answer: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._template, self._plain = (Tokenizer.from_str(self.tokenizer_json) for _ in range(2))
        for tokenizer in (self._template, self._plain):
            tokenizer.no_truncation()
            tokenizer.no_padding()
        self._plain.encode_special_tokens = True
        self._instruction, self._separator, self._answer = (
            tuple(self._template.encode(text, add_special_tokens=False).ids)
            for text in (self.prompt.instruction, self.prompt.separator, self.prompt.answer)
        )
        if not self._answer:
            raise InputError("the prompt's answer part is empty: it must hold at least one token")
        if self._room(()) < _MIN_DOCUMENT_TOKENS:
            raise InputError(f"max_length {self.prompt.max_length} leaves no room for query and document")

    @property
    def instruction_length(self) -> int:
        """Number of constant tokens that every sequence begins with."""
        return len(self._instruction)

    def _room(self, query: Sequence[int]) -> int:
        """Tokens left for the document."""
        fixed = len(self._instruction) + len(query) + len(self._separator) + len(self._answer)
        return self.prompt.max_length - fixed

    def word_ids(self, words: Sequence[str]) -> list[int]:
        """The first token of each grade word as it stands in the answer position."""
        prefixed = [self.prompt.word_prefix + word for word in words]
        return [self._plain.encode(word, add_special_tokens=False).ids[0] for word in prefixed]

    def encode(
        self,
        query: str,
        documents: Sequence[str],
        long_documents: LongDocuments = "truncate",
        *,
        cut_query: bool = False,
    ) -> PromptGroup:
        """Token ids of a query group.

        Args:
            query: its text; leading and trailing white space does not count.
            documents: their texts.
            long_documents: "truncate" cuts a document that does not fit; "window" splits it into overlapping windows,
                each a sequence of its own.
            cut_query: cut a query so long that no document fits beside it to half of the room for both, rather than
                refuse it.

        Raises:
            InputError: an empty query, or (unless `cut_query`) one so long that no document fits beside it.
        """
        query = query.strip()
        if not query:
            raise InputError("the query is empty")
        # A query of a hundred thousand words must fail in no time: past this many characters it can't fit anyway.
        query_ids = self._plain.encode(query[: self.prompt.max_length * 64], add_special_tokens=False).ids
        room = self._room(query_ids)
        query_truncated = room < _MIN_DOCUMENT_TOKENS
        if query_truncated:
            most = self._room(()) - _MIN_DOCUMENT_TOKENS
            if not cut_query:
                raise InputError(f"the query has {len(query_ids)} tokens, at most {most} fit: {query[:60]!r}")
            query_ids = query_ids[: min(most, self._room(()) // 2)]
            room = self._room(query_ids)
        suffixes: list[tuple[int, ...]] = []
        owners: list[int] = []
        truncated: list[bool] = []
        spans: list[tuple[int, int]] = []
        if long_documents == "window":
            for owner, encoding in enumerate(self._plain.encode_batch(list(documents), add_special_tokens=False)):
                truncated.append(False)
                for start, end in _windows(len(encoding.ids), room):
                    suffixes.append((*encoding.ids[start:end], *self._answer))
                    owners.append(owner)
                    spans.append((encoding.offsets[start][0], encoding.offsets[end - 1][1]) if end else (0, 0))
        else:
            for owner, ids in enumerate(self._document_ids(documents, room)):
                truncated.append(len(ids) > room)
                suffixes.append((*ids[:room], *self._answer))
                owners.append(owner)
        return PromptGroup(
            (*self._instruction, *query_ids, *self._separator),
            tuple(suffixes),
            tuple(owners),
            tuple(truncated),
            query,
            query_truncated,
            tuple(spans),
        )

    def _document_ids(self, documents: Sequence[str], room: int) -> list[list[int]]:
        """Token ids of each document, at least `room + 1` where it has more than that."""
        # Only the head of a long text is tokenised; the last tokens of a cut head may differ from those of the whole
        # text, hence the margin, and a head of too few tokens is tried again longer.
        characters = [room * _CHARACTERS_PER_TOKEN] * len(documents)
        result: list[list[int]] = [[] for _ in documents]
        waiting = list(range(len(documents)))
        while waiting:
            heads = [documents[i][: characters[i]] for i in waiting]
            encodings = self._plain.encode_batch_fast(heads, add_special_tokens=False)
            short = []
            for i, head, encoding in zip(waiting, heads, encodings, strict=True):
                result[i] = encoding.ids
                if len(encoding.ids) <= room + 8 and len(head) < len(documents[i]):
                    characters[i] *= 4
                    short.append(i)
            waiting = short
        return result


def _windows(length: int, room: int) -> list[tuple[int, int]]:
    """Where windows of at most `room` of `length` tokens begin and end, the last one flush with the end."""
    if length <= room:
        return [(0, length)]
    step = max(1, int(room * (1 - _WINDOW_OVERLAP)))
    return [(start, start + room) for start in (*range(0, length - room, step), length - room)]
