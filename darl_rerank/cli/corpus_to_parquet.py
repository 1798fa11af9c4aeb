"""`darl-rerank corpus-to-parquet`: a corpus whose documents are found by id, for jobs on a cluster."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from .terminal import json_option, print_json

log = logging.getLogger(__name__)


@click.command("corpus-to-parquet")
@click.argument("corpus", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--overwrite", is_flag=True, help="Replace what is there.")
@json_option
def corpus_to_parquet(corpus: Path, folder: Path, overwrite: bool, as_json: bool) -> None:
    """Write CORPUS as Parquet files sorted by id into FOLDER, for `darl-rerank rerank --corpus FOLDER`.

    CORPUS is JSONL (an id, a title if there is one, a text) or TSV (id, text or id, title, text), plain or gzip. Memory
    stays bounded; FOLDER's disk needs room for twice the texts meanwhile. FOLDER is made whole or not at all.
    """
    from ..errors import InputError
    from ..trec.corpora import read_corpus
    from ..trec.lines import Faults
    from ..trec.parquet_corpus import write_parquet_corpus

    faults = Faults(corpus)
    try:
        made = write_parquet_corpus(read_corpus(corpus, faults=faults), folder, overwrite=overwrite)
    except InputError as error:
        if not len(faults):
            raise
        # Not one of its lines is a document: why, says the first.
        raise InputError(f"{error}; the first line: {faults.first}") from error
    if len(faults):
        log.warning(f"{len(faults):,} lines are no documents and were left out; the first: {faults.first}")
    if made.repeated:
        log.warning(f"{made.repeated:,} documents had an id that was there before and were left out")
    if as_json:
        print_json({
            "corpus": str(folder), "documents": made.documents, "repeated": made.repeated,
            "faulty_lines": len(faults), "first_faulty_line": faults.first,
        })  # fmt: skip
    log.info(f"{folder}: {made.documents:,} documents")
