"""The text of a document as search stacks store it: plain, in fields, or as raw JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from darl_rerank import documents
from darl_rerank.errors import InputError

# Anserini's `contents`, which often repeats title and text, first; then every name under which `rerank` finds a text.
TEXT_FIELDS = tuple(dict.fromkeys((*documents.TITLE_FIELDS, "contents", *documents.TEXT_FIELDS)))


def stored_text(docid: str, stored: Any, text_fields: Sequence[str] = TEXT_FIELDS) -> str:
    """The text of a document as the reranker sees it: the fields that are there, in order, one under the other.

    A field that only repeats what is taken already, as `contents` often repeats title and text, is not taken twice.

    Args:
        docid: for errors.
        stored: a string; a mapping or stored Lucene document (`get`), whose `raw` may hold JSON with the fields; an
            object with the fields as attributes; None for a document that isn't there.
        text_fields: names of the fields. Where none is there, a `raw` that is not JSON is taken whole.

    Raises:
        InputError: no such document, no text in it, or a field that is not a string.
    """
    if stored is None:
        raise InputError(f"document {docid}: its text was not found: it is not in the document lookup")
    if isinstance(stored, str):
        text = stored.strip()
    elif callable(getattr(stored, "get", None)):
        text = _joined(docid, *_fields(stored, text_fields))
    else:
        text = _joined(docid, {name: getattr(stored, name, None) for name in text_fields}, None)
    if not text:
        raise InputError(
            f"document {docid}: no text under {', '.join(text_fields)} or raw: choose other text_fields, give a "
            "document lookup, or index with stored text (-storeRaw or -storeContents)"
        )
    return text


def _fields(stored: Any, text_fields: Sequence[str]) -> tuple[dict[str, Any], str | None]:
    raw = stored.get("raw")
    values: Any = None
    if isinstance(raw, str) and raw.lstrip().startswith("{"):
        try:
            values = json.loads(raw)
        except json.JSONDecodeError:
            values = None
    if isinstance(values, dict):
        found = {name: values.get(name) or stored.get(name) for name in text_fields}
        return found, None
    return {name: stored.get(name) for name in text_fields}, raw if isinstance(raw, str) else None


def _joined(docid: str, fields: Mapping[str, Any], otherwise: str | None) -> str:
    taken = ""
    for name, value in fields.items():
        if value is None:
            continue
        if not isinstance(value, str):
            raise InputError(f"document {docid}: expected field {name} to be a string, got {type(value).__name__}")
        text = value.strip()
        if not taken or text.startswith(taken + "\n"):
            taken = text
        elif text and text != taken and not taken.endswith("\n" + text):
            taken += "\n" + text
    return taken or (otherwise or "").strip()
