"""Reads a recipe, a TOML file whose faults are all reported at once.

    [model]
    base = "smollm2"            # or checkpoint = "folder", or "smollm2-darl": to go on from one
    scale = "trec4"
    max_length = 160

    [[source]]
    name = "forum"
    topics = "topics.tsv"       # paths are relative to the recipe
    corpus = "corpus.jsonl.gz"
    qrels = "qrels.txt"
    grades = { "0" = 0, "1" = { 1 = 0.5, 2 = 0.5 }, "2" = 3 }
    dev_queries = 50

    [finetune]
    loss = "occ"

`recipe.settings` and `recipe.source` have every key; `docs/training.md` explains them.
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from darl_rerank.errors import InputError
from darl_rerank.model.checkpoint import Checkpoint
from darl_rerank.model.decisions import Promise
from darl_rerank.model.scale import RelevanceScale

from .checked import checked, faults_of, place
from .fields import Amount, Whole
from .settings import (
    CalibrateStage,
    ExitsStage,
    FinetuneSettings,
    InterpolateStage,
    ModelChoice,
    ProbeSettings,
    Recipe,
    SelectionSettings,
    SelectStage,
    Trainable,
)
from .source import Exclude, Source

T = TypeVar("T")
_Table = dict[str, Any]


@checked
class _File:
    """The tables of a recipe, before their keys are looked at."""

    seed: Whole = 0
    model: _Table = Field(default_factory=dict)
    source: list[_Table] = Field(default_factory=list)
    exclude: _Table = Field(default_factory=dict)
    probe: _Table | None = None
    select: _Table | None = None
    finetune: _Table = Field(default_factory=dict)
    interpolate: _Table | None = None
    calibrate: _Table = Field(default_factory=dict)
    exits: _Table | None = None


@checked
class _Runs:
    """The keys of [finetune] that are the recipe's own."""

    replay: Amount | None = None
    seeds: Annotated[tuple[Whole, ...], Field(min_length=1)] = (0,)


def read_recipe(path: str | Path) -> Recipe:
    """Read a recipe.

    Raises:
        InputError: not TOML, or faults: keys that are unknown, missing, of the wrong type or out of range, files that
            are not there. All of them are in the one message.
    """
    path = Path(path)
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise InputError("no such file", path=path) from None
    except IsADirectoryError:
        raise InputError("is a folder, expected a recipe (TOML)", path=path) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"expected TOML: {error}", path=path) from error
    return parse_recipe(values, path)


def parse_recipe(values: dict[str, Any], path: Path) -> Recipe:
    """The recipe in `values`; `path` is named in errors, and its folder is what paths are relative to.

    Raises:
        InputError: faults; all of them are in the one message.
    """
    reader = _Reader(path)
    recipe = reader.read(values)
    if reader.faults or recipe is None:
        many = f"{len(reader.faults)} faults:\n" if len(reader.faults) > 1 else ""
        raise InputError(many + "\n".join(reader.faults), path=path)
    return recipe


