"""Writes the pages of the site's reference that come from source: `make docs` calls it, nothing of it is committed.

    python docs/make_reference.py FOLDER

The API pages name objects, whose docstrings mkdocstrings puts in their place; commands come from click, the keys of a
recipe from pydantic's settings.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import click
from pydantic import TypeAdapter

from darl_rerank.cli import cli
from darl_rerank.training.recipe import settings, source

# Page, title, what stands first, and the objects on it.
API: tuple[tuple[str, str, str, Sequence[str]], ...] = (
    (
        "api.md",
        "Reranker and results",
        "What `from darl_rerank import …` offers, and the errors it raises.",
        (
            "darl_rerank.Reranker",
            "darl_rerank.Ranking",
            "darl_rerank.RankedDocument",
            "darl_rerank.PairScores",
            "darl_rerank.errors",
        ),
    ),
    (
        "api-checkpoint.md",
        "Checkpoint",
        "What a checkpoint holds: scale, prompt, calibration, decisions and novelty.",
        (
            "darl_rerank.Checkpoint",
            "darl_rerank.RelevanceScale",
            "darl_rerank.model.scale.Grade",
            "darl_rerank.model.prompt.Prompt",
            "darl_rerank.model.calibration.Calibration",
            "darl_rerank.model.decisions",
            "darl_rerank.model.novelty.NoveltyModel",
        ),
    ),
    (
        "api-adapters.md",
        "Adapters",
        "Classes and functions for the frameworks; each page of the guides shows one at work.",
        (
            "darl_rerank.adapters.langchain",
            "darl_rerank.adapters.llama_index",
            "darl_rerank.adapters.haystack",
            "darl_rerank.adapters.pyterrier",
            "darl_rerank.adapters.lancedb",
            "darl_rerank.adapters.pyserini",
            "darl_rerank.adapters.lucene",
            "darl_rerank.adapters.faiss",
            "darl_rerank.adapters.frames",
            "darl_rerank.adapters.mteb",
            "darl_rerank.cross_encoder.CrossEncoderView",
        ),
    ),
    (
        "api-offline.md",
        "Runs, evaluation, training, export, Ray",
        "What the commands `rerank`, `evaluate`, `train` and `export` call, and what Ray Data and Ray Serve take.",
        (
            "darl_rerank.offline",
            "darl_rerank.trec.runs",
            "darl_rerank.trec.qrels",
            "darl_rerank.trec.topics",
            "darl_rerank.trec.corpora",
            "darl_rerank.trec.graded_pairs",
            "darl_rerank.trec.fusion",
            "darl_rerank.evaluation.ranking",
            "darl_rerank.evaluation.significance",
            "darl_rerank.evaluation.pairs",
            "darl_rerank.evaluation.drift",
            "darl_rerank.training.recipe.read",
            "darl_rerank.training.run",
            "darl_rerank.export.folder",
            "darl_rerank.export.parity",
            "darl_rerank.distributed.job",
            "darl_rerank.distributed.dataset",
            "darl_rerank.distributed.serving",
        ),
    ),
)
# A recipe's tables, and the classes whose fields are their keys; `replay` and `seeds` of [finetune] are the recipe's.
RECIPE: Mapping[str, Sequence[type]] = {
    "[model]": (settings.ModelChoice,),
    "[[source]]": (source.Source,),
    "[source.negatives]": (source.Negatives,),
    "[exclude]": (source.Exclude,),
    "[probe]": (settings.ProbeSettings,),
    "[select]": (settings.SelectStage, settings.SelectionSettings),
    "[finetune]": (settings.FinetuneSettings, settings.Trainable),
    "[finetune.occ]": (settings.OccWeights,),
    "[interpolate]": (settings.InterpolateStage,),
    "[calibrate]": (settings.CalibrateStage,),
    "[exits]": (settings.ExitsStage,),
}
FINETUNE_OF_RECIPE = ("replay", "seeds")
PAGES = (*(name for name, *_ in API), "commands.md", "recipe.md")
_NO_KEYS = ("occ", "negatives", "settings", "enabled")
_LIMITS = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}


def api_page(title: str, about: str, objects: Sequence[str]) -> str:
    return f"# {title}\n\n{about}\n\n" + "\n\n".join(f"::: {name}" for name in objects) + "\n"


def commands_page() -> str:
    """Every command with its arguments and options, as `--help` has them."""
    lines = ["# Commands", "", "From the commands themselves; exit codes and output are on [their page](cli.md).", ""]
    for name, command in _commands(cli, ()):
        context = click.Context(command, info_name=f"darl-rerank {name}")
        lines += [f"## {name}", "", "```text", command.get_usage(context).removeprefix("Usage: "), "```", ""]
        lines += [_prose(command.help or ""), "", "| option | |", "|---|---|"]
        for parameter in command.get_params(context):
            if (record := parameter.get_help_record(context)) is not None:
                option, help_text = (" ".join(part.split()) for part in record)
                # "[x>=1]" would be a link to an object of that name.
                lines.append(f"| `{_cell(option)}` | {_cell(help_text.replace('[', '&#91;'))} |")
        lines.append("")
    return "\n".join(lines)


def _commands(group: click.Group, before: tuple[str, ...]) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from _commands(command, (*before, name))
        else:
            yield " ".join((*before, name)), command


def _prose(text: str) -> str:
    """Help text as Markdown; \\b marks a paragraph whose lines stay as they are."""
    paragraphs = []
    for paragraph in re.split(r"\n\s*\n", re.sub(r"(?m)^ {4}", "", text)):
        as_it_is = paragraph.startswith("\b")
        paragraphs.append(
            "```text\n" + paragraph.removeprefix("\b\n") + "\n```" if as_it_is else " ".join(paragraph.split())
        )
    return "\n\n".join(paragraphs)


def recipe_page() -> str:
    """Every key of a recipe with its type, range and default."""
    lines = [
        "# Recipe",
        "",
        "A recipe is a TOML file for `darl-rerank train --config`. [Training](training.md) shows one and says what the "
        "stages do.",
        "",
        "A stage runs if its table is there. Paths are relative to the recipe. `seed`, of all draws, stands above the "
        "tables. Every fault of a file is reported at once.",
        "",
    ]
    for table, kinds in RECIPE.items():
        lines += [f"## {table}", "", "| key | type | default | |", "|---|---|---|---|"]
        for kind in kinds:
            lines += _keys(kind, tuple(f.name for f in fields(kind)))
        if table == "[finetune]":
            lines += _keys(settings.Recipe, FINETUNE_OF_RECIPE)
        lines.append("")
    return "\n".join(lines)


def _keys(kind: type, names: Sequence[str]) -> Iterator[str]:
    about, by_name = described(kind), {f.name: f for f in fields(kind)}
    for name in names:
        field, default = by_name[name], by_name[name].default
        # Keys that stand in a table of their own, or that the reader fills in.
        if name in ("occ", "negatives", "settings", "enabled") or (
            name == "seed" and kind is settings.SelectionSettings
        ):
            continue
        if default is MISSING and field.default_factory is MISSING:
            shown = "must be given"
        elif default is MISSING or default is None or default in ((), {}):
            shown = ""
        else:
            shown = f"`{_toml(default)}`"
        yield f"| `{name}` | {_cell(_type_of(field.type, kind))} | {shown} | {_cell(about.get(name, ''))} |"


def described(kind: type) -> dict[str, str]:
    """What the Attributes part of a class's docstring says of each field; those that stand together share it."""
    attributes = (kind.__doc__ or "").partition("Attributes:\n")[2]
    found: dict[str, str] = {}
    for names, text in re.findall(r"^ {8}(\w+(?:, \w+)*): (.*(?:\n {9,}.*)*)", attributes, re.MULTILINE):
        # A key of TOML is never None: it is left out.
        said = re.sub(r"\bNone\b", "left out", " ".join(text.split()))
        found.update(dict.fromkeys(names.split(", "), said))
    return found


