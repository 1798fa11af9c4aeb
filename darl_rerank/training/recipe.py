"""The recipe of a training: a TOML file whose faults are all reported at once.

    [model]
    base = "smollm2"            # or checkpoint = "folder", to go on from one
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

`docs/training.md` has every key.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from darl_rerank.errors import InputError
from darl_rerank.scale import SCALES, RelevanceScale

from .finetune import FinetuneSettings
from .grade_model import Trainable
from .losses import OccWeights
from .sources import USES, Negatives, Source, target_probabilities


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """What a training starts from.

    Attributes:
        base: "smollm2", a local folder or a hub id.
        checkpoint: a checkpoint folder to go on from instead.
        scale: the grades of a new checkpoint.
        max_length: longest prompt in tokens; None keeps the checkpoint's, or 512.
    """

    base: str = "smollm2"
    checkpoint: Path | None = None
    scale: RelevanceScale = SCALES["trec4"]
    max_length: int | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """A whole training.

    Attributes:
        path: the file it was read from.
        model: what it starts from.
        sources: the training collections.
        exclude_topics, exclude_corpora: collections whose queries and documents must not be trained on.
        trainable: which weights fine-tuning changes.
        finetune: how.
        seed: of all draws.
    """

    path: Path
    model: ModelChoice
    sources: tuple[Source, ...]
    exclude_topics: tuple[Path, ...] = ()
    exclude_corpora: tuple[Path, ...] = ()
    trainable: Trainable = field(default_factory=Trainable)
    finetune: FinetuneSettings = field(default_factory=FinetuneSettings)
    seed: int = 0

    @property
    def grades(self) -> int:
        """Number of grades K of the model."""
        if self.model.checkpoint is None:
            return len(self.model.scale)
        from darl_rerank.checkpoint import Checkpoint

        return len(Checkpoint.load(self.model.checkpoint).scale)


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
    return _RecipeReader(path).read(values)


class _RecipeReader:
    """Reads tables into dataclasses; what is wrong goes to `faults`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.faults: list[str] = []

    def read(self, values: dict[str, Any]) -> Recipe:
        top = _Table(self, "", values, {"seed", "model", "source", "exclude", "finetune"})
        seed = top.integer("seed", 0, low=0)
        model = self._model(top.table("model"))
        grades = len(model.scale) if model is not None else None
        sources = [self._source(i, table, grades) for i, table in enumerate(top.tables("source"))]
        exclude = _Table(self, "exclude", top.table("exclude"), {"topics", "corpora"})
        excluded = [exclude.paths(name) for name in ("topics", "corpora")]
        trainable, finetune = self._finetune(top.table("finetune"), seed)
        names = [source.name for source in sources if source is not None]
        self.faults += [f"source {name!r} is named twice" for name in sorted({n for n in names if names.count(n) > 1})]
        if not sources:
            self.faults.append("expected at least one [[source]]")
        if self.faults:
            many = f"{len(self.faults)} faults:\n" if len(self.faults) > 1 else ""
            raise InputError(many + "\n".join(self.faults), path=self.path)
        assert model is not None
        return Recipe(
            self.path,
            model,
            tuple(source for source in sources if source is not None),
            excluded[0],
            excluded[1],
            trainable or Trainable(),
            finetune or FinetuneSettings(),
            seed,
        )

    def _model(self, values: dict[str, Any]) -> ModelChoice | None:
        table = _Table(self, "model", values, {"base", "checkpoint", "scale", "max_length"})
        length = table.integer("max_length", None, low=32)
        if "checkpoint" in values:
            for name in ("base", "scale"):
                if name in values:
                    self.faults.append(f"model.{name} can't be given with model.checkpoint, which has its own")
            checkpoint = table.path("checkpoint")
            if checkpoint is None:
                return None
            from darl_rerank.checkpoint import Checkpoint

            try:
                scale = Checkpoint.load(checkpoint).scale
            except InputError as error:
                self.faults.append(f"model.checkpoint: {error}")
                return None
            return ModelChoice(checkpoint=checkpoint, scale=scale, max_length=length)
        name = table.string("scale", "trec4")
        if name not in SCALES:
            self.faults.append(f"model.scale: unknown relevance scale {name!r}; known: {', '.join(sorted(SCALES))}")
            return None
        base = table.string("base", "smollm2")
        # A base that is a path is meant relative to the recipe, like every other path.
        if base is not None and (self.path.parent / base / "config.json").is_file():
            base = str(self.path.parent / base)
        return ModelChoice(base=base or "smollm2", scale=SCALES[name], max_length=length)

    def _source(self, place: int, values: dict[str, Any], grades: int | None) -> Source | None:
        known = {f.name for f in fields(Source)}
        name = values.get("name")
        where = f"source {name!r}" if isinstance(name, str) else f"source {place + 1}"
        table = _Table(self, where, values, known)
        before = len(self.faults)
        files = {key: table.path(key) for key in ("pairs", "topics", "corpus", "qrels", "run", "groups_file")}
        given = {key for key in files if key in values} - {"groups_file"}
        use = table.string("use", "train") or "train"
        if use not in USES:
            self.faults.append(f"{where}: use: expected one of {', '.join(USES)}, found {use!r}")
        enough: tuple[set[str], ...] = ({"pairs"}, {"topics", "corpus", "qrels"}, {"pairs", "topics", "corpus"})
        if use == "pool":
            enough = (*enough, {"topics", "corpus", "run"})
        if given not in enough:
            found = ", ".join(sorted(given)) or "none of them"
            self.faults.append(f"{where}: expected pairs, or topics, corpus and qrels; found {found}")
        only_train = sorted(values.keys() & {"dev_queries", "negatives", "weight"})
        if use != "train" and only_train:
            self.faults.append(f"{where}: {', '.join(only_train)} can't be given with use = {use!r}")
        targets = table.table("grades", None)
        grade_map = None
        if targets is not None:
            grade_map = {label: self._target(f"{where}: grades.{label}", t, grades) for label, t in targets.items()}
        arguments: dict[str, Any] = {
            "name": table.string("name", None, required=True) or where,
            "partial": table.boolean("partial", False),
            "grades": grade_map,
            "negatives": self._negatives(where, table.table("negatives", None), grades),
            "max_queries": table.integer("max_queries", None, low=1),
            "max_documents": table.integer("max_documents", 8 if use == "train" else None, low=1),
            "use": use,
            "only_groups": table.strings("only_groups"),
            "skip_groups": table.strings("skip_groups"),
            "part": table.interval("part", (0.0, 1.0), 0.0, 1.0),
            "dev_queries": table.integer("dev_queries", 0, low=0),
            "weight": table.number("weight", 1.0, low=0),
            "group": table.string("group", None),
        }
        return None if len(self.faults) > before else Source(**files, **arguments)

    def _negatives(self, where: str, values: dict[str, Any] | None, grades: int | None) -> Negatives | None:
        if values is None:
            return None
        where = f"{where}: negatives"
        table = _Table(self, where, values, {f.name for f in fields(Negatives)})
        bm25 = table.boolean("bm25", False)
        if bm25 and "run" in values:
            self.faults.append(f"{where}: expected run or bm25, found both")
        return Negatives(
            run=table.path("run"),
            bm25=bm25,
            skip=table.integer("skip", 1, low=0) or 0,
            depth=table.integer("depth", 50, low=1) or 50,
            per_query=table.integer("per_query", 3, low=0) or 0,
            random=table.integer("random", 0, low=0) or 0,
            target=self._target(f"{where}.target", values.get("target", 0), grades),
        )

    def _target(self, where: str, value: Any, grades: int | None) -> Any:
        fault = f"{where}: expected a grade, or a table of grades with probabilities, found {value!r}"
        if isinstance(value, int) and not isinstance(value, bool):
            target: int | dict[int, float] = value
        elif isinstance(value, dict):
            try:
                target = {int(k): float(p) for k, p in value.items()}
            except (TypeError, ValueError):
                self.faults.append(fault)
                return 0
        else:
            self.faults.append(fault)
            return 0
        if grades is not None:
            try:
                target_probabilities(target, grades)
            except InputError as error:
                self.faults.append(f"{where}: {error}")
        return target

    def _finetune(self, values: dict[str, Any], seed: int) -> tuple[Trainable | None, FinetuneSettings | None]:
        plain = {f.name for f in fields(FinetuneSettings)} - {"seed"}
        of_weights = {f.name for f in fields(Trainable)}
        table = _Table(self, "finetune", values, plain | of_weights)
        integers = {"batch", "micro_batches", "max_examples", "layers", "rank"}
        read: dict[str, Any] = {}
        for name in sorted(values.keys() & (plain | of_weights) - {"occ"}):
            if name in ("loss", "weights"):
                read[name] = table.string(name, None)
            elif name in integers:
                read[name] = table.integer(name, None)
            else:
                read[name] = table.number(name, None)
        if any(value is None for value in read.values()):
            return None, None
        terms = _Table(self, "finetune.occ", table.table("occ"), {f.name for f in fields(OccWeights)})
        weights = {name: terms.number(name, None) for name in terms.values if name in terms.known}
        trainable = finetune = None
        try:
            trainable = Trainable(**{k: v for k, v in read.items() if k in of_weights})
        except InputError as error:
            self.faults.append(f"finetune: {error}")
        try:
            occ = OccWeights(**{k: v for k, v in weights.items() if v is not None})
            finetune = FinetuneSettings(**{k: v for k, v in read.items() if k in plain}, occ=occ, seed=seed)
        except InputError as error:
            self.faults.append(f"finetune: {error}")
        return trainable, finetune


