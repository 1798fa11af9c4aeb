"""The pairs that speed is measured on: first documents of a TREC run, or of a search in the bundled catalogue."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from darl_rerank import icecat
from darl_rerank.errors import InputError
from darl_rerank.trec.corpora import load_documents
from darl_rerank.trec.runs import read_run
from darl_rerank.trec.topics import read_topics

Pairs = list[tuple[str, str]]
# BM25 (Robertson et al. 1994) with the usual constants.
_K1, _B = 0.9, 0.4


def read_pairs(collection: Path | None, count: int, per_query: int) -> Pairs:
    """`count` pairs, `per_query` documents of each query.

    Args:
        collection: a folder with topics.tsv, corpus.jsonl.gz and runs/*.trec, of which that of BM25 is taken if there
            is one; the bundled product catalogue if None.
        count: how many pairs; fewer if there are not so many.
        per_query: documents of each query, in retrieval order.

    Raises:
        InputError: a file is not there.
    """
    if collection is None:
        return _of_catalogue(count, per_query)
    runs = sorted(collection.glob("runs/*.trec"), key=lambda path: ("bm25" not in path.name, path.name))
    if not runs:
        raise InputError("expected a run in runs/*.trec", path=collection)
    queries = read_topics(collection / "topics.tsv")
    wanted = [(qid, e.docid) for qid, entries in read_run(runs[0]).items() for e in entries[:per_query]][:count]
    documents = load_documents(collection / "corpus.jsonl.gz", {docid for _, docid in wanted})
    return [(queries[qid], documents[docid].full_text) for qid, docid in wanted]


def cut(pairs: Pairs, words: int | None) -> Pairs:
    """The pairs with only the first `words` words of each document; whole ones if None."""
    return pairs if words is None else [(query, " ".join(document.split()[:words])) for query, document in pairs]


def grouped(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    """Each query with its documents."""
    groups: dict[str, list[str]] = {}
    for query, document in pairs:
        groups.setdefault(query, []).append(document)
    return list(groups.items())


def _of_catalogue(count: int, per_query: int) -> Pairs:
    texts = [product.full_text for product in icecat.read_products()]
    words = [Counter(text.lower().split()) for text in texts]
    lengths = [sum(counts.values()) for counts in words]
    mean = sum(lengths) / len(lengths)
    containing = Counter(word for counts in words for word in counts)
    pairs: Pairs = []
    for query in icecat.queries().values():
        terms = {
            word: math.log(1 + (len(texts) - containing[word] + 0.5) / (containing[word] + 0.5))
            for word in set(query.lower().split())
        }
        scores = [
            sum(
                weight * counts[word] * (_K1 + 1) / (counts[word] + _K1 * (1 - _B + _B * length / mean))
                for word, weight in terms.items()
                if word in counts
            )
            for counts, length in zip(words, lengths, strict=True)
        ]
        best = sorted(range(len(texts)), key=lambda i: -scores[i])[:per_query]
        pairs += [(query, texts[i]) for i in best]
        if len(pairs) >= count:
            break
    return pairs[:count]
