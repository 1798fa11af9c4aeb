"""Made-up jobs: a run, its topics and a corpus, as large as wanted and the same every time."""

from __future__ import annotations

import json
import random
from itertools import count
from pathlib import Path

from darl_rerank.trec.corpora import Document
from darl_rerank.trec.parquet_corpus import write_parquet_corpus

_WORDS = ("laptop", "toner", "paper", "battery", "bag", "power", "supply", "cat", "lives", "garden", "hose", "printer")


def make_job(folder: Path, *, queries: int, depth: int, documents: int, words: int = 20, jsonl: bool = False) -> None:
    """Write run.trec, topics.tsv and corpus (Parquet; corpus.jsonl as well if wanted) into a folder.

    Args:
        folder: made if it is not there.
        queries, depth: how many queries the run has, each with so many documents.
        documents: of the corpus.
        words: of a document.
        jsonl: whether to write corpus.jsonl.
    """
    generator = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    corpus = [Document(f"d{i:07}", "", " ".join(generator.choices(_WORDS, k=words))) for i in range(documents)]
    write_parquet_corpus(corpus, folder / "corpus", overwrite=True, progress=False)
    if jsonl:
        lines = (json.dumps({"id": d.docid, "text": d.text}) + "\n" for d in corpus)
        (folder / "corpus.jsonl").write_text("".join(lines), "utf-8")
    places = count()
    with (folder / "run.trec").open("w") as run, (folder / "topics.tsv").open("w") as topics:
        for query in range(queries):
            topics.write(f"q{query}\t{' '.join(generator.choices(_WORDS, k=3))}\n")
            for rank in range(depth):
                run.write(f"q{query} Q0 {corpus[next(places) * 7 % documents].docid} {rank + 1} {depth - rank} made\n")