class _Table:
    """One TOML table; each getter returns the default where the key is absent or faulty."""

    def __init__(self, reader: _RecipeReader, where: str, values: Any, known: set[str]) -> None:
        self.reader, self.where, self.known = reader, where, known
        self.values: dict[str, Any] = values if isinstance(values, dict) else {}
        for name in sorted(self.values.keys() - known):
            reader.faults.append(f"{self._name(name)} is not a key; known: {', '.join(sorted(known))}")

    def _name(self, key: str) -> str:
        separator = ": " if self.where.startswith("source") else "."
        return f"{self.where}{separator}{key}" if self.where else key

    def _fault(self, key: str, expected: str) -> None:
        self.reader.faults.append(f"{self._name(key)}: expected {expected}, found {self.values[key]!r}")

    def string(self, key: str, default: str | None, *, required: bool = False) -> str | None:
        if key not in self.values:
            if required:
                self.reader.faults.append(f"{self._name(key)} is missing")
            return default
        if isinstance(self.values[key], str) and self.values[key]:
            return str(self.values[key])
        self._fault(key, "a string")
        return default

    def integer(self, key: str, default: Any, *, low: int = 1) -> Any:
        value = self.values.get(key, default)
        if key in self.values and (not isinstance(value, int) or isinstance(value, bool) or value < low):
            self._fault(key, f"an integer of at least {low}")
            return default
        return value

    def number(self, key: str, default: Any, *, low: float = 0.0) -> Any:
        value = self.values.get(key, default)
        if key in self.values and (not isinstance(value, int | float) or isinstance(value, bool) or not value >= low):
            self._fault(key, f"a number of at least {low:g}")
            return default
        return value

    def strings(self, key: str) -> tuple[str, ...]:
        value = self.values.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self._fault(key, "a list of strings")
            return ()
        return tuple(value)

    def interval(self, key: str, default: tuple[float, float], low: float, high: float) -> tuple[float, float]:
        value = self.values.get(key, list(default))
        numbers = isinstance(value, list) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
        if not numbers or len(value) != 2 or not low <= value[0] < value[1] <= high:
            self._fault(key, f"two rising numbers within {low:g} and {high:g}")
            return default
        return float(value[0]), float(value[1])

    def boolean(self, key: str, default: bool) -> bool:
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            self._fault(key, "true or false")
            return default
        return value

    def table(self, key: str, default: Any = ()) -> Any:
        value = self.values.get(key)
        if key in self.values and not isinstance(value, dict):
            self._fault(key, "a table")
            value = None
        return value if value is not None else (None if default is None else {})

    def tables(self, key: str) -> list[dict[str, Any]]:
        value = self.values.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
            self._fault(key, f"an array of tables, [[{key}]]")
            return []
        return value

    def path(self, key: str) -> Path | None:
        text = self.string(key, None)
        return None if text is None else self._existing(key, text)

    def _existing(self, key: str, text: str) -> Path | None:
        path = self.reader.path.parent / Path(text).expanduser()
        if path.exists():
            return path
        self.reader.faults.append(f"{self._name(key)}: no such file: {path}")
        return None

    def paths(self, key: str) -> tuple[Path, ...]:
        value = self.values.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self._fault(key, "a list of paths")
            return ()
        return tuple(path for text in value if (path := self._existing(key, text)) is not None)
