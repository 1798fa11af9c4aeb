"""`darl-rerank index`: a corpus into a Lucene or FAISS index that the other commands read."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from darl_rerank.adapters.faiss_index import Kind


log = logging.getLogger(__name__)


@click.group()
def index() -> None:
    """Index a corpus with Lucene or FAISS.

    CORPUS is JSONL (an id, a title if there is one, a text) or TSV (id, text or id, title, text), plain or gzip.
    FOLDER is made whole or not at all.
    """


@index.command()
@click.argument("corpus", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--overwrite", is_flag=True, help="Replace what is there.")
def lucene(corpus: Path, folder: Path, overwrite: bool) -> None:
    """Index CORPUS with Lucene, through Pyserini: words, ranked by BM25."""
    from darl_rerank.adapters.lucene import build_lucene_index

    from ..trec.corpora import read_corpus
    from ..trec.lines import read_lines

    # Counted first, for the time left: reading is quick beside indexing.
    total = sum(1 for _ in read_lines(corpus))
    count = build_lucene_index(read_corpus(corpus), folder, total=total, overwrite=overwrite)
    log.info(f"{folder}: {count} documents indexed")


@index.command()
@click.argument("corpus", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--encoder",
    default="minilm",
    show_default=True,
    help='"minilm" (all-MiniLM-L6-v2 out of a package), or a folder or hub id for sentence-transformers.',
)
@click.option(
    "--kind",
    type=click.Choice(["auto", "flat", "hnsw"]),
    default="auto",
    show_default=True,
    help="Compare with every vector, or walk a graph; auto is flat up to 50,000 documents.",
)
@click.option("--batch-size", type=click.IntRange(min=1), default=64, show_default=True, help="Texts encoded together.")
@click.option("--overwrite", is_flag=True, help="Replace what is there.")
def faiss(corpus: Path, folder: Path, encoder: str, kind: Kind, batch_size: int, overwrite: bool) -> None:
    """Encode CORPUS and index the vectors with FAISS.

    An interrupted command goes on with encoding when the same command is given again.
    """
    from darl_rerank.adapters.faiss import build

    from ..trec.corpora import read_corpus

    count = build(
        read_corpus(corpus), folder, encoder=encoder, kind=kind, batch_size=batch_size, overwrite=overwrite
    )  # fmt: skip
    log.info(f"{folder}: {count} documents indexed")
