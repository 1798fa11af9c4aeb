"""The product catalogue that comes with the package: 19,406 products, 135 queries, 3,668 graded pairs.

Sources and licences are in data/icecat/NOTICE. The judgements are a test set: no model that ships is trained on them.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .trec.corpora import Document
from .trec.qrels import read_qrels
from .trec.topics import read_topics

FOLDER = Path(__file__).parent / "data" / "icecat"
PRODUCTS = 19_406
# A product can have hundreds of attributes; the first few say what it is, and each costs the reranker time.
_ATTRIBUTES = 6
_LONGEST_VALUE = 40


def read_products() -> Iterator[Document]:
    """The products, each with a title and the text of `product_text`, in the catalogue's order."""
    with gzip.open(FOLDER / "corpus.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            product = json.loads(line)
            yield Document(product["id"], product["title"].strip(), product_text(product))


def product_text(product: Mapping[str, Any]) -> str:
    """What a shop would show under a product's title: its description, and its first few attributes as "name: value".

    A description that the title already contains is left out. So are attribute values that are bare numbers (the
    catalogue does not give their units) and long lists.
    """
    description = product["text"].strip()
    lines = [] if not description or description in product["title"] else [description]
    kept = [
        f"{' '.join(name.split())}: {value}"
        for name, value in product["attributes"].items()
        if len(value) <= _LONGEST_VALUE and any(letter.isalpha() for letter in value)
    ]
    if kept:
        lines.append("; ".join(kept[:_ATTRIBUTES]))
    return "\n".join(lines)


def queries() -> dict[str, str]:
    """Query text by id."""
    return read_topics(FOLDER / "topics.tsv")


def judgements() -> dict[str, dict[str, int]]:
    """Grade 0 to 3 of each judged product, by query id and product id."""
    return read_qrels(FOLDER / "qrels.txt")
