"""What callers may pass as a document, and the one way its id and text are read from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .errors import InputError

_ID_FIELDS = ("id", "_id", "docid")
_TEXT_FIELDS = ("text", "contents")


def docid_and_text(document: Any, place: str = "document") -> tuple[str | None, str]:
    """Id and text of a string, a mapping, or an object with `docid`, `title` and `text` attributes.

    Title and text are joined by a newline, the title first. `place` names the document in errors.

    Raises:
        InputError: another type, a field that is not a string, or no text at all.
    """
    if isinstance(document, str):
        docid, parts = None, [document]
    elif isinstance(document, Mapping):
        docid = next((str(document[name]) for name in _ID_FIELDS if document.get(name) is not None), None)
        body = next((document[name] for name in _TEXT_FIELDS if document.get(name)), "")
        parts = [document.get("title") or "", body]
    elif hasattr(document, "text") or hasattr(document, "title"):
        docid = getattr(document, "docid", None)
        parts = [getattr(document, "title", "") or "", getattr(document, "text", "") or ""]
    else:
        raise InputError(
            f"{place}: expected a string, a mapping with {'/'.join(_TEXT_FIELDS)} or an object with text, "
            f"got {type(document).__name__}"
        )
    name = place if docid is None else f"{place} ({docid})"
    if not all(isinstance(part, str) for part in parts):
        raise InputError(f"{name}: title and text must be strings, got {[type(part).__name__ for part in parts]}")
    text = "\n".join(part for part in (part.strip() for part in parts) if part)
    if not text:
        raise InputError(f"{name}: is empty: nothing in {'/'.join(('title', *_TEXT_FIELDS))}")
    return docid, text
