"""Labels the training pairs of the checkpoint that ships: what people said of a pair, weighed with an encoder's view.

Two facts are at hand for a pair: its binary label (or that nobody looked at it), and the cosine of query and document
under a bi-encoder, all-MiniLM-L6-v2 unless told otherwise. Neither is a grade; Bayes' rule makes a soft label of them:

    P(grade | cosine, label)  ∝  P(grade | cosine) · P(label | grade)

P(grade | cosine) is a proportional-odds model (McCullagh 1980) fitted on the judged passages of TREC Deep Learning
2021. P(label | grade) is the table `LIKELIHOOD`, set by hand: of what people chose, how much is perfect; of what they
passed over, how much is related.

The pool of TREC Deep Learning 2022 has no labels, but a second model's opinion: the scores of a SPLADE++ run. There
P(grade | cosine, SPLADE++) is the label, fitted on 2021 in the same way. Product searches are made up from titles, see
keywords.py; there the likelihood is of how many of the query's words the title has.

Writes one JSONL a collection, which the recipes read, and labels.json with the fitted numbers and counts. A collection
whose file is there is not labelled again, nor is a model fitted that labels.json has of the same encoder.

    python benchmarks/bundled/label.py benchmarks/bundled/data benchmarks/bundled/pairs

A better encoder makes better labels: the third round has those of all-mpnet-base-v2 (Apache-2.0), a folder or hub id
that sentence-transformers loads. Its web questions are near.py's.

    python benchmarks/bundled/label.py benchmarks/bundled/data benchmarks/bundled/pairs_mpnet \
        --encoder sentence-transformers/all-mpnet-base-v2 --without natural-questions msmarco-sample trec-dl-2022
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from darl_rerank.adapters.faiss_index import encode, load_encoder
from darl_rerank.adapters.lucene import build_lucene_index, lucene_search
from keywords import keyword_pairs
from numpy.typing import NDArray
from scipy.optimize import minimize
from tqdm import tqdm

from darl_rerank.files import atomic_write
from darl_rerank.trec.corpora import Document, load_documents, read_corpus
from darl_rerank.trec.qrels import read_qrels
from darl_rerank.trec.runs import Run, read_run
from darl_rerank.trec.topics import read_topics

GRADES = 4
JUDGED, POOL = "trec-dl-2021", "trec-dl-2022"
POOL_DOCUMENTS = 24
# The collection whose titles product searches are made of, and how many are.
PRODUCTS, SEARCHES = "product-questions", 1500
# P(label | grade) up to a factor, for the grades irrelevant, related, relevant, perfect.
LIKELIHOOD = {
    "chosen": (0.01, 0.10, 0.60, 1.00),
    "partly": (0.05, 1.00, 0.60, 0.20),
    "in what was chosen": (0.30, 0.80, 1.00, 1.00),
    "passed over": (1.00, 0.70, 0.15, 0.05),
    "unseen": (1.00, 0.90, 0.40, 0.25),
    "all words": (0.05, 0.30, 1.00, 1.00),
    "some words": (1.00, 1.00, 0.30, 0.10),
    "no word": (1.00, 0.50, 0.10, 0.02),
}
# The first hit that nobody looked at is too often an answer.
SKIP = 1
DEPTH = 30
# Long answers say what they are about in the beginning, and training time goes by tokens.
WORDS = 64
# Share of the queries whose documents keep their titles. Most questions name what a Wikipedia article is about: a model
# that sees every title could compare the query with the title alone, which helps nobody where passages have none.
TITLED = 0.3
CHUNK = 256


@dataclass(frozen=True, slots=True)
class Collection:
    """What is taken of one collection.

    Attributes:
        labels: its labels, as text, to a row of `LIKELIHOOD`.
        queries: how many, drawn at random.
        judged: documents of each label, at most, a query.
        bm25: of BM25's first hits that nobody judged, a query: the same words, mostly about something else.
        dense: of the bi-encoder's first hits that nobody judged, a query: the same subject, mostly without the answer.
        titled: share of the queries whose documents keep their titles.
        file: the name of its file, if not the collection's.
        beside: the entry of the same collection whose queries it leaves out.
    """

    name: str
    labels: Mapping[str, str]
    queries: int
    judged: Mapping[str, int]
    bm25: int = 0
    dense: int = 0
    titled: float = TITLED
    file: str | None = None
    beside: Collection | None = None

    @property
    def stem(self) -> str:
        return self.file or self.name

    def drawn(self, usable: Sequence[str], queries: int, rng: random.Random, seed: int) -> list[str]:
        """That many of the usable queries, at random."""
        if self.beside is not None:
            first = random.Random(f"{seed}/{self.beside.stem}")
            others = set(self.beside.drawn(usable, self.beside.queries, first, seed))
            usable = [qid for qid in usable if qid not in others]
        return rng.sample(usable, min(queries, len(usable)))


NATURAL_QUESTIONS = Collection("natural-questions", {"1": "chosen"}, 4000, {"1": 1}, bm25=1, dense=1)
COLLECTIONS = (
    NATURAL_QUESTIONS,
    replace(NATURAL_QUESTIONS, queries=5000, dense=2, file="natural-questions-more", beside=NATURAL_QUESTIONS),
    Collection("wiki-qa-mix", {"0": "passed over", "1": "chosen"}, 1500, {"0": 1, "1": 1}, bm25=1),
    Collection("selqa", {"0": "passed over", "1": "chosen"}, 2300, {"0": 2, "1": 1}),
    Collection("product-questions", {"0": "passed over", "1": "partly", "2": "chosen"}, 900, {"0": 1, "1": 1, "2": 1}),
    Collection("msmarco-sample", {"0": "passed over", "1": "chosen"}, 7500, {"0": 1, "1": 1}, bm25=1, dense=2),
    # What people ask of films is mostly their titles.
    Collection("msrd", {"0": "passed over", "1": "chosen"}, 800, {"0": 2, "1": 1}, titled=1.0),
)


class Encoder:
    """A bi-encoder in bfloat16, which changes a cosine by some 0.001; a text is encoded once."""

    def __init__(self, name: str) -> None:
        self._model = load_encoder(name).to(torch.bfloat16)
        self._known: dict[tuple[str, str], NDArray[np.float32]] = {}

    def __call__(self, texts: Sequence[str], side: Literal["query", "document"]) -> NDArray[np.float32]:
        """Vectors of unit length, shape (n, d)."""
        new = sorted({text for text in texts if (side, text) not in self._known}, key=len)
        with tqdm(total=len(new), unit="text", desc=f"encoding, {side}") as bar:
            for start in range(0, len(new), CHUNK):
                vectors = encode(self._model, new[start : start + CHUNK], side)
                vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
                for text, vector in zip(new[start : start + CHUNK], vectors, strict=True):
                    self._known[side, text] = vector
                bar.update(len(vectors))
        return np.stack([self._known[side, text] for text in texts])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="folder of the collections")
    parser.add_argument("output", type=Path, help="folder for the pairs")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fraction", type=float, default=1.0, help="of the queries, for a trial")
    parser.add_argument("--encoder", default="minilm", help="what the FAISS adapter loads: minilm, a folder, a hub id")
    parser.add_argument("--without", nargs="*", default=[], metavar="NAME", help="collections that are not labelled")
    options = parser.parse_args()
    encoder = Encoder(options.encoder)
    of = {"encoder": Path(options.encoder).name, "seed": options.seed}
    record = options.output / "labels.json"
    before = json.loads(record.read_text("utf-8")) if record.is_file() else {}
    if before.get("encoder") == of["encoder"]:
        by_cosine = np.array(before["prior"]["cosine"])
    else:
        by_cosine = fit_prior(*judged_features(encoder, options.data / JUDGED, splade=False))
    counts = {}
    for collection in (c for c in COLLECTIONS if c.name not in options.without):
        path = options.output / f"{collection.stem}.jsonl"
        if not path.is_file():
            queries = round(collection.queries * options.fraction)
            rows = list(pairs(options.data / collection.name, collection, queries, encoder, options.seed))
            write(path, rows, by_bayes(by_cosine, encoder, rows))
        counts[collection.stem] = summary(path)
    path = options.output / "product-keywords.jsonl"
    if not path.is_file():
        rng = random.Random(f"{options.seed}/keywords")
        rows = list(keyword_pairs(options.data / PRODUCTS, round(SEARCHES * options.fraction), rng))
        write(path, rows, by_bayes(by_cosine, encoder, rows))
    counts[path.stem] = summary(path)
    fitted = {"cosine": by_cosine.tolist()}
    if POOL not in options.without:
        by_both = fit_prior(*judged_features(encoder, options.data / JUDGED, splade=True))
        path = options.output / f"{POOL}.jsonl"
        if not path.is_file():
            rows, scores = pool(options.data / POOL, random.Random(f"{options.seed}/{POOL}"))
            cosine = cosines(encoder, [r["query"] for r in rows], [r["document"] for r in rows])
            write(path, rows, posterior(by_both, np.stack([cosine, scores], axis=1), np.ones((1, GRADES))))
        counts[POOL] = summary(path)
        fitted["cosine and SPLADE++"] = by_both.tolist()
    with atomic_write(record) as stream:
        json.dump({**of, "prior": fitted, "collections": counts}, stream, indent=1)


def by_bayes(prior: NDArray[np.float64], encoder: Encoder, rows: Sequence[dict[str, Any]]) -> NDArray[np.float64]:
    """Soft labels of `rows`, shape (n, K), from their cosines and their "label", which is taken out."""
    cosine = cosines(encoder, [row["query"] for row in rows], [row["document"] for row in rows])
    return posterior(prior, cosine[:, None], np.array([LIKELIHOOD[row.pop("label")] for row in rows]))


def write(path: Path, rows: Sequence[Mapping[str, Any]], labels: NDArray[np.float64]) -> None:
    with atomic_write(path) as stream:
        for row, label in zip(rows, labels.round(4).tolist(), strict=True):
            # What rounding leaves over goes to the likeliest grade, so that the sum is 1.
            label[int(np.argmax(label))] += 1 - sum(label)
            stream.write(json.dumps({**row, "probabilities": label}, ensure_ascii=False) + "\n")


def summary(path: Path) -> dict[str, Any]:
    labels = np.array([json.loads(line)["probabilities"] for line in path.read_text("utf-8").splitlines()])
    found = {"pairs": len(labels), "mean label": labels.mean(axis=0).round(3).tolist()}
    print(f"{path.stem}: {found}")
    return found


def pool(folder: Path, rng: random.Random) -> tuple[list[dict[str, Any]], NDArray[np.float64]]:
    """Pairs of both runs' documents, some of each query's, and how SPLADE++ scores them; see `standard_scores`."""
    topics, splade = read_topics(folder / "topics.tsv"), read_run(folder / "runs" / "splade-pp.trec")
    bm25 = read_run(folder / "runs" / "bm25.trec")
    documents = load_documents(
        folder / "corpus.jsonl.gz", {e.docid for run in (bm25, splade) for found in run.values() for e in found}
    )
    rows, scores = [], []
    for qid, score in standard_scores(splade).items():
        found = sorted({e.docid for run in (bm25, splade) for e in run.get(qid, ())})
        for docid in rng.sample(found, min(POOL_DOCUMENTS, len(found))):
            text = shortened(documents[docid], titled=True)
            rows.append({"qid": qid, "docid": docid, "query": topics[qid], "document": text})
            scores.append(score.get(docid, min(score.values())))
    return rows, np.array(scores)


def standard_scores(run: Run) -> dict[str, dict[str, float]]:
    """Each query's scores less their mean, over their standard deviation: what a score means differs by query."""
    result = {}
    for qid, found in run.items():
        scores = np.array([e.score for e in found])
        standard = (scores - scores.mean()) / max(float(scores.std()), 1e-9)
        result[qid] = dict(zip([e.docid for e in found], standard.tolist(), strict=True))
    return result


