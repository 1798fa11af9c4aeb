"""Every `darl-rerank` command in README and docs/ exists, with its options, and takes the choices given."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import click
import pytest

from darl_rerank.cli import cli

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# A line of a block that begins with the command, also in a systemd unit.
_LINE = re.compile(r"^\s*(?:ExecStart=\S*/)?darl-rerank (.*)$")


def commands(page: Path) -> list[list[str]]:
    """The words after `darl-rerank` of each command in the page's blocks: shell, container file and systemd unit."""
    found = []
    for line in page.read_text("utf-8").replace("\\\n", " ").splitlines():
        if line.startswith('CMD ["darl-rerank"'):
            found.append(json.loads(line.removeprefix("CMD "))[1:])
        elif match := _LINE.match(line):
            found.append(shlex.split(re.split(r" \| | && | > ", match[1])[0], comments=True))
    return found


def faults(words: list[str]) -> str | None:
    """What is wrong with a command's words; None if nothing is."""
    command = cli.get_command(click.Context(cli), words[0])
    if command is None:
        return None if words[0].startswith("--") else f"no command {words[0]}"
    context = click.Context(command)
    try:
        given, _, _ = command.make_parser(context).parse_args([word for word in words[1:] if word != "…"])
        for parameter in command.params:
            if isinstance(parameter.type, click.Choice) and parameter.name in given:
                parameter.type_cast_value(context, given[parameter.name])
    except click.UsageError as error:
        return error.format_message()
    return None


ALL = [(page, words) for page in PAGES for words in commands(page)]


@pytest.mark.parametrize(("page", "words"), ALL, ids=[f"{p.stem}: {' '.join(w)}"[:70] for p, w in ALL])
def test_a_command_of_a_page_has_options_that_exist(page: Path, words: list[str]) -> None:
    assert faults(words) is None


def test_the_pages_have_commands_and_a_wrong_one_is_found() -> None:
    assert len(ALL) > 30
    assert len([words for page, words in ALL if page.stem == "serving" and words[0] == "serve"]) >= 3
    assert faults(["serve", "--prot", "8080"]) is not None
    assert faults(["servee"]) is not None
    assert faults(["serve", "--engine", "tensorflow"]) is not None
    assert faults(["serve", "model", "--port", "8080", "--engine", "torch"]) is None
