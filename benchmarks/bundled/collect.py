"""Texts and queries of the collections that the checkpoint which ships is trained on, in one folder.

    python benchmarks/bundled/collect.py DATA OUTPUT [--held-out FILE …]

DATA has a folder for each collection, as TREC files. Three corpora come out: Wikipedia (passages of articles, sentences
of sections), products, films. A query has the documents that people judged; titles of Wikipedia articles and words of
product titles are searches, too, which nobody judged. Every query of a --held-out file (JSON lines with "query", gzip
or not) is left out, so that what is chosen or measured on these was never trained on.

OUTPUT gets NAME.texts.jsonl.gz (a text a line) and NAME.queries.jsonl.gz (query, and by the text's line number what was
said of it).
"""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from json_lines import json_lines

from darl_rerank.trec.corpora import read_corpus
from darl_rerank.trec.qrels import read_qrels
from darl_rerank.trec.topics import read_topics

SEED = 1
# Long answers say in the beginning what they are about, and training time goes by tokens.
WORDS = 64
# Passages of an article at most; a shorter rest than so many words goes with the passage before.
PASSAGES, SHORTEST = 4, 24
# Share of the documents that keep their titles: a model that sees every title could compare the query with it alone.
TITLED = 0.3
TITLE_QUERIES, SEARCHES, FILM_QUERIES = 4000, 6000, 4000
# Products of a search, by what their titles have of its words.
PRODUCTS = {"all words": 3, "accessory": 2, "right type": 3, "wrong type": 3, "no word": 1}
CHOSEN = {"0": "passed over", "1": "chosen"}
SAID = {
    "natural-questions": CHOSEN,
    "wiki-qa-mix": CHOSEN,
    "selqa": CHOSEN,
    "msrd": CHOSEN,
    "product-questions": {"0": "passed over", "1": "partly", "2": "chosen"},
}
ARTICLES = ("natural-questions", "wiki-qa-mix")
_EMPTY = frozenset(
    ["a", "an", "and", "by", "for", "from", "in", "of", "on", "or", "the", "to", "with", "pack", "set", "new", "size"]
)
_BESIDE = re.compile(r"\b(?:for|with|compatible with|fits|works with)\b")


@click.command(help=__doc__)
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--held-out", multiple=True, type=click.Path(exists=True, path_type=Path))
@click.option("--fraction", default=1.0, show_default=True, help="Of queries and texts, for a trial.")
def main(data: Path, output: Path, held_out: tuple[Path, ...], fraction: float) -> None:
    output.mkdir(parents=True, exist_ok=True)
    kept_back = {folded(row["query"]) for path in held_out for row in json_lines(path)}
    kept_back |= {folded(text) for text in read_topics(data / "trec-dl-2019" / "topics.tsv").values()}
    never = {folded(d.text) for d in read_corpus(data / "trec-dl-2019" / "corpus.jsonl.gz")}
    for name, made in (("wikipedia", wikipedia), ("products", products), ("films", films)):
        rng = random.Random(f"{SEED}/{name}")
        texts, queries = made(data, rng)
        usable = [q for q in queries if folded(q["query"]) not in kept_back]
        usable = rng.sample(usable, round(fraction * len(usable)))
        excluded = [place for place, text in enumerate(texts) if folded(text) in never]
        if fraction < 1:
            named = {int(place) for query in usable for place in query["said"]}
            excluded += [place for place in range(len(texts)) if place not in named and rng.random() >= fraction]
        for place in excluded:
            texts[place] = ""
        _write(output / f"{name}.texts.jsonl.gz", texts)
        _write(output / f"{name}.queries.jsonl.gz", usable)
        print(f"{name}: {len(texts)} texts, {len(usable)} of {len(queries)} queries, {len(excluded)} passages left out")


def folded(text: str) -> str:
    return " ".join(text.casefold().split())


def wikipedia(data: Path, rng: random.Random) -> tuple[list[str], list[dict[str, Any]]]:
    """Passages and sentences; questions, and titles of articles as searches."""
    texts: list[str] = []
    places: dict[str, list[int]] = {}
    titles: dict[str, str] = {}
    for name in (*ARTICLES, "selqa"):
        for document in read_corpus(data / name / "corpus.jsonl.gz"):
            titled = rng.random() < TITLED and document.title
            parts = passages(document.text) if name in ARTICLES else [shortened(document.text)]
            for part in filter(None, parts):
                places.setdefault(f"{name}/{document.docid}", []).append(len(texts))
                texts.append(f"{document.title}\n{part}" if titled else part)
            if name == "natural-questions" and document.title:
                titles[document.docid] = document.title.split(" (")[0].strip().casefold()
    queries = []
    for name in (*ARTICLES, "selqa"):
        queries += list(_judged(data, name, places))
    for docid in rng.sample(sorted(titles), min(TITLE_QUERIES, len(titles))):
        queries.append({"qid": f"title/{docid}", "query": titles[docid], "said": {}, "asked": False})
    return texts, queries


