"""Documents on their way into an index: what can be searched goes in, the rest is counted and named."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from darl_rerank.documents import TEXT_FIELDS, TITLE_FIELDS, clean_text, first_value, read_document
from darl_rerank.errors import InputError
from darl_rerank.trec.corpora import Document

log = logging.getLogger(__name__)

Missing = Literal["error", "skip"]


@dataclass(frozen=True, slots=True)
class Indexed:
    """What was indexed.

    Attributes:
        documents: how many documents the index has.
        left_out: how many it was built without.
        first_left_out: which was the first of them, and why; None if there is none.
    """

    documents: int
    left_out: int = 0
    first_left_out: str | None = None


class Indexable:
    """The documents that can be indexed, read once and in order.

    A document that has no id, as a string has none, gets its place in the order, from 0, as `rerank` counts.

    Args:
        documents: what `Reranker.rerank` takes: strings, mappings, objects.
        missing: what to do with a document without text or with an id that was there before: "skip" it, or "error".

    Raises:
        InputError: `missing` is neither; while reading, such a document (missing="error").
    """

    def __init__(self, documents: Iterable[Any], missing: Missing) -> None:
        if missing not in ("error", "skip"):
            raise InputError(f"missing must be error or skip, got {missing!r}")
        self._documents = documents
        self._missing = missing
        self._seen: set[str] = set()
        self._left_out = 0
        self._first: str | None = None

    def __iter__(self) -> Iterator[Document]:
        for place, given in enumerate(self._documents):
            document, fault = _read(given, place)
            if fault is None and document.docid in self._seen:
                fault = "has the id of an earlier one"
            if fault is None:
                self._seen.add(document.docid)
                yield document
                continue
            fault = f"document {document.docid}: {fault}"
            if self._missing == "error":
                raise InputError(f'{fault}; missing="skip" (--missing skip) indexes the others')
            self._left_out += 1
            self._first = self._first or fault

    def indexed(self) -> Indexed:
        """What has been read; says what was left out.

        Raises:
            InputError: nothing could be indexed.
        """
        count = len(self._seen)
        if not count:
            reason = f": {self._first}" if self._first else ""
            raise InputError(f"the corpus has no documents that can be indexed{reason}")
        if self._left_out:
            log.warning(
                "%s of %s documents were left out; the first: %s", f"{self._left_out:,}", f"{count + self._left_out:,}",
                self._first,
            )  # fmt: skip
        return Indexed(count, self._left_out, self._first)


def _read(given: Any, place: int) -> tuple[Document, str | None]:
    if isinstance(given, Document):
        return given, None if given.full_text else "has no text"
    read = read_document(given)
    docid = str(place) if read.docid is None else read.docid
    if read.fault is not None or isinstance(given, str):
        return Document(docid, "", read.text), read.fault
    title, text = (clean_text(first_value(given, names) or "") for names in (TITLE_FIELDS, TEXT_FIELDS))
    return Document(docid, title, text), None
