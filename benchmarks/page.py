"""Pages whose tables are made from results/*.json.

Between `<!-- table: NAME -->` and `<!-- end -->` stands what the function NAME of the page's script makes; a table that
no result has yet is shown as "Not measured."
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import click
from provenance import RESULTS

from darl_rerank.errors import CheckFailedError
from darl_rerank.files import atomic_write

DOCS = RESULTS.parent / "docs"
NOT_MEASURED = "Not measured."
_MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
Maker = Callable[[], str | None]


def result(name: str) -> dict[str, Any] | None:
    """results/NAME.json, if it is there."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else None


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def source(values: dict[str, Any], file: str) -> str:
    """Where a table is from, in brackets."""
    at = values["provenance"]
    machine = at["machine"]
    versions = ", ".join(
        f"{package} {at['versions'][package]}"
        for package in ("torch", "transformers", "onnxruntime", "sentence-transformers")
        if package in at["versions"]
    )
    return (
        f"({machine['cpu']}, {machine['cores']} cores; {versions}; {at['date'][:10]}, commit {str(at['commit'])[:7]}; "
        f"`results/{file}.json`)"
    )


def percent(share: float | None, digits: int = 0) -> str:
    return "" if share is None else f"{share:.{digits}%}"


def filled(text: str, makers: Iterable[Maker]) -> str:
    """`text` with every marked place filled.

    Raises:
        KeyError: a place is named after no maker.
    """
    by_name = {make.__name__: make for make in makers}
    return _MARKED.sub(lambda m: f"{m[1]}\n{by_name[m[2]]() or NOT_MEASURED}\n\n{m[3]}", text)


def command(page: Path, makers: Sequence[Maker]) -> click.Command:
    """The command line of a page's script."""

    @click.command(help=f"Fill the tables of docs/{page.name} from results/*.json.")
    @click.option("--check", is_flag=True, help="write nothing; fail if the page is not up to date")
    def fill(check: bool) -> None:
        before = page.read_text("utf-8")
        after = filled(before, makers)
        if check and before != after:
            click.echo(f"{page.name} is not up to date: run its script without --check", err=True)
            raise SystemExit(CheckFailedError.exit_code)
        if before != after:
            with atomic_write(page) as stream:
                stream.write(after)

    return fill
