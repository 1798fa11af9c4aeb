"""Writes docs/tutorial.ipynb from docs/tutorial.md, so that page and notebook are the same.

    python docs/make_notebook.py

Python blocks and the commands that the page's test runs become cells; what a block prints is left out, as the notebook
prints it itself.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("tutorial.md")
NOTEBOOK = PAGE.with_suffix(".ipynb")
_BLOCK = re.compile(r"^```(python|sh run)\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
_PRINTED = re.compile(r"^prints\n\n```text\n.*?^```\n", re.MULTILINE | re.DOTALL)
_LINK_TO_ITSELF = re.compile(r"\nThe same as a notebook: .*")


def notebook(page: str) -> dict[str, Any]:
    """The page as a notebook in format 4.5."""
    page = _LINK_TO_ITSELF.sub("", _PRINTED.sub("", page))
    cells: list[dict[str, Any]] = []
    end = 0
    for block in _BLOCK.finditer(page):
        cells += _text(page[end : block.start()])
        code = block[2].rstrip("\n")
        if block[1] != "python":
            code = "\n".join("!" + line for line in code.splitlines())
        cells.append({"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": [], "source": code})
        end = block.end()
    cells += _text(page[end:])
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    python = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": python}, "nbformat": 4, "nbformat_minor": 5}


def _text(markdown: str) -> list[dict[str, Any]]:
    markdown = re.sub(r"\n{3,}", "\n\n", markdown).strip()
    return [{"cell_type": "markdown", "metadata": {}, "source": markdown}] if markdown else []


def text() -> str:
    return json.dumps(notebook(PAGE.read_text("utf-8")), ensure_ascii=False, indent=1) + "\n"


if __name__ == "__main__":
    NOTEBOOK.write_text(text(), "utf-8")
