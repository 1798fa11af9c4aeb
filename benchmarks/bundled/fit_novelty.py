"""Fits a checkpoint's novelty: which pairs are no news to it.

    python benchmarks/bundled/fit_novelty.py CHECKPOINT TEXTS CANDIDATES POOL OUTPUT

TEXTS is collect.py's folder, CANDIDATES that of benchmarks/scores.py, POOL a collection of web passages with a BM25 run
(trec-dl-2022, whose grades nobody looks at). Known are

- pairs of TEXTS that people judged: what the model was trained on;
- of each development collection that is like these or like the web, pairs of every second query that BM25 found (of
  trec-dl-2021 pairs that people judged): lists as a first stage gives them;
- pairs of POOL's queries.

The percentiles come from the other queries of the development collections. The features are the state of the last token
behind the layer that benchmarks/novelty_layers.py chose; only the layers up to it are run. OUTPUT.work keeps them.
"""

from __future__ import annotations

import random
from pathlib import Path

import click
from json_lines import json_lines

from darl_rerank import Checkpoint, Reranker
from darl_rerank.model.decisions import Decisions
from darl_rerank.model.novelty import fit_novelty, middle_layer_weights
from darl_rerank.training.data.features import extract_features
from darl_rerank.trec.corpora import load_documents
from darl_rerank.trec.graded_pairs import GradedPair
from darl_rerank.trec.runs import read_run
from darl_rerank.trec.topics import read_topics

WEB = "trec-dl-2021"
LISTS = ("msmarco-sample", "natural-questions", "wiki-qa-mix", "selqa", "product-questions", "msrd")
# What people said of a document in TEXTS, not what was made up from titles: that is no traffic (docs/checkpoint.md).
PEOPLE = ("chosen", "partly", "in what was chosen", "passed over")
KNOWN = {"wikipedia": 600, "products": 300, "films": 200}
JUDGED_PER_QUERY, FOUND_PER_QUERY = 12, 3
POOL_PER_QUERY, POOL_DEPTH = 5, 100
FEATURE_LAYER = 10
# More directions tell other kinds of text no better, and those of little variance are what an int8 export's rounding
# disturbs.
DIMENSIONS = 32
SEED = 1


@click.command(help=__doc__)
@click.argument("checkpoint", type=click.Path(exists=True, path_type=Path))
@click.argument("texts", type=click.Path(exists=True, path_type=Path))
@click.argument("candidates", type=click.Path(exists=True, path_type=Path))
@click.argument("pool", type=click.Path(exists=True, path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
def main(checkpoint: Path, texts: Path, candidates: Path, pool: Path, output: Path) -> None:
    final = Checkpoint.load(checkpoint).replace(feature_layer=FEATURE_LAYER, novelty=None)
    work = output.with_name(f"{output.name}.work")
    known_half, held_out = ([pair for name in (WEB, *LISTS) for pair in listed(candidates, name, i)] for i in (0, 1))
    known = [*judged(texts), *pooled(pool), *known_half]
    reranker = up_to_features(final, work / "model")
    features = [
        extract_features(reranker, pairs, work / name, description=name).features
        for name, pairs in (("known", known), ("held out", held_out))
    ]
    weights = middle_layer_weights(features[0].shape[1])
    novelty = fit_novelty(*features, weights=weights, dimensions=DIMENSIONS, k=10, seed=SEED)
    saved = final.replace(novelty=novelty).save(output, overwrite=True)
    share = float((novelty.score(features[1]) > 95).mean())
    click.echo(f"{output}: {saved.fingerprint}; {novelty.settings}; above 95 of the held-out pairs: {share:.3f}")


def up_to_features(checkpoint: Checkpoint, folder: Path) -> Reranker:
    """The checkpoint ended behind its feature layer: the same features there, for less work, and meaningless grades."""
    short = checkpoint.replace(
        layers=checkpoint.feature_layer, exits=None, novelty=None, reach=None, decisions=Decisions()
    )
    if not (folder / "checkpoint.json").is_file():
        short.save(folder)
    return Reranker.from_pretrained(folder, engine="torch")


def judged(texts: Path) -> list[GradedPair]:
    """Pairs that people judged, a draw of each kind of text."""
    rng = random.Random(SEED)
    pairs = []
    for name, count in KNOWN.items():
        documents = list(json_lines(texts / f"{name}.texts.jsonl.gz"))
        found = [
            GradedPair(query["query"], documents[int(place)], 0, None, query["qid"])
            for query in json_lines(texts / f"{name}.queries.jsonl.gz")
            for place, said in query["said"].items()
            if said in PEOPLE and documents[int(place)].strip()
        ]
        pairs += sorted(rng.sample(found, min(count, len(found))), key=lambda pair: pair.qid)
    return pairs


def pooled(folder: Path) -> list[GradedPair]:
    """Pairs that BM25 found for a collection's queries."""
    rng = random.Random(SEED)
    topics, run = read_topics(folder / "topics.tsv"), read_run(folder / "runs" / "bm25.trec")
    drawn = {qid: rng.sample([hit.docid for hit in run[qid][:POOL_DEPTH]], POOL_PER_QUERY) for qid in run}
    documents = load_documents(folder / "corpus.jsonl.gz", {docid for docids in drawn.values() for docid in docids})
    return [
        GradedPair(topics[qid], documents[docid].text, 0, None, qid, docid)
        for qid, docids in drawn.items()
        for docid in docids
    ]


def listed(candidates: Path, name: str, half: int) -> list[GradedPair]:
    """Pairs of every second query of a collection: of what people judged on the web, of what BM25 found elsewhere."""
    rng = random.Random(SEED)
    most = JUDGED_PER_QUERY if name == WEB else FOUND_PER_QUERY
    pairs = []
    for row in list(json_lines(candidates / f"{name}.candidates.jsonl.gz"))[half::2]:
        found = [int(place) for place, _ in row["stages"].get("bm25", ())]
        places = [i for i, grade in enumerate(row["grades"]) if grade >= 0] if name == WEB else found
        places = [i for i in places if row["texts"][i].strip()]
        for i in rng.sample(places, min(most, len(places))):
            pairs.append(GradedPair(row["query"], row["texts"][i], 0, None, row["qid"], row["docids"][i]))
    return pairs


if __name__ == "__main__":
    main()
