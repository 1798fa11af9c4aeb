"""Links of the documentation lead somewhere, its pages are in the site's navigation, its errors are the code's."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import click
import pytest

from darl_rerank.cli import cli
from darl_rerank.errors import MissingDependencyError
from darl_rerank.model import smollm2
from darl_rerank.training.recipe import settings

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "docs"))

import make_reference

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
# What `make docs` copies beside the pages.
COPIED = {"changelog.md": "CHANGELOG.md", "model-card.md": "darl_rerank/data/models/smollm2-darl/README.md"}
# The only way out of docs/, which `make docs` leads to the copy.
OUTSIDE = "../darl_rerank/data/models/smollm2-darl/README.md"

_FENCE = re.compile(r"^( *)(```+).*?^\1\2`*\s*$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.*?) *#*$", re.MULTILINE)


def prose(text: str) -> str:
    """A page without its code: neither blocks nor spans hold links or headings."""
    return re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "code", _FENCE.sub("", text))


def anchors(text: str) -> list[str]:
    """What the headings of a page are linked as, by GitHub and by the site alike."""
    headings = _HEADING.findall(_FENCE.sub("", text))
    words = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return [re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading.lower())) for heading in words]


def dead_links(page: Path) -> Iterator[str]:
    """The relative links of a page whose file or heading is not there, or whose heading is there twice."""
    for link in _LINK.findall(prose(page.read_text("utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists():
            yield f"{link}: no such file"
        elif anchor and anchors(target.read_text("utf-8")).count(anchor) != 1:
            yield f"{link}: not one such heading"


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name
)
def test_links_lead_somewhere(page: Path) -> None:
    assert list(dead_links(page)) == []


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# One, two\n\n```sh\n# three\n```\n\n## Twice\n\n## Twice\n", "utf-8")
    page = tmp_path / "page.md"
    links = (
        "there.md",
        "there.md#one-two",
        "https://example.org/x",
        "gone.md",
        "there.md#three",
        "there.md#twice",
        "#x",
    )
    page.write_text("\n".join(f"[a]({link})" for link in links) + "\n`[a](code.md)`\n", "utf-8")
    assert [fault.partition(":")[0] for fault in dead_links(page)] == list(links[3:])


def test_pages_link_only_to_what_the_site_has() -> None:
    site = {file.relative_to(ROOT / "docs").as_posix() for file in (ROOT / "docs").rglob("*")} | {OUTSIDE}
    for page in PAGES:
        links = [link.partition("#")[0] for link in _LINK.findall(prose(page.read_text("utf-8"))) if ":" not in link]
        assert [link for link in links if link and link not in site] == [], page.name


def test_every_page_is_in_the_navigation_once() -> None:
    def pages(entry: Any) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        else:
            for part in entry.values() if isinstance(entry, dict) else entry:
                yield from pages(part)

    project = tomllib.loads((ROOT / "zensical.toml").read_text("utf-8"))["project"]
    assert sorted(pages(project["nav"])) == sorted([*(page.name for page in PAGES), *COPIED, *make_reference.PAGES])
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for name, source in COPIED.items():
        assert f"cp {source} build/docs/{name}" in makefile


def test_the_reference_has_every_command_and_every_key_of_a_recipe() -> None:
    commands = make_reference.commands_page()
    for name in cli.list_commands(click.Context(cli)):
        assert f"\n## {name}" in commands
    assert "| `--fuse [auto\\|rrf]` | Fuse the new order" in commands
    recipe = make_reference.recipe_page()
    assert "| `learning_rate` | number > 0 | `0.0003` | its peak" in recipe
    assert "| `part` | list 2 of number ≥ 0, ≤ 1 | `[0, 1]` | which share" in recipe
    tables = {kind for kinds in make_reference.RECIPE.values() for kind in kinds}
    classes = {each for each in vars(settings).values() if isinstance(each, type) and is_dataclass(each)}
    assert {kind for kind in classes - tables if kind.__module__ == settings.__name__} == {settings.Recipe}
    rows = [line.strip("| ").split(" | ") for line in recipe.splitlines() if line.startswith("| `")]
    assert len(rows) > 60
    assert [row[0] for row in rows if len(row) != 4 or not row[3].strip()] == []


def test_the_site_loads_no_font_from_elsewhere() -> None:
    project = tomllib.loads((ROOT / "zensical.toml").read_text("utf-8"))["project"]
    assert project["theme"]["font"] is False
    assert not {"extra_css", "extra_javascript"} & set(project)


def test_the_questions_quote_errors_as_they_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    questions = (ROOT / "docs/faq.md").read_text("utf-8")
    monkeypatch.setattr(smollm2, "unpacked_folder", lambda: tmp_path)
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError) as caught:
        smollm2.smollm2_folder()
    assert f"    {caught.value}\n" in questions
    engines = "".join(file.read_text("utf-8") for file in (ROOT / "darl_rerank").glob("engines/*.py"))
    for quoted, source in (
        ("torch sees 0 GPUs", "is not there: torch sees {"),
        (
            "onnxruntime could not start CUDA, so the CPU is used",
            "onnxruntime could not start CUDA, so the CPU is used",
        ),
    ):
        assert quoted in questions
        assert source in engines
