"""`darl-rerank drift`: is traffic what the model was calibrated on?"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import engine_options
from .terminal import json_option, print_json, print_table

if TYPE_CHECKING:
    from ..reranker import Reranker

log = logging.getLogger(__name__)

_STRANGEST = 5
_BLOCK = 512


@dataclass(frozen=True, slots=True)
class _Seen:
    """A pair of the traffic, as the model sees it; texts only where they were given."""

    qid: str
    docid: str
    novelty: float
    probabilities: list[float]


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--topics", type=click.Path(path_type=Path), help="The queries' texts, for TREC runs and --output.")
@click.option("--corpus", type=click.Path(path_type=Path), help="The documents' texts, for TREC runs and --output.")
@click.option("--depth", type=click.IntRange(min=1), default=10, show_default=True, help="Documents of each query.")
@click.option("--output", type=click.Path(path_type=Path), help="Write pairs to be graded here, as `select` does.")
@click.option("--budget", type=click.IntRange(min=1), default=100, show_default=True, help="How many, at most.")
@click.option("--per-query", type=click.IntRange(min=1), default=5, show_default=True, help="Of one query, at most.")
@json_option
@engine_options
def drift(
    model: Path, runs: tuple[Path, ...], topics: Path | None, corpus: Path | None, depth: int, output: Path | None,
    budget: int, per_query: int, as_json: bool, **engine: str | int | None,
) -> None:  # fmt: skip
    """Say whether the traffic of RUNS is what MODEL was calibrated on, by its novelty.

    RUNS are TREC runs, with --topics and --corpus, or what `rerank --details` wrote, which is judged already. With
    --output the most novel queries' first documents are written for people to grade; `calibrate` and `train` take the
    file back.
    """
    import numpy as np

    from ..errors import InputError
    from ..evaluation.drift import measure_drift
    from ..files import check_output_file, check_outputs_apart
    from .options import load_reranker

    if output is not None:
        check_output_file(output)
        check_outputs_apart([output], [*runs, topics, corpus])
        if topics is None or corpus is None:
            raise click.UsageError("--output needs the texts of the pairs: give --topics and --corpus")
    reranker = load_reranker(model=model, **engine)
    statistics = reranker.checkpoint.novelty
    if statistics is None:
        raise InputError("has no novelty statistics; `darl-rerank calibrate --novelty` gives it some", path=model)
    seen = [pair for run in runs for pair in _seen(run, reranker, topics, corpus, depth)]
    found = measure_drift(
        np.array([pair.novelty for pair in seen]), np.array([pair.qid for pair in seen]),
        int(statistics.settings["held_out_pairs"]),
    )  # fmt: skip
    if as_json:
        print_json(found.to_dict())
    else:
        rows = [
            ["pairs, queries", f"{found.pairs}, {found.queries}", ""],
            ["share above novelty 95", f"{found.above:.0%}", "5%"],
            ["mean novelty", f"{found.mean:.0f}", "50"],
            ["distance (Kolmogorov-Smirnov)", f"{found.distance:.3f}, p {found.p_value:.2g}", "0"],
            *(["most novel query" if i == 0 else "", qid, f"novelty {novelty:.0f}"]
              for i, (qid, novelty) in enumerate(found.strangest[:_STRANGEST])),
        ]  # fmt: skip
        print_table(["", "this traffic", "calibrated on"], rows)
        click.echo(
            "This traffic is not what the model was calibrated on: have some of its pairs graded, then calibrate."
            if found.drifted
            else "No sign of drift."
        )
    if output is not None:
        assert topics is not None
        assert corpus is not None
        order = [qid for qid, _ in found.strangest]
        count = _write(output, seen, order, topics, corpus, budget, per_query)
        log.info(f"{output}: {count} pairs to be graded")


def _seen(run: Path, reranker: Reranker, topics: Path | None, corpus: Path | None, depth: int) -> list[_Seen]:
    """The first documents of each query of a run or of `rerank --details`."""
    from ..trec.lines import read_lines

    first = next((line for _, line in read_lines(run)), "")
    if first.lstrip().startswith("{"):
        return _from_details(run, depth)
    if topics is None or corpus is None:
        raise click.UsageError(f"{run} is a TREC run: give --topics and --corpus, or what `rerank --details` wrote")
    return _from_run(run, reranker, topics, corpus, depth)


def _from_details(path: Path, depth: int) -> list[_Seen]:
    from ..trec.lines import Faults, read_lines

    faults = Faults(path)
    found: list[_Seen] = []
    for number, line in read_lines(path):
        try:
            values: dict[str, Any] = json.loads(line)
            if not values.get("judged", True) or int(values["rank"]) > depth:
                continue
            pair = _Seen(str(values["qid"]), str(values["docid"]), float(values["novelty"]), values["probabilities"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            faults.add(number, f"expected a line of `rerank --details` with a novelty: {type(error).__name__} {error}")
        else:
            found.append(pair)
    faults.check()
    return found


def _from_run(path: Path, reranker: Reranker, topics: Path, corpus: Path, depth: int) -> list[_Seen]:
    from ..offline import prepare, wanted_documents
    from ..progress import progress_bar
    from ..trec.corpora import load_documents
    from ..trec.runs import read_run
    from ..trec.topics import read_topics

    run = read_run(path)
    job = prepare(
        run, read_topics(topics), load_documents(corpus, wanted_documents(run, depth)), depth=depth, missing="skip"
    )
    if job.skipped:
        log.warning(f"{len(job.skipped)} documents without text were left out")
    pairs = [(qid, docid, text) for qid, documents in job.candidates.items() for docid, text in documents]
    found: list[_Seen] = []
    with progress_bar("judging", len(pairs), unit="pair") as bar:
        for start in range(0, len(pairs), _BLOCK):
            block = pairs[start : start + _BLOCK]
            scores = reranker.score_pairs([(job.queries[qid], text) for qid, _, text in block])
            assert scores.novelty is not None
            found += [
                _Seen(qid, docid, float(novelty), told.tolist())
                for (qid, docid, _), novelty, told in zip(block, scores.novelty, scores.probabilities, strict=True)
            ]
            bar.update(len(block))
    return found


def _write(
    output: Path, seen: list[_Seen], order: list[str], topics: Path, corpus: Path, budget: int, per_query: int
) -> int:
    """Pairs of the most novel queries, in the order in which the traffic has them, as a file for annotators."""
    from ..training.selection.annotation import Annotation, write_annotations
    from ..trec.corpora import load_documents
    from ..trec.graded_pairs import GradedPair
    from ..trec.topics import read_topics

    by_query: dict[str, list[_Seen]] = {}
    for pair in seen:
        by_query.setdefault(pair.qid, []).append(pair)
    chosen = [pair for qid in order for pair in by_query[qid][:per_query]][:budget]
    queries, documents = read_topics(topics), load_documents(corpus, {pair.docid for pair in chosen})
    return write_annotations(
        output,
        (
            Annotation(
                GradedPair(queries[p.qid], documents[p.docid].full_text, None, None, p.qid, p.docid),
                p.novelty, p.probabilities,
            )
            for p in chosen
            if p.qid in queries and p.docid in documents
        ),
    )  # fmt: skip
