"""Corpora: documents by id, streamed from JSON lines or TSV, plain or gzip; only those that are wanted are held."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..documents import ID_FIELDS, TEXT_FIELDS, TITLE_FIELDS, clean_text, first_value
from ..errors import InputError
from .lines import Faults, json_object, read_lines


@dataclass(frozen=True, slots=True)
class Document:
    """One document of a corpus."""

    docid: str
    title: str
    text: str

    @property
    def full_text(self) -> str:
        """Title and text, one under the other; either alone if the other is empty."""
        return "\n".join(part for part in (self.title.strip(), self.text.strip()) if part)


def read_corpus(
    path: str | Path, wanted: Collection[str] | None = None, *, faults: Faults | None = None
) -> Iterator[Document]:
    """Stream the documents of a file, or only those whose ids are `wanted`.

    The format is told from the first line that has one: JSON objects with an id, a title if there is one and a text,
    under the names of `darl_rerank.documents`; or TSV of id, text or id, title, text. Reading stops as soon as
    everything wanted has been found.

    Args:
        path: the file.
        wanted: ids.
        faults: where lines that are no document are noted, which are then passed over; the first is an error if None.

    Raises:
        InputError: no such file, binary or broken data, or (without `faults`) a line that is not of its format.
    """
    found = Faults(path) if faults is None else faults
    left = None if wanted is None else set(wanted)
    from_json: bool | None = None
    number = 0
    for number, line in read_lines(path, faults):
        if from_json is None and (line.lstrip().startswith("{") or "\t" in line):
            from_json = line.lstrip().startswith("{")
        document = _from_json(number, line, found) if from_json else _from_tsv(number, line, found)
        if faults is None:
            found.check()
        if document is None:
            continue
        if left is None:
            yield document
        elif document.docid in left:
            left.discard(document.docid)
            yield document
            if not left:
                return
    if number == 0:
        raise InputError("the corpus is empty", path=path)


def load_documents(path: str | Path, wanted: Collection[str], *, faults: Faults | None = None) -> dict[str, Document]:
    """The wanted documents of a file that are there; the caller decides what a missing one means.

    Arguments and errors are those of `read_corpus`.
    """
    return {document.docid: document for document in read_corpus(path, wanted, faults=faults)}


def _from_json(number: int, line: str, faults: Faults) -> Document | None:
    values = json_object(line, number, faults)
    if values is None:
        return None
    docid = first_value(values, ID_FIELDS)
    if docid is None:
        faults.add(number, f"expected an id under {', '.join(ID_FIELDS)}; found {', '.join(values) or 'nothing'}")
        return None
    before = len(faults)
    title, text = (_string(values, names, number, faults) for names in (TITLE_FIELDS, TEXT_FIELDS))
    if len(faults) > before:
        return None
    return Document(clean_text(str(docid)), title, text)


def _string(values: Mapping[str, object], names: tuple[str, ...], number: int, faults: Faults) -> str:
    value = first_value(values, names)
    if value is None or isinstance(value, str):
        return clean_text(value or "")
    name = next(name for name in names if values.get(name) is value)
    faults.add(number, f"expected {name} to be a string, found {type(value).__name__}")
    return ""


def _from_tsv(number: int, line: str, faults: Faults) -> Document | None:
    columns = line.split("\t")
    if not 2 <= len(columns) <= 3 or not columns[0].strip():
        faults.add(number, f"expected a JSON object, or id<TAB>text or id<TAB>title<TAB>text; {len(columns)} columns")
        return None
    docid, *title, text = columns
    return Document(docid.strip(), title[0] if title else "", text)
