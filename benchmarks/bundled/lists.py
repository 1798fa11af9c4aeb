"""Long lists of documents for every question, and for made-up ones: what a GPU learns in minutes.

The rounds before have four or five documents a question, of some of the questions. Here are all that no recipe given
holds out, with up to two dozen documents each: those people judged, then of the nearest by the encoder, of the next to
these, and a few of the rest. Wikipedia is one corpus: passages of articles (near.py's) and sentences. Titles of
articles are searches, too, and product searches are label.py's, with more documents each. Labels are label.py's.

    python benchmarks/bundled/lists.py fourth.toml --data data --pairs pairs_mpnet --encoder ENCODER

PAIRS is label.py's with ENCODER, and gets NAME-lists.jsonl for every NAME of `LISTS` (--only: for some).
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from keywords import keyword_pairs
from label import LIKELIHOOD, PRODUCTS, TITLED, Encoder, by_bayes, cosines, posterior, shortened, summary, write
from near import cut
from numpy.typing import NDArray

from darl_rerank.training.data.sources import load_source
from darl_rerank.training.recipe.read import read_recipe
from darl_rerank.trec.corpora import Document, read_corpus
from darl_rerank.trec.qrels import read_qrels
from darl_rerank.trec.topics import read_topics

BINARY = {"0": "passed over", "1": "chosen"}
# Documents of a list: how many are drawn, and down to which place in the encoder's order.
PLACES = ((8, 12), (6, 50), (4, 250))
RANDOM, JUDGED = 2, 4
TITLES, SEARCHES = "natural-questions-titles", "product-keywords"
TITLE_QUERIES, KEYWORD_QUERIES = 4000, 4000
KEYWORD_OTHERS = {"all words": 3, "some words": 5, "no word": 2}
# P(label | grade), up to a factor, where nobody could have said anything.
UNASKED = (1.0, 1.0, 1.0, 1.0)
BLOCK = 512


@dataclass(frozen=True, slots=True)
class Lists:
    """What is made of one collection's queries.

    Attributes:
        corpora: the collections whose documents they may get, as one corpus.
        labels: as `label.Collection`'s.
        queries: how many, drawn at random; None for all.
        share: of `PLACES`, for collections of short texts about one thing.
        titled: share of the documents that keep their titles.
    """

    corpora: Sequence[str]
    labels: Mapping[str, str]
    queries: int | None = None
    share: float = 1.0
    titled: float = TITLED


WIKIPEDIA = ("natural-questions", "wiki-qa-mix", "selqa")
# Whose documents are articles.
ARTICLES = ("natural-questions", "wiki-qa-mix")
LISTS = {
    "natural-questions": Lists(WIKIPEDIA, BINARY),
    "wiki-qa-mix": Lists(WIKIPEDIA, BINARY),
    "selqa": Lists(WIKIPEDIA, BINARY),
    TITLES: Lists(WIKIPEDIA, {}, queries=TITLE_QUERIES, share=0.7),
    "product-questions": Lists([PRODUCTS], {"0": "passed over", "1": "partly", "2": "chosen"}, share=0.5),
    SEARCHES: Lists([PRODUCTS], {}, queries=KEYWORD_QUERIES),
    "msrd": Lists(["msrd"], BINARY, queries=4000, share=0.5, titled=1.0),
    "msmarco-sample": Lists(["msmarco-sample", "trec-dl-2022"], BINARY),
    "trec-dl-2022": Lists(["msmarco-sample", "trec-dl-2022"], {}),
}


@click.command(help=__doc__)
@click.argument("recipes", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("--pairs", type=click.Path(path_type=Path), required=True)
@click.option("--encoder", required=True, help="As label.py's.")
@click.option("--only", multiple=True, type=click.Choice(list(LISTS)))
@click.option("--fraction", default=1.0, show_default=True, help="Of the queries, for a trial.")
@click.option("--seed", default=1, show_default=True)
def main(
    recipes: tuple[Path, ...], data: Path, pairs: Path, encoder: str, only: tuple[str, ...], fraction: float, seed: int
) -> None:
    known = json.loads((pairs / "labels.json").read_text("utf-8"))
    if known["encoder"] != Path(encoder).name:
        raise click.UsageError(f"{pairs} has labels of {known['encoder']}, expected {Path(encoder).name}")
    prior, judge = np.array(known["prior"]["cosine"]), Encoder(encoder)
    kept_back = held_out(recipes)
    for name in only or LISTS:
        path = pairs / f"{name}-lists.jsonl"
        if not path.is_file():
            rng = random.Random(f"{seed}/{path.stem}")
            lists = LISTS[name]
            if name == SEARCHES:
                rows = list(keyword_pairs(data / PRODUCTS, round(KEYWORD_QUERIES * fraction), rng, KEYWORD_OTHERS))
                rows = [row for row in rows if folded(row["query"]) not in kept_back]
                write(path, rows, by_bayes(prior, judge, rows))
            else:
                asked = {q: text for q, text in queries(data, name).items() if folded(text) not in kept_back}
                most = round(fraction * min(len(asked), lists.queries or len(asked)))
                asked = {qid: asked[qid] for qid in rng.sample(sorted(asked), most)}
                rows = list(listed(data, name, lists, asked, judge, rng))
                cosine = cosines(judge, [row["query"] for row in rows], [row["document"] for row in rows])
                likelihood = [LIKELIHOOD[label] if (label := row.pop("label")) else UNASKED for row in rows]
                write(path, rows, posterior(prior, cosine[:, None], np.array(likelihood)))
        summary(path)


def folded(text: str) -> str:
    return " ".join(text.casefold().split())


def held_out(recipes: Sequence[Path]) -> set[str]:
    """Queries that the recipes' sources keep back, folded."""
    kept_back = set()
    for path in recipes:
        recipe = read_recipe(path)
        for source in recipe.sources:
            if source.use == "train" and source.dev_queries:
                kept_back |= {folded(p.query) for p in load_source(source, recipe.grades, seed=recipe.seed).dev}
    return kept_back