def pairs(folder: Path, collection: Collection, queries: int, encoder: Encoder, seed: int) -> Iterator[dict[str, Any]]:
    """The pairs of some queries: judged ones of each label, then hits of both first stages that nobody judged."""
    rng = random.Random(f"{seed}/{collection.stem}")
    topics = read_topics(folder / "topics.tsv")
    qrels = read_qrels(next(folder.glob("qrels.txt*")))
    documents = {d.docid: d for d in read_corpus(folder / "corpus.jsonl.gz") if d.full_text}
    usable = [qid for qid, judged in qrels.items() if qid in topics and any(judged.values())]
    chosen = collection.drawn(sorted(usable), queries, rng, seed)
    asked = {qid: topics[qid] for qid in chosen}
    stages = (
        (collection.bm25, bm25_hits(documents, asked) if collection.bm25 else {}),
        (collection.dense, dense_hits(documents, asked, encoder) if collection.dense else {}),
    )
    for qid in chosen:
        titled = rng.random() < collection.titled
        taken: list[tuple[str, str]] = []
        for label, most in collection.judged.items():
            having = sorted(d for d, found in qrels[qid].items() if str(found) == label and d in documents)
            taken += [(d, collection.labels[label]) for d in rng.sample(having, min(most, len(having)))]
        # The same passage may stand in a corpus under two ids: a copy of a judged one is not unseen.
        texts = {shortened(documents[d], titled=False) for d in qrels[qid] if d in documents}
        for most, hits in stages:
            unseen = [d for d in hits.get(qid, ()) if shortened(documents[d], titled=False) not in texts][SKIP:]
            for docid in rng.sample(unseen, min(most, len(unseen))):
                texts.add(shortened(documents[docid], titled=False))
                taken.append((docid, "unseen"))
        for docid, label in taken:
            text = shortened(documents[docid], titled=titled)
            yield {"qid": qid, "docid": docid, "query": topics[qid], "document": text, "label": label}


