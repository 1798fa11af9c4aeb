"""What the checkpoint that ships says of first stages' lists, judged once: decisions.py, cuts.py and fusion.py read it.

    python benchmarks/scores.py candidates DATA --work FOLDER     # needs Lucene and FAISS
    python benchmarks/scores.py judge --work FOLDER [--model M] [--device D] [--precision P]

DATA is the folder of collections. `candidates` writes FOLDER/NAME.candidates.jsonl.gz for each collection: a query a
line, with its documents' texts, their grades, and what each first stage scored them. `judge` writes
FOLDER/NAME.scores.jsonl, a query a line, without texts. Both go on where they were interrupted.

Development collections may be fitted to, test collections are measured only. "home" is what the checkpoint was made
for, questions on web or Wikipedia passages; "away" is the rest. semeval-cqa is halved by its original questions.
"""

from __future__ import annotations

import gzip
import json
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from darl_rerank import Reranker, icecat
from darl_rerank.files import atomic_write
from darl_rerank.trec.corpora import load_documents, read_corpus
from darl_rerank.trec.qrels import Qrels, read_qrels
from darl_rerank.trec.runs import Run, read_run
from darl_rerank.trec.topics import read_topics

SEED = 0
# Queries judged together: enough for full batches, few enough to lose little when interrupted.
TOGETHER = 8


@dataclass(frozen=True, slots=True)
class Collection:
    """What is judged of one collection.

    Attributes:
        name: of its results.
        role: "dev" or "test".
        home: whether the checkpoint was made for such pairs.
        folder: in DATA, if not `name`.
        runs: first stages whose runs the folder holds; BM25 over the corpus if none.
        queries: how many, drawn at random; all if None.
        depth: documents of each first stage.
        only: which query ids may be drawn.
        judged: whether judged documents that no first stage found are judged too, for grades.
    """

    name: str
    role: str
    home: bool
    folder: str = ""
    runs: tuple[str, ...] = ()
    queries: int | None = None
    depth: int = 50
    only: Callable[[str], bool] = lambda qid: True
    judged: bool = False


def forum_half(second: bool) -> Callable[[str], bool]:
    """Whether a question of semeval-cqa (Q201_R23 …) is of the second half of the original questions, Q259 on."""
    return lambda qid: (int(qid[1:4]) > 258) == second


COLLECTIONS = (
    Collection("trec-dl-2021", "dev", True, runs=("bm25", "splade-pp"), depth=100, judged=True),
    Collection("trec-dl-2019", "test", True, runs=("bm25", "splade-pp", "tas-b", "repllama"), depth=100, judged=True),
    Collection("icecat", "test", False, depth=100, judged=True),
    Collection("semeval-cqa", "test", False, queries=120, only=forum_half(True)),
    Collection("semeval-cqa-dev", "dev", False, folder="semeval-cqa", queries=80, only=forum_half(False)),
    Collection("medquad", "test", False, queries=120),
    Collection("msmarco-sample", "dev", True, queries=150, only=lambda qid: qid.startswith("dev")),
    Collection("natural-questions", "dev", True, queries=100, only=lambda qid: qid.startswith("dev")),
    Collection("wiki-qa-mix", "dev", True, queries=100),
    Collection("selqa", "dev", True, queries=80),
    Collection("msrd", "dev", False, queries=120),
    Collection("product-questions", "dev", False, queries=100),
)


@dataclass(frozen=True, slots=True)
class Judged:
    """One query's documents as judged, d of them.

    Attributes:
        qid, docids: their ids.
        grades: people's, -1 where nobody judged, shape (d,).
        stages: by first stage the indices of its documents, best first, and their scores.
        logits: shape (d, K).
        probabilities: calibrated as the checkpoint was when it judged, shape (d, K).
        novelty: shape (d,).
    """

    qid: str
    docids: list[str]
    grades: NDArray[np.int64]
    stages: dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]]
    logits: NDArray[np.float64]
    probabilities: NDArray[np.float64]
    novelty: NDArray[np.float64]