def queries(data: Path, name: str) -> dict[str, str]:
    """The collection's queries; for `TITLES`, what its articles are called, less what is in brackets."""
    if name != TITLES:
        return read_topics(data / name / "topics.tsv")
    corpus = read_corpus(data / "natural-questions" / "corpus.jsonl.gz")
    found = {f"t{document.docid}": (document.title or "").split(" (")[0].strip() for document in corpus}
    return {qid: title.casefold() for qid, title in found.items() if title}


def listed(
    data: Path, name: str, lists: Lists, asked: Mapping[str, str], judge: Encoder, rng: random.Random
) -> Iterator[dict[str, Any]]:
    """The pairs of the queries asked, with "label": what people said, "unseen", or "" where nobody could have."""
    texts: list[str] = []
    parts: dict[str, list[int]] = {}
    for place, (docid, text) in enumerate(documents(data, lists, random.Random("titles"))):
        texts.append(text)
        parts.setdefault(docid, []).append(place)
    folder = data / name
    found = list(folder.glob("qrels.txt*")) if lists.labels else []
    qrels = read_qrels(found[0]) if found else {}
    vectors = judge(texts, "document")
    for qid, cosine in nearness(vectors, asked, judge):
        labels: dict[int, str] = {}
        for docid, grade in qrels.get(qid, {}).items():
            said = lists.labels[str(grade)]
            places = parts.get(docid, [])
            labels |= dict.fromkeys(places, "in what was chosen" if said == "chosen" and len(places) > 1 else said)
        taken = rng.sample(sorted(labels), min(JUDGED, len(labels)))
        seen = {texts[place] for place in taken}
        order = nearest(cosine, PLACES[-1][1])
        before = 0
        for most, until in PLACES:
            band = order[before:until].tolist()
            taken += rng.sample(band, min(round(most * lists.share), len(band)))
            before = until
        taken += [rng.randrange(len(texts)) for _ in range(RANDOM)]
        for place in dict.fromkeys(taken):
            # The same passage may stand in a corpus twice: a copy of a judged one is not unseen.
            if place not in labels and texts[place] in seen:
                continue
            seen.add(texts[place])
            label = labels.get(place, "unseen") if lists.labels else ""
            yield {"qid": qid, "docid": str(place), "query": asked[qid], "document": texts[place], "label": label}


def documents(data: Path, lists: Lists, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Ids and texts; an article's passages have its id."""
    for name in lists.corpora:
        for document in read_corpus(data / name / "corpus.jsonl.gz"):
            titled = rng.random() < lists.titled
            if name in ARTICLES:
                for text in filter(None, cut(document.text)):
                    passage: Document = replace(document, text=text)
                    yield document.docid, passage.full_text if titled else text
            elif document.full_text.strip():
                yield document.docid, shortened(document, titled=titled)


def nearness(
    vectors: NDArray[np.float32], asked: Mapping[str, str], judge: Encoder
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Each query's cosines with all documents."""
    ids = list(asked)
    for start in range(0, len(ids), BLOCK):
        block = ids[start : start + BLOCK]
        yield from zip(block, judge([asked[qid] for qid in block], "query") @ vectors.T, strict=True)


def nearest(cosine: NDArray[np.float32], most: int) -> NDArray[np.intp]:
    """Places of the largest, in their order."""
    most = min(most, len(cosine) - 1)
    best = np.argpartition(-cosine, most)[:most]
    return best[np.argsort(-cosine[best])]


if __name__ == "__main__":
    main()
