"""Options that several commands share: which model, and what runs it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

if TYPE_CHECKING:
    from ..reranker import Reranker

log = logging.getLogger(__name__)


_Command = TypeVar("_Command", bound=Callable[..., Any])

engine_option = click.option(
    "--engine",
    type=click.Choice(["auto", "torch", "onnx"]),
    default="auto",
    show_default=True,
    help="What runs the model; auto takes the faster one of what is installed.",
)


def model_options(command: _Command) -> _Command:
    """Add --model, and what `engine_options` adds."""
    model = click.option(
        "--model",
        type=click.Path(path_type=Path),
        help="A checkpoint folder, or the name of one that ships.  [default: smollm2-darl]",
    )
    return model(engine_options(command))


def engine_options(command: _Command) -> _Command:
    """Add --engine, --device, --precision, --batch-tokens and --long-documents."""
    options = [
        engine_option,
        click.option("--device", help="cpu, cuda, cuda:1 …  [default: a GPU if there is one]"),
        click.option(
            "--precision", help="float32, bfloat16, float16, int8.  [default: the best the device has in hardware]"
        ),
        click.option("--batch-tokens", type=click.IntRange(min=1), help="Tokens that are run together."),
        click.option(
            "--long-documents",
            type=click.Choice(["truncate", "window"]),
            default="truncate",
            show_default=True,
            help="Cut a document that does not fit, or judge it window by window and take the best.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


# Commands that measure a model, or fit something to it, have no such option: they run all of it.
exit_option = click.option(
    "--exit",
    type=click.Choice(["auto", "off"]),
    default="auto",
    show_default=True,
    help="Let plainly irrelevant documents leave the model early, if it has exits; or run all layers for each.",
)

# A path, or a URL of a file system such as s3://bucket/file.
Place = Path | str


class PlaceParameter(click.ParamType[Place]):
    """A path, or (with "://" in it) a URL as it was given: a path would lose one of its slashes."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Place:
        return value if "://" in str(value) else Path(value)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        return click.Path().shell_complete(ctx, param, incomplete)


def ray_options(command: _Command) -> _Command:
    """Add --ray, --workers, --cpus-per-worker and --gpus-per-worker."""
    options = [
        click.option(
            "--ray",
            is_flag=False,
            flag_value="auto",
            metavar="[ADDRESS]",
            help="Run on a Ray cluster: host:port, auto (and --ray alone) for the one that this machine belongs to, "
            "local for one that ends with the command.",
        ),
        click.option(
            "--workers", type=click.IntRange(min=1), help="With --ray.  [default: as many as there is room for]"
        ),
        click.option(
            "--cpus-per-worker", type=click.FloatRange(min=0, min_open=True), help="CPUs, and threads.  [default: 1]"
        ),
        click.option("--gpus-per-worker", type=click.FloatRange(min=0), help="[default: 1 if the cluster has GPUs]"),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def depth_or_auto(_context: click.Context, _option: click.Parameter, value: str) -> int | Literal["auto"]:
    """A number of documents, or "auto"."""
    if value == "auto":
        return "auto"
    if not value.isdecimal() or int(value) < 1:
        raise click.BadParameter(f"expected a number of at least 1, or auto, got {value!r}")
    return int(value)


budget_option = click.option(
    "--budget-ms",
    type=click.FloatRange(min=0, min_open=True),
    help="Milliseconds for each query: documents are judged from the top of the list, the rest keeps its order behind.",
)


def rule_options(command: _Command) -> _Command:
    """Add --cut, --min-grade, --min-probability and --prevalence: which documents stay out, and whose shares count."""
    options = [
        click.option("--cut", help="Leave out what is below a fitted cut, such as 'recall 0.9 of relevant'."),
        click.option("--min-grade", help="Leave out documents of a lower grade than this."),
        click.option(
            "--min-probability",
            type=float,
            help="With --min-grade: leave out documents that are less likely of that grade or better.",
        ),
        click.option(
            "--prevalence",
            callback=shares_or_estimate,
            help="Share of each grade in your traffic, such as 0.4,0.3,0.2,0.1, the lowest first; or estimate.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def shares(_context: click.Context, _option: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """ "0.4,0.3,0.2,0.1" as numbers."""
    if value is None:
        return None
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"expected numbers with commas between, got {value!r}") from None


def shares_or_estimate(
    context: click.Context, option: click.Parameter, value: str | None
) -> tuple[float, ...] | str | None:
    """`shares`, or "estimate"."""
    return value if value == "estimate" else shares(context, option, value)


def load_reranker(**model: Any) -> Reranker:
    """The reranker that `model_options` and `exit_option` describe; says so if it is untrained."""
    from ..reranker import Reranker

    reranker = Reranker.from_pretrained(model.pop("model"), **{"exit": "off", **model})
    if not reranker.checkpoint.trained:
        log.info("Note: this checkpoint is untrained and grades zero-shot, from the grade words alone.")
    return reranker