class _Reader:
    """Reads table by table, so that a fault in one hides none in another."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.faults: list[str] = []
        self._grades: int | None = None
        self._begun: Checkpoint | None = None

    def read(self, values: dict[str, Any]) -> Recipe | None:
        file = self._table(_File, "", values)
        if file is None:
            # What is right of the file is read all the same, for the faults within.
            sound = {key: value for key, value in values.items() if _fits(_File, key, value)}
            file = _File(**sound)
        model = self._model(file.model)
        sources = [self._source(place, table) for place, table in enumerate(file.source, 1)]
        exclude = self._table(Exclude, "exclude", file.exclude)
        probe = None if file.probe is None else self._table(ProbeSettings, "probe", file.probe)
        select = None if file.select is None else self._select(file.select, file.seed)
        trainable, finetune, runs = self._finetune(file.finetune, file.seed)
        interpolate = (
            None if file.interpolate is None else self._table(InterpolateStage, "interpolate", file.interpolate)
        )
        calibrate = self._table(CalibrateStage, "calibrate", file.calibrate)
        if calibrate is not None and model is not None:
            self._check_cuts(calibrate.cuts, model.scale)
        exits = None if file.exits is None else self._table(ExitsStage, "exits", file.exits)
        if exits is not None and model is not None:
            try:
                exits.lowest_grade(model.scale)
            except InputError as error:
                self.faults.append(f"exits.grade: {error}")
        if calibrate is not None and not calibrate.enabled:
            calibrate = None
        read = [source for source in sources if source is not None]
        self._check_sources(file, read, whole=len(read) == len(sources), calibrates=calibrate is not None)
        if self._begun is not None and self._begun.trained and finetune is not None:
            link = "corn" if finetune.loss == "corn" else "softmax"
            if self._begun.link != link:
                self.faults.append(
                    f"finetune.loss: {finetune.loss} reads a head by {link}, but that of model.checkpoint was trained "
                    f"to be read by {self._begun.link}"
                )
        if self._begun is not None and self._begun.adapter_folder is not None and trainable and runs:
            self._check_own_adapter(file, trainable, len(runs.seeds))
        if self.faults or not (model and exclude and trainable and finetune and runs):
            return None
        return Recipe(
            path=self.path, model=model, sources=tuple(read), exclude=exclude, probe=probe, select=select,
            trainable=trainable, finetune=finetune, replay=runs.replay, seeds=runs.seeds, interpolate=interpolate,
            calibrate=calibrate, exits=exits, seed=file.seed,
        )  # fmt: skip

    def _check_cuts(self, cuts: tuple[str, ...], scale: RelevanceScale) -> None:
        for text in cuts:
            try:
                Promise.parse(text, scale)
            except InputError as error:
                self.faults.append(f"calibrate.cuts: {error}")

    def _table(
        self, kind: type[T], where: str, values: dict[str, Any], keys: set[str] | None = None, **given: Any
    ) -> T | None:
        """`values` as a `kind`; None, and the faults kept, if they are not.

        Args:
            kind: a class of `settings`.
            where: the table's name.
            values: the table.
            keys: its keys, if they are not the fields of `kind`.
            given: fields of `kind` that no key of the table sets.
        """
        known = (keys or _keys(kind)) - given.keys()
        unknown = values.keys() - known
        listed = ", ".join(sorted(known))
        self.faults += [f"{place(where, key)} is not a key; known: {listed}" for key in sorted(unknown)]
        context = {"folder": self.path.parent, "grades": self._grades}
        try:
            # As JSON, since pydantic's strictness takes lists for tuples and texts for paths there, but nothing else.
            text = json.dumps({k: v for k, v in values.items() if k not in unknown} | given, default=str)
            return TypeAdapter(kind).validate_json(text, strict=True, context=context)
        except ValidationError as error:
            self.faults += faults_of(error, where)
            return None

    def _model(self, values: dict[str, Any]) -> ModelChoice | None:
        if "checkpoint" in values:
            self.faults += [
                f"model.{key} can't be given with model.checkpoint, which has its own"
                for key in ("base", "scale")
                if key in values
            ]
        model = self._table(ModelChoice, "model", values)
        if model is not None and model.checkpoint is not None:
            try:
                self._begun = Checkpoint.load(model.checkpoint)
            except InputError as error:
                self.faults.append(f"model.checkpoint: {error}")
                return None
            model = replace(model, scale=self._begun.scale)
        self._grades = None if model is None else len(model.scale)
        return model

    def _source(self, place: int, values: dict[str, Any]) -> Source | None:
        name = values.get("name")
        where = f"source {name!r}" if isinstance(name, str) else f"source {place}"
        if values.get("use", "train") == "train":
            # Few documents of many queries teach more than many of few.
            values = {"max_documents": 8, **values}
        return self._table(Source, where, values)

    def _select(self, values: dict[str, Any], seed: int) -> SelectStage | None:
        of_strategy = _keys(SelectionSettings)
        keys = (_keys(SelectStage) | of_strategy) - {"settings", "seed"}
        default = next((name for name in ("teacher", "annotations") if name in values), "annotations")
        settings = self._table(SelectionSettings, "select", _part(values, of_strategy - {"seed"}), seed=seed)
        rest = {key: value for key, value in values.items() if key not in of_strategy - {"seed"}}
        stage = self._table(SelectStage, "select", {"labels": default, **rest}, keys)
        return None if stage is None or settings is None else replace(stage, settings=settings)

    def _finetune(
        self, values: dict[str, Any], seed: int
    ) -> tuple[Trainable | None, FinetuneSettings | None, _Runs | None]:
        keys = (_keys(Trainable) | _keys(FinetuneSettings) | _keys(_Runs)) - {"seed"}
        rest = {key: value for key, value in values.items() if key not in _keys(Trainable) | _keys(_Runs)}
        return (
            self._table(Trainable, "finetune", _part(values, _keys(Trainable))),
            self._table(FinetuneSettings, "finetune", rest, keys, seed=seed),
            self._table(_Runs, "finetune", {"seeds": [seed], **_part(values, _keys(_Runs))}),
        )

    def _check_sources(self, file: _File, sources: list[Source], *, whole: bool, calibrates: bool) -> None:
        """What stages need of the sources; said of all of them only if each could be read (`whole`)."""
        names = [source.name for source in sources]
        self.faults += [f"source {name!r} is named twice" for name in sorted({n for n in names if names.count(n) > 1})]
        if not any(table.get("use", "train") == "train" for table in file.source):
            self.faults.append('expected at least one [[source]] with use = "train"')
        if not whole:
            return
        if file.select is not None and not any(source.use == "pool" for source in sources):
            self.faults.append('select needs a [[source]] with use = "pool"')
        held_out = any(source.dev_queries for source in sources)
        if not held_out:
            stages = (file.probe, file.select, file.interpolate, file.exits)
            if any(table is not None for table in stages):
                self.faults.append(
                    "probe, select, interpolate and exits need held-out queries: give a source dev_queries"
                )
            if file.model.get("keep_if_better"):
                self.faults.append("model.keep_if_better needs held-out queries: give a source dev_queries")
        judged = any(source.dev_queries and source.judged for source in sources)
        if calibrates and not judged and (held_out or file.calibrate):
            self.faults.append(
                "calibrate needs held-out queries that people judged: give a judged source dev_queries, or set "
                "calibrate.enabled = false"
            )

    def _check_own_adapter(self, file: _File, trainable: Trainable, seeds: int) -> None:
        """What can't go with LoRA on the adapter that model.checkpoint has."""
        given = [f"finetune.{name}" for name in ("rank", "alpha", "dropout") if name in file.finetune]
        given += ["finetune.seeds with more than one seed"] if seeds > 1 else []
        given += ["interpolate"] if file.interpolate is not None else []
        if trainable.weights == "lora" and given:
            self.faults.append(
                f"{', '.join(given)} can't be given where LoRA trains the adapter that model.checkpoint has: "
                'leave that out, or train with weights = "all"'
            )


def _keys(kind: type[Any]) -> set[str]:
    return {f.name for f in fields(kind)}


def _part(values: dict[str, Any], keys: set[str]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key in keys}


def _fits(kind: type[Any], key: str, value: Any) -> bool:
    """Whether `value` is right for this key of `kind`."""
    try:
        TypeAdapter(kind).validate_json(json.dumps({key: value}, default=str), strict=True)
    except ValidationError:
        return False
    return True