def read_scores(work: Path, name: str) -> list[Judged]:
    """What `judge` wrote of a collection."""
    found = []
    for line in (work / f"{name}.scores.jsonl").read_text("utf-8").splitlines():
        values = json.loads(line)
        stages = {
            stage: (np.array([i for i, _ in hits], dtype=np.int64), np.array([score for _, score in hits]))
            for stage, hits in values["stages"].items()
        }
        arrays = (np.array(values[name], dtype=np.float64) for name in ("logits", "probabilities", "novelty"))
        found.append(Judged(values["qid"], values["docids"], np.array(values["grades"]), stages, *arrays))
    return found


@click.group(help=__doc__)
def main() -> None: ...


@main.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--work", type=click.Path(path_type=Path), required=True)
@click.option("--only", help="Names of collections, with commas between.")
@click.option("--without-dense", is_flag=True, help="Of Icecat BM25 alone.")
@click.option("--queries", type=int, help="Of each collection at most so many, for a trial.")
@click.option("--depth", type=int, help="Documents of each first stage at most, and no others, for a trial.")
def candidates(
    data: Path, work: Path, only: str | None, without_dense: bool, queries: int | None, depth: int | None
) -> None:
    work.mkdir(parents=True, exist_ok=True)
    for known in COLLECTIONS:
        collection = known if depth is None else replace(known, judged=False)
        output = work / f"{collection.name}.candidates.jsonl.gz"
        if output.is_file() or (only and collection.name not in only.split(",")):
            continue
        folder = data / (collection.folder or collection.name)
        topics = dict(islice(drawn(collection, folder).items(), queries))
        qrels = icecat.judgements() if collection.name == "icecat" else read_qrels(qrels_file(folder))
        stages = first_stages(collection, folder, topics, without_dense=without_dense)
        if depth is not None:
            stages = {name: {qid: run.get(qid, [])[:depth] for qid in topics} for name, run in stages.items()}
        wanted = {qid: candidate_ids(collection, stages, qrels, qid) for qid in topics}
        if collection.name == "icecat":
            corpus = {product.docid: product for product in icecat.read_products()}
        else:
            ids = {docid for docids in wanted.values() for docid in docids}
            corpus = load_documents(folder / "corpus.jsonl.gz", ids)
        with atomic_write(output, "wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", mtime=0) as stream:
            for qid, query in topics.items():
                docids = [docid for docid in wanted[qid] if docid in corpus and corpus[docid].full_text]
                place = {docid: i for i, docid in enumerate(docids)}
                line = {
                    "qid": qid, "query": query, "docids": docids,
                    "texts": [corpus[docid].full_text for docid in docids],
                    "grades": [qrels.get(qid, {}).get(docid, -1) for docid in docids],
                    "stages": {
                        name: [[place[hit.docid], hit.score] for hit in run.get(qid, ()) if hit.docid in place]
                        for name, run in stages.items()
                    },
                }  # fmt: skip
                stream.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
        pairs = sum(map(len, wanted.values()))
        click.echo(f"{collection.name}: {len(topics)} queries, {pairs:,} pairs", err=True)


def qrels_file(folder: Path) -> Path:
    plain = folder / "qrels.txt"
    return plain if plain.is_file() else folder / "qrels.txt.gz"


def drawn(collection: Collection, folder: Path) -> dict[str, str]:
    if collection.name == "icecat":
        return icecat.queries()
    topics = read_topics(folder / "topics.tsv")
    usable = sorted(qid for qid in topics if collection.only(qid))
    if collection.queries is not None and collection.queries < len(usable):
        usable = sorted(random.Random(f"{SEED}/{collection.name}").sample(usable, collection.queries))
    return {qid: topics[qid] for qid in usable}


