"""Prompt: turns a query group into token ids, one prefix for the group and one suffix for each document.

Training, serving and export all read their token ids from here, so they can't drift apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
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
# Windows of one document, some hundred pages: without an end, one of many megabytes would hold an engine for an hour.
_MOST_WINDOWS = 256
# Parts that prompts did not have at first: where they are empty a checkpoint is as it was, its fingerprint too.
_LATER = {"before_query", "after_query", "before_document"}


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

    def part(self, start: int, stop: int) -> PromptGroup:
        """The group with documents `start` to `stop` alone."""
        rows = [i for i, owner in enumerate(self.owners) if start <= owner < stop]
        return replace(
            self,
            suffixes=tuple(self.suffixes[i] for i in rows),
            owners=tuple(self.owners[i] - start for i in rows),
            truncated=self.truncated[start:stop],
            spans=tuple(self.spans[i] for i in rows) if self.spans else (),
        )

    @property
    def tokens(self) -> int:
        """Number of tokens of the prefix, once, and of all suffixes."""
        return len(self.prefix) + sum(map(len, self.suffixes))

    @property
    def distinct_tokens(self) -> int:
        """As `tokens`, with equal suffixes counted once, as they are run."""
        return len(self.prefix) + sum(map(len, set(self.suffixes)))


@dataclass(frozen=True, slots=True)
class Prompt:
    """The text around query and document:

        instruction · before_query query after_query · separator · before_document document · answer

    What stands between two dots is tokenised as one text, since a tokenizer may join a word with the space before it or
    a question mark with the line's end after it. Special tokens written in instruction, separator and answer are parsed
    as such; elsewhere they are plain text, so no document can close its own part of the prompt.

    Attributes:
        instruction: constant text before the query, with the tokenizer's beginning-of-sequence token if it has one.
        separator: constant text between query and document.
        answer: constant text after the document; the grade is read from the position of its last token.
        word_prefix: what stands before a grade word in the answer position, a space for most tokenizers.
        max_length: longest sequence in tokens; documents are cut to fit, nothing else is.
        before_query, after_query: constant text that is tokenised together with the query.
        before_document: constant text that is tokenised together with the document; each window of a long one has it.
    """

    instruction: str
    separator: str
    answer: str
    word_prefix: str = " "
    max_length: int = 512
    before_query: str = ""
    after_query: str = ""
    before_document: str = ""

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
        """The parts, without those that older checkpoints lack where they are empty."""
        return {name: value for name, value in asdict(self).items() if value or name not in _LATER}

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
    _plain: Tokenizer = field(init=False, repr=False)
    _instruction: tuple[int, ...] = field(init=False, repr=False)
    _separator: tuple[int, ...] = field(init=False, repr=False)
    _answer: tuple[int, ...] = field(init=False, repr=False)
    _around_query: tuple[int, ...] = field(init=False, repr=False)
    _label: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # Read once, which takes a tenth of a second: the template's special tokens are parsed, those of texts are not.
        tokenizer = Tokenizer.from_str(self.tokenizer_json)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._instruction, self._separator, self._answer = (
            tuple(tokenizer.encode(text, add_special_tokens=False).ids)
            for text in (self.prompt.instruction, self.prompt.separator, self.prompt.answer)
        )
        tokenizer.encode_special_tokens = True
        self._plain = tokenizer
        if not self._answer:
            raise InputError("the prompt's answer part is empty: it must hold at least one token")
        before, after = self.prompt.before_query, self.prompt.after_query
        self._around_query = self._plain_ids(before + after)
        # A window in the middle of a document has no space of its own to go with the label's last one.
        self._label = self._plain_ids(self.prompt.before_document.rstrip())
        if self._plain_ids(self.prompt.before_document + "a")[: len(self._label)] != self._label:
            raise InputError("the last word of before_document is no token of its own: the document would join it")
        if self._room(self._around_query) < _MIN_DOCUMENT_TOKENS:
            raise InputError(f"max_length {self.prompt.max_length} leaves no room for query and document")

    def _plain_ids(self, text: str) -> tuple[int, ...]:
        """Token ids of a text in which no special token is parsed."""
        return tuple(self._plain.encode(text, add_special_tokens=False).ids)

    @property
    def instruction_length(self) -> int:
        """Number of constant tokens that every sequence begins with."""
        return len(self._instruction)

    def _room(self, query: Sequence[int]) -> int:
        """Tokens left for the document beside the query's and the constant ones that are tokenised with it."""
        fixed = len(self._instruction) + len(query) + len(self._separator) + len(self._answer)
        return self.prompt.max_length - fixed

    def word_ids(self, words: Sequence[str]) -> list[int]:
        """The first token of each grade word as it stands in the answer position."""
        return [self._plain_ids(self.prompt.word_prefix + word)[0] for word in words]

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
                each a sequence of its own, at most 256 of one document.
            cut_query: cut a query so long that no document fits beside it to half of the room for both, rather than
                refuse it.

        Raises:
            InputError: an empty query, or (unless `cut_query`) one so long that no document fits beside it.
        """
        query = query.strip()
        if not query:
            raise InputError("the query is empty")
        # A query of a hundred thousand words must fail in no time: past this many characters it can't fit anyway.
        head = self.prompt.before_query + query[: self.prompt.max_length * 64]
        query_ids = self._plain_ids(head + self.prompt.after_query)
        room = self._room(query_ids)
        query_truncated = room < _MIN_DOCUMENT_TOKENS
        if query_truncated:
            own, free = len(query_ids) - len(self._around_query), self._room(self._around_query)
            most = free - _MIN_DOCUMENT_TOKENS
            if not cut_query:
                raise InputError(f"the query has {own} tokens, at most {most} fit: {query[:60]!r}")
            after = self._plain_ids(self.prompt.after_query)
            before = len(self._around_query) - len(after)
            query_ids = (*self._plain_ids(head)[: before + min(most, free // 2)], *after)
            room = self._room(query_ids)
        suffixes: list[tuple[int, ...]] = []
        owners: list[int] = []
        truncated: list[bool] = []
        spans: list[tuple[int, int]] = []
        before_document = self.prompt.before_document
        texts = [before_document + text for text in documents] if before_document else list(documents)
        if long_documents == "window":
            label = len(self._label)
            most = _MOST_WINDOWS * room * _CHARACTERS_PER_TOKEN
            heads = [text[:most] for text in texts]
            for owner, encoding in enumerate(self._plain.encode_batch(heads, add_special_tokens=False)):
                ids, offsets = encoding.ids[label:], encoding.offsets[label:]
                windows = _windows(len(ids), room - label)
                truncated.append(len(windows) > _MOST_WINDOWS or len(texts[owner]) > most)
                for start, end in windows[:_MOST_WINDOWS]:
                    suffixes.append((*self._label, *ids[start:end], *self._answer))
                    owners.append(owner)
                    span = (offsets[start][0], offsets[end - 1][1]) if end else (0, 0)
                    spans.append((max(0, span[0] - len(before_document)), max(0, span[1] - len(before_document))))
        else:
            for owner, ids in enumerate(self._document_ids(texts, room)):
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
