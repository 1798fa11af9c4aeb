"""`darl-rerank index`: a corpus into a Lucene or FAISS index that the other commands read."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .terminal import json_option, print_json

if TYPE_CHECKING:
    from darl_rerank.adapters.faiss_index import Kind
    from darl_rerank.adapters.indexable import Indexed, Missing

    from ..trec.corpora import Document

_Command = TypeVar("_Command", bound=Callable[..., Any])

log = logging.getLogger(__name__)


@click.group()
def index() -> None:
    """Index a corpus with Lucene or FAISS.

    CORPUS is JSONL (an id, a title if there is one, a text) or TSV (id, text or id, title, text), plain or gzip.
    FOLDER is made whole or not at all.
    """


def _common(command: _Command) -> _Command:
    """The arguments CORPUS and FOLDER and the options that both kinds of index have."""
    options = [
        click.argument("corpus", type=click.Path(path_type=Path)),
        click.argument("folder", type=click.Path(path_type=Path)),
        click.option(
            "--missing",
            type=click.Choice(["skip", "error"]),
            default="skip",
            show_default=True,
            help="What to do with a line that is no document, a document without text, or an id given before.",
        ),
        click.option("--overwrite", is_flag=True, help="Replace what is there."),
        json_option,
    ]
    for option in reversed(options):
        command = option(command)
    return command


@index.command()
@_common
def lucene(corpus: Path, folder: Path, missing: Missing, overwrite: bool, as_json: bool) -> None:
    """Index CORPUS with Lucene, through Pyserini: words, ranked by BM25."""
    from darl_rerank.adapters.lucene import build_lucene_index

    from ..trec.lines import Faults, read_lines

    # Counted first, for the time left: reading is quick beside indexing.
    total = sum(1 for _ in read_lines(corpus, Faults(corpus)))
    reader = _Reader(corpus, missing)
    indexed = build_lucene_index(reader, folder, missing=missing, total=total, overwrite=overwrite)
    reader.report(folder, indexed, as_json=as_json)


@index.command()
@_common
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
def faiss(
    corpus: Path, folder: Path, missing: Missing, overwrite: bool, as_json: bool, encoder: str, kind: Kind,
    batch_size: int,
) -> None:  # fmt: skip
    """Encode CORPUS and index the vectors with FAISS.

    An interrupted command goes on with encoding when the same command is given again.
    """
    from darl_rerank.adapters.faiss import build

    reader = _Reader(corpus, missing)
    indexed = build(
        reader, folder, missing=missing, encoder=encoder, kind=kind, batch_size=batch_size, overwrite=overwrite
    )  # fmt: skip
    reader.report(folder, indexed, as_json=as_json)


class _Reader:
    """The documents of a corpus; lines that are none are noted and passed over, or with --missing error an error."""

    def __init__(self, corpus: Path, missing: Missing) -> None:
        from ..trec.lines import Faults

        self._corpus = corpus
        self._faults = Faults(corpus)
        self._missing = missing

    def __iter__(self) -> Iterator[Document]:
        from ..trec.corpora import read_corpus

        yield from read_corpus(self._corpus, faults=None if self._missing == "error" else self._faults)
        if len(self._faults):
            log.warning(
                f"{len(self._faults):,} lines are no documents and were left out; the first: {self._faults.first}"
            )

    def report(self, folder: Path, indexed: Indexed, *, as_json: bool) -> None:
        if as_json:
            faults = {"faulty_lines": len(self._faults), "first_faulty_line": self._faults.first}
            print_json({"index": str(folder), **asdict(indexed), **faults})
        log.info(f"{folder}: {indexed.documents:,} documents indexed")
