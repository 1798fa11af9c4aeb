"""Product searches made up from products' titles: a few words as a shopper would type them, and products to judge.

Nobody asked these queries and nobody judged the pairs. They are for what collections of questions don't have: queries
of one to three words, where what a product is called decides.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from darl_rerank.trec.corpora import read_corpus

# Chances of a query of one, two and three words.
LENGTHS = (0.3, 0.45, 0.25)
# Texts beside the title, at most: what buyers and makers say of the product.
TEXTS = 2
# Documents of a query beside the one whose title it is from, by how many of its words their titles have.
OTHERS = {"all words": 1, "some words": 2, "no word": 1}
_EMPTY = frozenset(
    ["a", "an", "and", "by", "for", "from", "in", "of", "on", "or", "the", "to", "with", "pack", "set", "new", "size"]
)


def keyword_pairs(
    folder: Path, queries: int, rng: random.Random, others: Mapping[str, int] = OTHERS
) -> Iterator[dict[str, Any]]:
    """Rows with "qid", "docid", "query", "document" and, as "label", one of `OTHERS`.

    Args:
        folder: a collection whose documents have product titles; those with the same title are one product.
        queries: how many, each from a product drawn at random.
        rng: of all draws.
        others: as `OTHERS`.
    """
    texts: dict[str, list[str]] = {}
    for document in read_corpus(folder / "corpus.jsonl.gz"):
        if document.title:
            texts.setdefault(document.title, []).append(document.text)
    titles = sorted(texts)
    words = [frozenset(map(_stem, _words(title))) for title in titles]
    for number in range(queries):
        place = rng.randrange(len(titles))
        query = _query(titles[place], rng)
        asked = {_stem(word) for word in query}
        if not asked:
            continue
        by_label: dict[str, list[int]] = {label: [] for label in others}
        for other, having in enumerate(words):
            if other != place:
                found = len(asked & having)
                by_label["all words" if found == len(asked) else "some words" if found else "no word"].append(other)
        chosen = [(place, "all words")]
        for label, most in others.items():
            chosen += [(other, label) for other in rng.sample(by_label[label], min(most, len(by_label[label])))]
        for other, label in chosen:
            beside = rng.sample(texts[titles[other]], min(rng.randint(0, TEXTS), len(texts[titles[other]])))
            document = " ".join([titles[other], *beside])
            yield {
                "qid": f"k{number}", "docid": f"t{other}", "query": " ".join(query), "document": document,
                "label": label,
            }  # fmt: skip


def _query(title: str, rng: random.Random) -> list[str]:
    """Neighbouring words of the title's first part, which is what the product is; sometimes its maker before them."""
    first = _words(re.split(r"[,(–]| - ", title)[0]) or _words(title)
    length = min(rng.choices((1, 2, 3), LENGTHS)[0], len(first))
    # What a thing is comes last in English, so the end is as likely as all other places.
    end = len(first) if rng.random() < 0.5 else rng.randint(length, len(first))
    span = first[end - length : end]
    return [first[0], *span[1:]] if length > 1 and rng.random() < 0.3 else span


def _words(text: str) -> list[str]:
    return [word for word in re.findall(r"[a-z0-9]+", text.lower()) if word not in _EMPTY]


def _stem(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") else word