def bm25_hits(documents: Mapping[str, Document], topics: Mapping[str, str]) -> dict[str, list[str]]:
    """The first `DEPTH` document ids of each query under BM25."""
    with tempfile.TemporaryDirectory() as work:
        index = Path(work) / "index"
        build_lucene_index(documents.values(), index)
        return {qid: [e.docid for e in found] for qid, found in lucene_search(index, topics, k=DEPTH).items()}


def dense_hits(documents: Mapping[str, Document], topics: Mapping[str, str], encoder: Encoder) -> dict[str, list[str]]:
    """The first `DEPTH` document ids of each query by the bi-encoder's cosine."""
    ids = list(documents)
    vectors = encoder([shortened(documents[docid], titled=False) for docid in ids], "document")
    asked = encoder(list(topics.values()), "query")
    hits = {}
    for qid, query in zip(topics, asked, strict=True):
        cosine = vectors @ query
        best = np.argpartition(-cosine, DEPTH)[:DEPTH]
        hits[qid] = [ids[i] for i in best[np.argsort(-cosine[best])]]
    return hits


def shortened(document: Document, *, titled: bool) -> str:
    """The document's first `WORDS` words, without its title if it has a text of its own and is not to be `titled`."""
    text = document.text.strip() if document.text.strip() and not titled else document.full_text
    words = text.split(" ")
    return text if len(words) <= WORDS else " ".join(words[:WORDS])


