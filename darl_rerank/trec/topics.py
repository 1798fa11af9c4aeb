"""Topics: query ids with query texts, as TSV, JSON lines (BEIR) or TREC `<top>` blocks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ..documents import clean_text
from ..errors import InputError
from .lines import Faults, json_object, read_lines

_NUM = re.compile(r"<num>\s*(?:Number:)?\s*([^\s<]+)", re.IGNORECASE)
_TITLE = re.compile(r"<title>\s*(?:Topic:)?\s*([^<]*)", re.IGNORECASE)


def read_topics(path: str | Path) -> dict[str, str]:
    """Query text by query id; the format is told from the first line, plain or gzip.

    - TSV: qid, tab, text.
    - JSON lines, as in BEIR: `_id`, `id` or `qid`; `text`, `query` or `title`.
    - TREC: `<top>` blocks with `<num>` and `<title>`.

    Raises:
        InputError: an empty file, a line that is not of its format, an empty query, or a query id given twice.
    """
    faults = Faults(path)
    topics: dict[str, str] = {}
    lines = list(read_lines(path))
    if not lines:
        raise InputError("the topics are empty", path=path)
    first = lines[0][1].lstrip()
    parse = _parse_json if first.startswith("{") else _parse_trec if first.lower().startswith("<top") else _parse_tsv
    for number, qid, text in parse(lines, faults):
        if qid in topics:
            faults.add(number, f"query {qid} is given twice")
        elif not text.strip():
            faults.add(number, f"query {qid} is empty")
        else:
            topics[qid] = text.strip()
    faults.check()
    return topics


_Lines = list[tuple[int, str]]
_Found = Iterator[tuple[int, str, str]]


def _parse_tsv(lines: _Lines, faults: Faults) -> _Found:
    for number, line in lines:
        qid, tab, text = line.partition("\t")
        if not tab or not qid.strip():
            faults.add(number, "expected a query id, a tab and the query")
        else:
            yield number, qid.strip(), text


def _parse_json(lines: _Lines, faults: Faults) -> _Found:
    for number, line in lines:
        values = json_object(line, number, faults)
        if values is None:
            continue
        qid = next((str(values[name]) for name in ("_id", "id", "qid") if values.get(name) is not None), None)
        text = next((values[name] for name in ("text", "query", "title") if isinstance(values.get(name), str)), None)
        if qid is None or text is None:
            faults.add(number, f"expected _id (or id, qid) and text (or query, title), found {', '.join(values)}")
        else:
            yield number, clean_text(qid), clean_text(text)


def _parse_trec(lines: _Lines, faults: Faults) -> _Found:
    block: list[str] = []
    start = lines[0][0]
    for number, line in [*lines, (lines[-1][0] + 1, "<top>")]:
        if line.strip().lower().startswith("<top") and block:
            text = "\n".join(block)
            num, title = _NUM.search(text), _TITLE.search(text)
            if num is None or title is None:
                faults.add(start, "expected <num> and <title> in a <top> block")
            else:
                yield start, num[1], " ".join(title[1].split())
            block, start = [], number
        block.append(line)
