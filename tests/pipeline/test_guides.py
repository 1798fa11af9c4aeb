"""The guides in docs/ do what they say: their code blocks run, in order, in an empty folder, on the tiny model.

Each ```python block runs; a ```sh block runs if its first line reads ```sh run, and may hold `darl-rerank` commands
only. A block that is not to run (it trains for hours, it needs a GPU) says ```python no-run. The blocks of one guide
share their names, and the default model is the tiny one.

A guide that starts Java has a process of its own, as its reader has: Java can be started once, and in one folder. All
others share one, which spares a start of Python and torch for each.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import darl_rerank.model.shipped
from darl_rerank.cli import cli
from darl_rerank.model.shipped import DEFAULT

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "docs"))

import make_notebook

DOCS = Path(__file__).resolve().parents[2] / "docs"
_BLOCK = re.compile(r"^```([^\n`]*)\n(.*?)^```\s*$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One code block: its kind, such as "python" or "sh run", its text, and the line it starts on."""

    kind: str
    code: str
    line: int


def blocks(guide: Path) -> list[Block]:
    """The blocks of a guide that run."""
    text = guide.read_text("utf-8")
    found = [Block(m[1].strip(), m[2], text.count("\n", 0, m.start(2)) + 1) for m in _BLOCK.finditer(text)]
    return [block for block in found if block.kind in ("python", "sh run")]


GUIDES = [guide for guide in sorted(DOCS.glob("*.md")) if blocks(guide)]


_JAVA = re.compile(r"pyserini|lucene|pyterrier|darl-rerank (index|search)", re.IGNORECASE)
WITH_JAVA = [guide for guide in GUIDES if any(_JAVA.search(block.code) for block in blocks(guide))]
PROCESSES = {guide.stem: [guide] for guide in WITH_JAVA} | {
    "without-java": [guide for guide in GUIDES if guide not in WITH_JAVA]
}


@pytest.mark.parametrize("name", PROCESSES)
def test_the_code_of_guides_runs(name: str, tiny_model: Path, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, __file__, str(tiny_model), *map(str, PROCESSES[name])],
        cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-6000:]


def run_guides(model: Path, guides: list[Path]) -> None:
    """Run guides in this process, each in a new folder of its own; the model that ships is `model`."""
    start = Path.cwd()
    darl_rerank.model.shipped.SHIPPED = start / "models"
    shutil.copytree(model, start / "models" / DEFAULT)
    for guide in guides:
        folder = start / guide.stem
        folder.mkdir()
        os.chdir(folder)
        run_guide(guide)


def run_guide(guide: Path) -> None:
    """Run the blocks of a guide in this process, of the tutorial's collection a part."""
    names: dict[str, Any] = {"__name__": "guide"}
    for block in blocks(guide):
        if block.kind == "python":
            # Empty lines in front, so that a traceback names the guide's own line.
            code = block.code.replace("QUERIES = 135", "QUERIES = 6")
            exec(compile("\n" * (block.line - 1) + code, str(guide), "exec"), names)
        else:
            run_commands(guide, block)


def run_commands(guide: Path, block: Block) -> None:
    """Run the `darl-rerank` commands of a block."""
    for command in block.code.replace("\\\n", " ").splitlines():
        if not command.strip():
            continue
        program, *words = shlex.split(command, comments=True) or [""]
        place = f"{guide.name}:{block.line}: {command}"
        if program != "darl-rerank":
            sys.exit(f"{place}: only darl-rerank runs here, not {program!r}")
        result = CliRunner().invoke(cli, words)
        if result.exit_code != 0:
            sys.exit(f"{place}\n{result.output}\n{result.exception!r}")


def test_the_notebook_is_the_tutorial() -> None:
    """Its cells are the blocks that the guides' test runs; docs/make_notebook.py writes it."""
    written = make_notebook.NOTEBOOK.read_text("utf-8")
    assert written == make_notebook.text()
    cells = [cell["source"] for cell in json.loads(written)["cells"] if cell["cell_type"] == "code"]
    commands = [command for cell in cells if cell.startswith("!") for command in cell.splitlines()]
    assert [block.code.rstrip() for block in blocks(DOCS / "tutorial.md")] == [re.sub("(?m)^!", "", c) for c in cells]
    assert "!darl-rerank train --pairs train.jsonl --output my-model" in commands


def test_the_adapters_have_guides() -> None:
    assert {"pyserini.md", "faiss.md"} <= {guide.name for guide in GUIDES}
    assert {"pyserini.md", "pyterrier.md"} <= {guide.name for guide in WITH_JAVA}


if __name__ == "__main__":
    run_guides(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