def cosines(encoder: Encoder, queries: Sequence[str], documents: Sequence[str]) -> NDArray[np.float64]:
    """Cosine of each query with its document, shape (n,)."""
    asked, found = encoder(queries, "query"), encoder(documents, "document")
    return np.einsum("nd,nd->n", asked.astype(np.float64), found.astype(np.float64))


def judged_features(encoder: Encoder, folder: Path, *, splade: bool) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The cosine of each judged pair, and with `splade` its standard score where the run has it; and its grade."""
    topics, qrels = read_topics(folder / "topics.tsv"), read_qrels(folder / "qrels.txt")
    documents = load_documents(folder / "corpus.jsonl.gz", {docid for judged in qrels.values() for docid in judged})
    judged = [(q, d, g) for q, found in qrels.items() for d, g in found.items() if q in topics and d in documents]
    scores = standard_scores(read_run(folder / "runs" / "splade-pp.trec"))
    if splade:
        judged = [(q, d, g) for q, d, g in judged if d in scores.get(q, {})]
    features = [cosines(encoder, [topics[q] for q, _, _ in judged], [documents[d].full_text for _, d, _ in judged])]
    if splade:
        features.append(np.array([scores[q][d] for q, d, _ in judged]))
    return np.stack(features, axis=1), np.array([g for _, _, g in judged])


def fit_prior(features: NDArray[np.float64], grade: NDArray[np.int64]) -> NDArray[np.float64]:
    """Slopes, then rising cut points, of P(grade <= j | x) = sigmoid(cut_j - slopes · x); maximum likelihood.

    Args:
        features: shape (n, f).
        grade: shape (n,).
    """
    f = features.shape[1]

    def unpack(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.concatenate([x[: f + 1], x[f] + np.exp(x[f + 1 :]).cumsum()])

    def loss(x: NDArray[np.float64]) -> float:
        return float(-np.log(grade_prior(unpack(x), features)[np.arange(len(grade)), grade]).mean())

    found = minimize(loss, np.array([*[1.0] * f, 0.0, 0.3, 0.3]), method="L-BFGS-B")
    print(f"P(grade | {f} features) from {len(grade)} judged: NLL {found.fun:.3f}, {unpack(found.x).round(3)}")
    return unpack(found.x)


def grade_prior(prior: NDArray[np.float64], features: NDArray[np.float64]) -> NDArray[np.float64]:
    """P(grade | features), shape (n, K)."""
    slopes, cuts = prior[: 1 - GRADES], prior[1 - GRADES :]
    below = 1 / (1 + np.exp((features @ slopes)[:, None] - cuts[None]))
    edges = np.concatenate([np.zeros((len(features), 1)), below, np.ones((len(features), 1))], axis=1)
    return np.clip(np.diff(edges, axis=1), 1e-9, None)


def posterior(
    prior: NDArray[np.float64], features: NDArray[np.float64], likelihood: NDArray[np.float64]
) -> NDArray[np.float64]:
    joint = grade_prior(prior, features) * likelihood
    return joint / joint.sum(axis=1, keepdims=True)


if __name__ == "__main__":
    main()