def _type_of(annotation: Any, kind: type) -> str:
    """The type of a field in words, with its range."""
    if annotation in ("Scale", "Label"):
        names = ", ".join(f'`"{name}"`' for name in settings.SCALES)
        return names if annotation == "Scale" else "grade, or table of grades with probabilities"
    resolved = eval(annotation, vars(sys.modules[kind.__module__])) if isinstance(annotation, str) else annotation
    return _in_words(TypeAdapter(resolved).json_schema())


def _in_words(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_in_words(s) for s in schema["anyOf"] if s.get("type") != "null"))
    if "enum" in schema:
        return ", ".join(f'`"{value}"`' for value in schema["enum"])
    words = {"string": "text", "array": "list", "object": "table", "boolean": "true or false"}
    kind = words.get(schema.get("type", ""), schema.get("type", "table"))
    if schema.get("format") == "path":
        kind = "path"
    items = schema.get("items") or next(iter(schema.get("prefixItems", ())), None)
    if kind == "list" and items:
        count = f"{len(schema['prefixItems'])} of " if "prefixItems" in schema else "of "
        kind = f"list {count}{_in_words(items)}"
    limits = [f"{sign} {schema[key]:g}" for key, sign in _LIMITS.items() if key in schema]
    return " ".join([kind, ", ".join(limits)]).strip()


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return f"{value:g}" if isinstance(value, (int, float)) else f'"{value.name}"'


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    folder = Path(sys.argv[1])
    pages = {name: api_page(*rest) for name, *rest in API}
    pages |= {"commands.md": commands_page(), "recipe.md": recipe_page()}
    assert set(pages) == set(PAGES)
    for name, text in pages.items():
        (folder / name).write_text(text, "utf-8")


if __name__ == "__main__":
    main()