def films(data: Path, rng: random.Random) -> tuple[list[str], list[dict[str, Any]]]:
    texts: list[str] = []
    places: dict[str, list[int]] = {}
    for document in read_corpus(data / "msrd" / "corpus.jsonl.gz"):
        if document.full_text.strip():
            places[f"msrd/{document.docid}"] = [len(texts)]
            texts.append(shortened(document.full_text))
    queries = list(_judged(data, "msrd", places))
    return texts, rng.sample(queries, min(FILM_QUERIES, len(queries)))


def products(data: Path, rng: random.Random) -> tuple[list[str], list[dict[str, Any]]]:
    """Texts about products; buyers' questions, and words of titles as searches."""
    texts: list[str] = []
    places: dict[str, list[int]] = {}
    by_title: dict[str, list[str]] = {}
    for document in read_corpus(data / "product-questions" / "corpus.jsonl.gz"):
        if document.full_text.strip():
            places[f"product-questions/{document.docid}"] = [len(texts)]
            texts.append(shortened(document.full_text if rng.random() < TITLED else document.text or document.title))
        if document.title:
            by_title.setdefault(document.title, []).append(document.text)
    queries = list(_judged(data, "product-questions", places))
    titles = sorted(by_title)
    first = len(texts)
    for title in titles:
        beside = rng.sample(by_title[title], min(rng.randint(0, 2), len(by_title[title])))
        texts.append(shortened(" ".join([title, *beside])))
    heads = [frozenset(map(_stem, _words(_BESIDE.split(title.lower())[0]))) for title in titles]
    wholes = [frozenset(map(_stem, _words(title))) for title in titles]
    for number in range(SEARCHES):
        place = rng.randrange(len(titles))
        query = search(titles[place], rng)
        if not query:
            continue
        asked, kind = {_stem(word) for word in query}, _stem(query[-1])
        found: dict[str, list[int]] = {label: [] for label in PRODUCTS}
        for other, (head, whole) in enumerate(zip(heads, wholes, strict=True)):
            if other != place:
                found[_match(asked, kind, head, whole)].append(other)
        said = {str(first + place): "all words"}
        for label, most in PRODUCTS.items():
            said |= {str(first + o): label for o in rng.sample(found[label], min(most, len(found[label])))}
        queries.append({"qid": f"search/{number}", "query": " ".join(query), "said": said, "fixed": True})
    return texts, queries


def _match(asked: set[str], kind: str, head: frozenset[str], whole: frozenset[str]) -> str:
    """What a title has of a search: all its words where the product is named, or only behind "for" …"""
    if not asked & whole:
        return "no word"
    if asked <= head:
        return "all words"
    if kind in whole and kind not in head:
        return "accessory"
    return "right type" if kind in whole else "wrong type"


def search(title: str, rng: random.Random) -> list[str]:
    """One to three neighbouring words of the title's first part; sometimes the maker and what the thing is."""
    first = _words(re.split(r"[,(–]| - ", title)[0]) or _words(title)
    if not first:
        return []
    length = min(rng.choices((1, 2, 3), (0.3, 0.45, 0.25))[0], len(first))
    # What a thing is comes last in English, so the end is as likely as all other places.
    end = len(first) if rng.random() < 0.5 else rng.randint(length, len(first))
    span = first[end - length : end]
    return [first[0], *span[1:]] if length > 1 and rng.random() < 0.3 else span


def passages(text: str) -> Iterator[str]:
    """Passages of `WORDS` words, at most `PASSAGES`."""
    words = text.split()
    for start in list(range(0, max(len(words) - SHORTEST, 1), WORDS))[:PASSAGES]:
        end = start + WORDS if len(words) - start - WORDS >= SHORTEST else len(words)
        yield " ".join(words[start:end])


def shortened(text: str) -> str:
    return " ".join(text.split()[:WORDS])


def _judged(data: Path, name: str, places: Mapping[str, Sequence[int]]) -> Iterator[dict[str, Any]]:
    topics = read_topics(data / name / "topics.tsv")
    for qid, judged in read_qrels(next((data / name).glob("qrels.txt*"))).items():
        said: dict[str, str] = {}
        for docid, grade in judged.items():
            found = places.get(f"{name}/{docid}", ())
            word = SAID[name][str(grade)]
            # A passage of a longer article that was chosen may have the answer or not.
            word = "in what was chosen" if word == "chosen" and len(found) > 1 else word
            said |= {str(place): word for place in found}
        if qid in topics and said:
            yield {"qid": f"{name}/{qid}", "query": topics[qid], "said": said}


def _words(title: str) -> list[str]:
    return [word for word in re.findall(r"[a-z0-9]+", title.lower()) if word not in _EMPTY]


def _stem(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") else word


def _write(path: Path, rows: Sequence[Any]) -> None:
    with gzip.open(path, "wt", compresslevel=9) as stream:
        stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


if __name__ == "__main__":
    main()