def first_stages(
    collection: Collection, folder: Path, topics: Mapping[str, str], *, without_dense: bool
) -> dict[str, Run]:
    """Runs by first stage, each with up to `depth` documents a query."""
    depth = collection.depth
    if collection.runs:
        read = {name: read_run(folder / "runs" / f"{name}.trec") for name in collection.runs}
        return {name: {qid: run.get(qid, [])[:depth] for qid in topics} for name, run in read.items()}
    from darl_rerank.adapters.lucene import build_lucene_index, lucene_search

    if collection.name == "icecat":
        from darl_rerank.cli.catalogue import faiss_index, lucene_index

        if without_dense:
            return {"bm25": lucene_search(lucene_index(), topics, k=depth)}
        from first_stages import first_stages as three_stages

        return {
            {"BM25": "bm25"}.get(name, name): run
            for name, run in three_stages(topics, lucene_index(), faiss_index()).items()
        }
    with tempfile.TemporaryDirectory() as temporary:
        index = Path(temporary) / "index"
        documents = (document for document in read_corpus(folder / "corpus.jsonl.gz") if document.full_text)
        build_lucene_index(documents, index)
        return {"bm25": lucene_search(index, topics, k=depth)}


def candidate_ids(collection: Collection, stages: Mapping[str, Run], qrels: Qrels, qid: str) -> list[str]:
    found = dict.fromkeys(hit.docid for run in stages.values() for hit in run.get(qid, ()))
    return list(found | dict.fromkeys(qrels.get(qid, {}))) if collection.judged else list(found)


@main.command()
@click.option("--work", type=click.Path(path_type=Path), required=True)
@click.option("--only", help="Names of collections, with commas between.")
@click.option("--queries", type=click.IntRange(min=1), help="At most so many of each collection, drawn at random.")
@click.option("--model", help="A checkpoint; the default one if not given.")
@click.option("--engine", default="auto")
@click.option("--device")
@click.option("--precision")
def judge(
    work: Path,
    only: str | None,
    queries: int | None,
    model: str | None,
    engine: str,
    device: str | None,
    precision: str | None,
) -> None:
    reranker = Reranker.from_pretrained(model, engine=engine, device=device, precision=precision, exit="off")
    for collection in COLLECTIONS:
        source = work / f"{collection.name}.candidates.jsonl.gz"
        if not source.is_file() or (only and collection.name not in only.split(",")):
            continue
        output = work / f"{collection.name}.scores.jsonl"
        done = sum(1 for _ in whole_lines(output))
        with gzip.open(source, "rt", encoding="utf-8") as stream:
            whole = [json.loads(line) for line in stream]
        if queries is not None and queries < len(whole):
            whole = [whole[i] for i in sorted(random.Random(SEED).sample(range(len(whole)), queries))]
        todo = whole[done:]
        with output.open("a", encoding="utf-8") as stream:
            for start in tqdm(range(0, len(todo), TOGETHER), desc=collection.name, mininterval=10):
                some = todo[start : start + TOGETHER]
                scores = reranker.score_pairs([(query["query"], text) for query in some for text in query["texts"]])
                end = 0
                for query in some:
                    part = scores[slice(end, end := end + len(query["texts"]))]
                    assert part.novelty is not None
                    line = {
                        **{name: query[name] for name in ("qid", "docids", "grades", "stages")},
                        "logits": rounded(part.logits), "probabilities": rounded(part.probabilities),
                        "novelty": rounded(part.novelty),
                    }  # fmt: skip
                    stream.write(json.dumps(line) + "\n")
                stream.flush()
    facts = {"fingerprint": reranker.fingerprint, "device": device or "auto"}
    with atomic_write(work / "scores.json") as stream:
        json.dump(facts, stream)


def whole_lines(path: Path) -> Iterator[str]:
    """The lines of a file that were written to their end; what comes after is cut off."""
    if not path.is_file():
        return
    data = path.read_bytes()
    kept = data[: data.rfind(b"\n") + 1]
    if len(kept) < len(data):
        path.write_bytes(kept)
    yield from kept.decode().splitlines()


def rounded(values: NDArray[Any]) -> list[Any]:
    result: list[Any] = np.round(values.astype(np.float64), 6).tolist()
    return result


if __name__ == "__main__":
    main()
