"""The command line: one click command a file, loaded when it is called for.

Exit codes: 0 done, 1 failed, 2 bad usage, 3 bad input, 4 missing dependency, 5 failed check, 130 interrupted
(Ctrl-C or SIGTERM).
"""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import threading
from difflib import get_close_matches
from importlib import import_module
from typing import Any

import click

from .. import __version__
from ..errors import DarlRerankError
from .terminal import add_quiet, logging_on_stderr

log = logging.getLogger(__name__)

# After so many seconds a process that was asked to stop and still runs is asked again: enough to leave a state to go on
# from, less than what batch systems wait before they kill.
_AGAIN = 5.0

# Command name: its one-line help, shown without importing the command's file; what is tried first stands first.
_COMMANDS = {
    "demo": "Rerank lists that come with the package, before and after.",
    "doctor": "Say what is installed, what is missing and what to do.",
    "rerank": "Rerank a TREC run.",
    "search": "Retrieve and rerank from the terminal.",
    "serve": "Answer every client of a reranking API over HTTP.",
    "index": "Index a corpus with Lucene or FAISS.",
    "corpus-to-parquet": "Write a corpus as Parquet sorted by id, for jobs on a cluster.",
    "evaluate": "Measure runs, or a model on graded pairs.",
    "train": "Train with DaRL.",
    "calibrate": "Refit a checkpoint's calibration on graded pairs.",
    "select": "Choose unlabelled pairs worth labelling.",
    "drift": "Say whether traffic is what a checkpoint was calibrated on.",
    "exits": "Let irrelevant documents leave a checkpoint's model early.",
    "export": "Export a checkpoint to ONNX and prove parity.",
    "init": "Make an untrained checkpoint that grades zero-shot.",
    "push": "Upload a checkpoint to the Hugging Face hub.",
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = cmd_name.replace("-", "_")
        command: click.Command = getattr(import_module(f".{module}", __name__), module)
        add_quiet(command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            if near := get_close_matches(args[0], _COMMANDS, n=1):
                raise click.UsageError(f"{error.message} Did you mean {near[0]!r}?", ctx) from error
            raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        with logging_on_stderr():
            try:
                return super().invoke(ctx)
            except DarlRerankError as error:
                log.error("%s", error)
                ctx.exit(error.exit_code)
            except OSError as error:
                if isinstance(error, BrokenPipeError):
                    raise
                log.error("%s", f"{error.filename or ''}: {error.strerror or error}".removeprefix(": "))
                ctx.exit(DarlRerankError.exit_code)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="darl-rerank")
def cli() -> None:
    """Graded-relevance reranking with LLMs fine-tuned by DaRL."""


def interrupt(number: int, frame: object) -> None:
    """Signal handler: KeyboardInterrupt now, and again while the process goes on.

    Python drops what is raised in a destructor, where a handler may happen to run.
    """
    again = threading.Timer(_AGAIN, os.kill, [os.getpid(), number])
    again.daemon = True
    again.start()
    raise KeyboardInterrupt


def main() -> None:
    """The entry point of the `darl-rerank` command."""
    for stream in (sys.stdout, sys.stderr):
        # A title that the terminal can't write costs that title a few characters, not the command.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    # What stops containers and batch jobs: like Ctrl-C it has to leave no temporary files, and state to go on from.
    signal.signal(signal.SIGTERM, interrupt)
    try:
        status = cli(standalone_mode=False)
    except click.exceptions.Abort:
        # It is on its way out: `interrupt` need not ask again.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        click.echo("Interrupted.", err=True)
        status = 130
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    sys.exit(status if isinstance(status, int) else 0)
