"""The lists that `darl-rerank demo` reranks: queries drawn at random, each with BM25's first ten documents.

    python benchmarks/demo_data.py CANDIDATES DATA

CANDIDATES is the folder that benchmarks/scores.py writes, DATA that of the collections. Both collections are tests: the
model that ships was trained on neither, and nobody looked at results when drawing. Writes
darl_rerank/data/demo/NAME.jsonl.gz.
"""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import click

from darl_rerank.files import atomic_write
from darl_rerank.trec.qrels import read_qrels

OUTPUT = Path(__file__).resolve().parents[1] / "darl_rerank" / "data" / "demo"
QUERIES, DEPTH, SEED = 30, 10, 0


@click.command(help=__doc__)
@click.argument("candidates", type=click.Path(exists=True, path_type=Path))
@click.argument("data", type=click.Path(exists=True, path_type=Path))
def main(candidates: Path, data: Path) -> None:
    OUTPUT.mkdir(exist_ok=True)
    for name in ("medquad", "icecat"):
        with gzip.open(candidates / f"{name}.candidates.jsonl.gz", "rt") as stream:
            rows = [json.loads(line) for line in stream]
        qrels = read_qrels(data / name / "qrels.txt")
        drawn = random.Random(SEED).sample([row for row in rows if row["stages"].get("bm25")], QUERIES)
        lines = []
        for row in drawn:
            hits = sorted(row["stages"]["bm25"], key=lambda hit: -hit[1])[:DEPTH]
            documents = [
                {"id": row["docids"][place], "text": row["texts"][place], "score": round(score, 4)}
                for place, score in hits
            ]
            grades = qrels.get(row["qid"], {})
            lines.append({"qid": row["qid"], "query": row["query"], "documents": documents, "grades": grades})
        with atomic_write(OUTPUT / f"{name}.jsonl.gz", "wb") as target, gzip.GzipFile("", "wb", 9, target, 0) as packed:
            packed.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
        click.echo(f"{name}: {len(lines)} queries, {(OUTPUT / f'{name}.jsonl.gz').stat().st_size} bytes")


if __name__ == "__main__":
    main()
