"""What callers may pass as queries and documents, and the one way that ids and texts are read from it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from .errors import InputError

# The names under which search stacks keep a document's id, title and text, in the order in which they are tried. The
# corpus readers (`darl_rerank.trec.corpora`) know the same.
ID_FIELDS = ("id", "_id", "docid", "doc_id", "docno")
TITLE_FIELDS = ("title",)
TEXT_FIELDS = ("text", "contents", "content", "page_content", "body", "passage")
# Where LangChain and Haystack keep an id that the document itself has not.
_METADATA_FIELDS = ("metadata", "meta")
# Of the fields of a document without text, in the reason that says so.
_NAMES_SHOWN, _NAMES_LENGTH = 10, 300


@dataclass(frozen=True, slots=True)
class InputDocument:
    """One document as it was passed in, and what was read from it.

    Attributes:
        document: the object that was passed in, untouched.
        docid: its id, None if it has none.
        text: title and text, one under the other; empty if there is a fault.
        fault: why it can't be judged, None if it can.
    """

    document: Any
    docid: str | None
    text: str
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class QueryGroup:
    """One query with the documents to judge for it."""

    query: str
    documents: tuple[InputDocument, ...]

    @property
    def readable(self) -> list[int]:
        """Places of the documents that can be judged."""
        return [i for i, document in enumerate(self.documents) if document.fault is None]


def read_document(document: Any) -> InputDocument:
    """Id and text of a string, a mapping, or an object with attributes; never raises.

    A mapping or object has an id under one of `ID_FIELDS` (or in its `metadata`), a `title` if there is one, and its
    text under the first of `TEXT_FIELDS` that is not empty.
    """
    if isinstance(document, str):
        text = clean_text(document).strip()
        return InputDocument(document, None, text, None if text else "is empty")
    if document is None or isinstance(document, (bytes, int, float, list, tuple, set)):
        return InputDocument(document, None, "", _unknown_kind(document))
    docid: str | None = None
    try:
        docid = _docid(document)
        title, body = (first_value(document, names) for names in (TITLE_FIELDS, TEXT_FIELDS))
    # Attributes of foreign classes may be properties, and those may raise anything; it costs this document alone.
    except Exception as error:
        return InputDocument(document, docid, "", clean_text(f"can't be read: {type(error).__name__}: {error}"))
    wrong = [type(part).__name__ for part in (title, body) if part is not None and not isinstance(part, str)]
    if wrong:
        return InputDocument(document, docid, "", f"title and text must be strings, got {', '.join(wrong)}")
    text = "\n".join(part for part in (clean_text(part).strip() for part in (title, body) if part) if part)
    return InputDocument(document, docid, text, None if text else _no_text(document))


def read_group(query: Any, documents: Any, *, place: str = "", strict: bool = False) -> QueryGroup:
    """A query and its documents, any iterable of what `read_document` takes.

    Args:
        query: a string that is not empty.
        documents: not a lone string, nor a mapping.
        place: stands before errors, such as "query 3: ".
        strict: a document that can't be judged is an error.

    Raises:
        InputError: the query is not a string or is empty, `documents` is not a list of documents, or (strict) a
            document can't be judged.
    """
    text = read_query(query, place)
    if isinstance(documents, (str, bytes, Mapping)) or not isinstance(documents, Iterable):
        raise InputError(
            f"{place}documents must be a list of documents, got {_article(documents)}: put a single document in a list"
        )
    group = QueryGroup(text, tuple(read_document(document) for document in documents))
    if strict:
        for i, document in enumerate(group.documents):
            if document.fault is not None:
                name = "" if document.docid is None else f" ({document.docid})"
                raise InputError(f"query {text!r}, document {i}{name}: {document.fault}")
    return group


def read_query(query: Any, place: str = "") -> str:
    """The query's text.

    Raises:
        InputError: not a string, or empty.
    """
    if not isinstance(query, str):
        raise InputError(f"{place}the query must be a string, got {_article(query)}")
    text = clean_text(query).strip()
    if not text:
        raise InputError(f"{place}the query is empty")
    return text


def docid_and_text(document: Any, place: str = "document") -> tuple[str | None, str]:
    """Id and text of a document that must have a text; `place` names it in errors.

    Raises:
        InputError: what can't be judged, see `read_document`.
    """
    read = read_document(document)
    if read.fault is not None:
        raise InputError(f"{place if read.docid is None else f'{place} ({read.docid})'}: {read.fault}")
    return read.docid, read.text


def first_value(source: Any, names: Sequence[str]) -> Any | None:
    """The first of the fields of a mapping, or attributes of an object, that is there and not empty."""
    for name in names:
        value = source.get(name) if isinstance(source, Mapping) else getattr(source, name, None)
        if not _is_missing(value) and not callable(value):
            return value
    return None


def _is_missing(value: Any) -> bool:
    """Whether a value stands for none: None, an empty string, or what data frames have where a cell is empty."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str) and not value) or type(value).__name__ == "NAType"


def read_groups(
    queries: Iterable[str], documents_per_query: Iterable[Iterable[Any]], *, strict: bool
) -> list[QueryGroup]:
    """`read_group` for each query with its list; the messages say which query is at fault.

    Raises:
        InputError: as `read_group`, no lists, or lists that differ in length.
    """
    if isinstance(queries, str):
        raise InputError("queries must be a list of strings, got a string; rerank takes a single query")
    for name, given in (("queries", queries), ("documents_per_query", documents_per_query)):
        if not isinstance(given, Iterable):
            raise InputError(f"{name} must be a list, got {given!r:.60}")
    texts, lists = list(queries), list(documents_per_query)
    if len(texts) != len(lists):
        raise InputError(f"got {len(texts)} queries but {len(lists)} lists of documents")
    places = [f"query {i}: " if len(texts) > 1 else "" for i in range(len(texts))]
    return [
        read_group(query, documents, place=place, strict=strict)
        for query, documents, place in zip(texts, lists, places, strict=True)
    ]


def clean_text(text: str) -> str:
    """The text with every surrogate that has lost its other half as U+FFFD, which tokenizers and files can take.

    Cutting JSON in the middle of an escaped emoji leaves such halves.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _docid(document: Any) -> str | None:
    found = first_value(document, ID_FIELDS)
    if found is None:
        metadata = first_value(document, _METADATA_FIELDS)
        found = first_value(metadata, ID_FIELDS) if isinstance(metadata, Mapping) else None
    return None if found is None else clean_text(str(found))


def _no_text(document: Any) -> str:
    wanted = "/".join((*TITLE_FIELDS, *TEXT_FIELDS))
    if isinstance(document, Mapping):
        names = ", ".join(map(str, islice(document, _NAMES_SHOWN))) + (", …" if len(document) > _NAMES_SHOWN else "")
        return clean_text(f"is empty: nothing in {wanted}; found {names[:_NAMES_LENGTH] or 'nothing'}")
    if any(hasattr(document, name) for name in (*TITLE_FIELDS, *TEXT_FIELDS)):
        return f"is empty: nothing in {wanted}"
    return _unknown_kind(document)


def _unknown_kind(document: Any) -> str:
    return (
        f"expected a string, a mapping with {'/'.join(TEXT_FIELDS)} or an object with one of these, "
        f"got {_article(document)}"
    )


def _article(value: Any) -> str:
    name = type(value).__name__
    return "None" if value is None else f"an {name}" if name[0] in "aeiou" else f"a {name}"
