"""`darl-rerank serve`: the HTTP server."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from .options import engine_options, exit_option


@click.command()
@click.argument("model", type=click.Path(path_type=Path), required=False)
@engine_options
@exit_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for all.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 for any that is free.")
@click.option(
    "--api-key-env",
    metavar="NAME",
    help="Environment variable with the API key that clients must send, or several, separated by commas.",
)
@click.option(
    "--max-queue-tokens", type=click.IntRange(min=1), help="Tokens that may wait.  [default: 64 batches of the engine]"
)
@click.option(
    "--max-documents", type=click.IntRange(min=1), default=1000, show_default=True, help="Documents of one request."
)
@click.option("--max-body-mib", type=click.IntRange(min=1), default=16, show_default=True, help="Size of one request.")
@click.option(
    "--timeout-ms",
    type=click.IntRange(min=1),
    default=60_000,
    show_default=True,
    help="A request that is not answered within this time gets an error.",
)
@click.option(
    "--drain-s",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    help="Seconds that requests have to end after SIGTERM.",
)
@click.option("--model-name", help="What answers call the model.  [default: the name of its folder]")
@click.option(
    "--index",
    "indexes",
    type=click.Path(path_type=Path),
    multiple=True,
    help="For the page at /: an index to search, as `darl-rerank search` takes it; several are fused.",
)
@click.option("--demo", is_flag=True, help="On the page at /: the lists of `darl-rerank demo`, before and after.")
@click.option("--log-queries", is_flag=True, help="Write the text of queries into the access log.")
@click.option("--no-access-log", is_flag=True, help="Don't log requests.")
def serve(
    model: Path | None,
    host: str,
    port: int,
    api_key_env: str | None,
    max_queue_tokens: int | None,
    max_documents: int,
    max_body_mib: int,
    timeout_ms: int,
    drain_s: float,
    model_name: str | None,
    indexes: tuple[Path, ...],
    demo: bool,
    log_queries: bool,
    no_access_log: bool,
    **engine: str | int | None,
) -> None:  # fmt: skip
    """Answer the clients of Cohere, Jina, Voyage, TEI, vLLM and infinity over HTTP, with grades.

    MODEL is a checkpoint folder, or the name of one that ships; smollm2-darl if it is left out.

    SIGTERM ends it: it takes no more requests, answers those it has, and exits with 0.
    """
    from importlib.util import find_spec

    from ..errors import MissingDependencyError

    for module in ("starlette", "uvicorn", "prometheus_client"):
        if find_spec(module) is None:
            raise MissingDependencyError(module, "serve")
    from ..model.shipped import DEFAULT
    from ..serving.app import AppSettings, create_app
    from ..serving.server import address_of, listen, log_to_stderr
    from ..serving.server import serve as run
    from ..serving.service import Limits, Service
    from .demo import LISTS
    from .options import load_reranker
    from .search import open_first_stage

    settings = AppSettings(
        model_name=model_name or Path(model or DEFAULT).resolve().name,
        api_keys=_api_keys(api_key_env),
        log_queries=log_queries,
        first_stage=open_first_stage(indexes) if indexes else None,
        demo=[lists.for_page() for lists in LISTS] if demo else (),
    )
    limits = Limits(
        max_documents=max_documents,
        max_body_bytes=max_body_mib << 20,
        max_queue_tokens=max_queue_tokens,
        timeout_s=timeout_ms / 1000,
        drain_s=drain_s,
    )
    listener = listen(host, port)
    log_to_stderr(access=not no_access_log)
    about_page = " (open it in a browser for the demo)" if demo else ""
    service = Service(lambda: load_reranker(model=model, **engine), limits)
    run(
        create_app(service, settings),
        service,
        listener,
        on_listening=lambda: click.echo(f"darl-rerank listens on {address_of(listener)}{about_page}", err=True),
    )
    if service.loads:
        # C++ threads that torch still works in would abort an interpreter that shuts down around them.
        sys.stderr.flush()
        os._exit(0)


def _api_keys(name: str | None) -> tuple[str, ...]:
    if name is None:
        return ()
    keys = tuple(key.strip() for key in os.environ.get(name, "").split(",") if key.strip())
    if not keys:
        # Without a key the server would be open to all, which is the opposite of what was asked for.
        raise click.UsageError(f"--api-key-env: the environment variable {name} is not set or empty")
    return keys
