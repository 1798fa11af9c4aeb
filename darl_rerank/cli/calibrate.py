"""`darl-rerank calibrate`: refit a checkpoint's calibration on new graded pairs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import engine_option
from .options import shares as _shares
from .terminal import json_option, print_json, print_table

if TYPE_CHECKING:
    from ..model.checkpoint import Checkpoint
    from ..reranker import Reranker
    from ..training.model.temperature import CalibrationFit


log = logging.getLogger(__name__)


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("pairs", type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), required=True, help="The checkpoint folder to make.")
@click.option("--novelty/--no-novelty", help="Let the temperature follow novelty.  [default: if MODEL has novelty]",
              default=None)  # fmt: skip
@click.option("--bias", is_flag=True, help="Give each grade a bias too: for traffic with other shares of the grades.")
@click.option(
    "--keep-probabilities",
    is_flag=True,
    help="Leave temperature and biases as they are, and fit cuts and grades alone.",
)
@click.option(
    "--cut",
    "cuts",
    multiple=True,
    help="A cut to fit, such as 'recall 0.9 of relevant' or 'precision 0.8 of relevant'; may be repeated.",
)
@click.option(
    "--cost",
    type=click.Path(path_type=Path),
    help="JSON with K rows of K numbers, the cost of giving grade j to a pair of grade i: grades are then cut "
    "for the least cost.  [default: for quadratic kappa]",
)
@click.option(
    "--prevalence",
    callback=_shares,
    help="Share of each grade in the traffic to come, such as 0.4,0.3,0.2,0.1, if PAIRS have others.",
)
@click.option(
    "--traffic",
    type=click.Path(path_type=Path),
    help="JSONL of query and document, not graded, to estimate that share from.",
)
@engine_option
@click.option("--device", help="cpu, cuda …  [default: a GPU if there is one]")
@click.option("--overwrite", is_flag=True, help="Replace an existing checkpoint.")
@json_option
def calibrate(
    model: Path, pairs: Path, output: Path, novelty: bool | None, bias: bool, keep_probabilities: bool,
    cuts: tuple[str, ...], cost: Path | None,
    prevalence: tuple[float, ...] | None, traffic: Path | None, engine: str, device: str | None,
    overwrite: bool, as_json: bool,
) -> None:  # fmt: skip
    """Fit temperature, and its slope in novelty, of MODEL to PAIRS, a JSONL of query, document and grade.

    The temperature changes no order of grades and, without novelty, little of the order of documents: it makes the
    probabilities as sure as they are right. With --bias they also come as often as in PAIRS. These should be like the
    traffic to come, and nothing MODEL was trained on. Where one grade ends and the next begins is fitted with it.

    --cut fits a threshold that keeps a promise, on average over queries like those of PAIRS: so much of what is
    relevant is kept, or so much of what is kept is relevant. `rerank --cut` uses it.

    Early exits that MODEL has stay as they are; `exits` fits them anew.

    With --novelty a MODEL that has no novelty yet gets it: the pairs of half of the queries are then what it knows, and
    everything else is fitted to the others.
    """
    import numpy as np

    from ..errors import InputError
    from ..files import check_output_folder
    from ..model.decisions import Promise
    from ..reranker import Reranker
    from ..training.data.labels import label_matrix
    from ..training.decisions.decide import recalibrated
    from ..training.model.novelty_of_pairs import novelty_of_pairs
    from ..training.model.temperature import fit_calibration
    from ..trec.graded_pairs import read_graded_pairs

    check_output_folder(output, overwrite=overwrite)
    _check_together(
        keeps=keep_probabilities, fits=bias or novelty is not None, cuts=bool(cuts), given=prevalence is not None,
        estimated=traffic is not None,
    )  # fmt: skip
    costs = None if cost is None else _costs(cost)
    reranker = Reranker.from_pretrained(model, engine=engine, device=device, exit="off")
    checkpoint = reranker.checkpoint
    scale = checkpoint.scale
    promises = [Promise.parse(cut, scale) for cut in cuts]
    names = tuple(grade.name for grade in scale.grades)
    graded = read_graded_pairs(pairs, grades=len(scale), names=names)
    follows = checkpoint.novelty is not None if novelty is None else novelty
    fits_novelty = follows and checkpoint.novelty is None
    scores = reranker.score_pairs([(pair.query, pair.document) for pair in graded], features=fits_novelty)
    logits, strangeness = scores.logits, scores.novelty
    if fits_novelty:
        assert scores.features is not None
        statistics, held = novelty_of_pairs(scores.features, [pair.qid for pair in graded])
        checkpoint = checkpoint.replace(novelty=statistics)
        graded = [pair for pair, kept in zip(graded, held, strict=True) if kept]
        logits, strangeness = logits[held], statistics.score(scores.features[held])
    fit = None
    if not keep_probabilities:
        fit = fit_calibration(
            logits, label_matrix(graded, len(scale)), novelty=strangeness, with_novelty=follows, with_bias=bias
        )
    seen = np.unique([pair.hard_grade for pair in graded])
    if len(seen) < 2:
        raise InputError(f"all {len(graded)} pairs have grade {names[seen[0]]}: they say nothing of calibration",
                         path=pairs)  # fmt: skip
    facts: dict[str, Any] = {"pairs": len(graded)}
    if fit is not None:
        fit.checked()
        facts |= {"nll": [fit.nll_before, fit.nll_after], "ece": [fit.ece_before, fit.ece_after]}
    made = recalibrated(
        checkpoint.replace(provenance={**checkpoint.provenance, "calibrated_again": facts}),
        checkpoint.calibration if fit is None else fit.calibration,
        logits, np.array([pair.hard_grade for pair in graded]), np.array([pair.qid for pair in graded]),
        novelty=strangeness, promises=promises, cost=costs,
        prevalence=prevalence,
    )  # fmt: skip
    if traffic is not None:
        made = _for_traffic(made, reranker, traffic)
    made.save(output, overwrite=overwrite)
    if as_json:
        print_json({"checkpoint": str(output), "calibration": made.calibration.to_dict(),
                    "decisions": made.decisions.to_dict(scale), **facts})  # fmt: skip
    else:
        _show(made, fit)


def _check_together(*, keeps: bool, fits: bool, cuts: bool, given: bool, estimated: bool) -> None:
    """Raise a usage error for options that contradict each other."""
    if keeps and fits:
        raise click.UsageError("--keep-probabilities fits no temperature: give it without --bias and --novelty")
    if given and estimated:
        raise click.UsageError("give --prevalence or --traffic: both say the shares of the grades to come")
    if cuts and (given or estimated):
        raise click.UsageError("a cut holds for queries like those of PAIRS: fit it without --prevalence and --traffic")


def _show(made: Checkpoint, fit: CalibrationFit | None) -> None:
    names = [grade.name for grade in made.scale.grades]
    if fit is not None:
        rows = [
            ["NLL", f"{fit.nll_before:.4f}", f"{fit.nll_after:.4f}"],
            ["ECE", f"{fit.ece_before:.4f}", f"{fit.ece_after:.4f}"],
        ]
        print_table([f"on {fit.pairs} pairs", "before", "after"], rows)
    click.echo(str(made.calibration))
    shares = zip(names, made.calibration.prevalence, strict=True)
    click.echo("prevalence: " + ", ".join(f"{name} {share:.0%}" for name, share in shares))
    points = zip(names[1:], made.grade_cuts.points, strict=True)
    click.echo("grades: " + ", ".join(f"{name} from {point:.3f}" for name, point in points))
    for cut in made.decisions.cuts:
        click.echo(
            f"cut {cut.promise.text(made.scale)!r}: P({names[cut.promise.grade]} or better) >= {cut.threshold:.4f}, "
            f"fitted on {cut.facts['queries']} queries, keeps {cut.facts['kept']:.0%} of these pairs"
        )


def _for_traffic(checkpoint: Checkpoint, reranker: Reranker, path: Path) -> Checkpoint:
    """The checkpoint for the shares of the grades that its probabilities suggest for pairs that nobody graded."""
    from ..model.calibration import estimate_prevalence
    from ..trec.graded_pairs import read_graded_pairs

    unlabelled = [(pair.query, pair.document) for pair in read_graded_pairs(path, labels="ignored")]
    scores = reranker.score_pairs(unlabelled, features=checkpoint.novelty is not None)
    novelty = (
        None if checkpoint.novelty is None or scores.features is None else checkpoint.novelty.score(scores.features)
    )
    calibration = checkpoint.calibration
    told = calibration.probabilities(scores.logits, novelty)
    return checkpoint.replace(calibration=calibration.for_prevalence(estimate_prevalence(told, calibration.prevalence)))


def _costs(path: Path) -> Any:
    """The cost matrix of a JSON file; its shape and values are checked where it is used."""
    import json

    import numpy as np

    from ..errors import InputError

    try:
        return np.array(json.loads(path.read_text("utf-8")), dtype=np.float64)
    except OSError as error:
        raise InputError(f"can't be read: {error.strerror}", path=path) from error
    except (ValueError, TypeError) as error:
        raise InputError(f"expected JSON with K rows of K numbers: {error}", path=path) from error
