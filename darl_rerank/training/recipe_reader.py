"""From TOML tables to a `Recipe`: every key checked, every fault kept, so that one run names them all."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from darl_rerank.errors import InputError
from darl_rerank.model.scale import SCALES
from darl_rerank.model.shipped import is_checkpoint, shipped_names

from .finetune import FinetuneSettings
from .grade_model import Trainable
from .interpolate import ALPHAS, MEASURES
from .losses import OccWeights
from .probe import ProbeSettings
from .recipe import CalibrateStage, InterpolateStage, ModelChoice, Recipe, SelectStage
from .selection.strategies import STRATEGIES, SelectionSettings
from .sources import USES, Negatives, Source, target_probabilities
from .toml_table import Table


class RecipeReader:
    """Reads tables into dataclasses; what is wrong goes to `faults`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.faults: list[str] = []
        self._has_adapter = False

    def read(self, values: dict[str, Any]) -> Recipe:
        stages = {"probe", "select", "finetune", "interpolate", "calibrate"}
        top = Table(self, "", values, {"seed", "model", "source", "exclude"} | stages)
        seed = top.integer("seed", 0, low=0)
        model = self._model(top.table("model"))
        grades = len(model.scale) if model is not None else None
        sources = [self._source(i, table, grades) for i, table in enumerate(top.tables("source"))]
        exclude = Table(self, "exclude", top.table("exclude"), {"topics", "corpora"})
        excluded = [exclude.paths(name) for name in ("topics", "corpora")]
        trainable, finetune = self._finetune(top.table("finetune"), seed)
        tuning = Table(self, "finetune", {k: v for k, v in top.table("finetune").items() if k in ("replay", "seeds")})
        replay, seeds = tuning.number("replay", None), tuning.integers("seeds", (seed,))
        probe = self._probe(top.table("probe", None))
        select = self._select(top.table("select", None), seed)
        interpolate = self._interpolate(top.table("interpolate", None))
        calibrate = self._calibrate(top.table("calibrate"))
        names = [source.name for source in sources if source is not None]
        self.faults += [f"source {name!r} is named twice" for name in sorted({n for n in names if names.count(n) > 1})]
        uses = [source.use for source in sources if source is not None]
        if not any(values.get("use", "train") == "train" for values in top.tables("source")):
            self.faults.append('expected at least one [[source]] with use = "train"')
        if select is not None and "pool" not in uses and len(uses) == len(sources):
            self.faults.append('select needs a [[source]] with use = "pool"')
        held_out = any(source is not None and source.dev_queries for source in sources)
        if (select or probe or interpolate) and not held_out and len(uses) == len(sources):
            self.faults.append("probe, select and interpolate need held-out queries: give a source dev_queries")
        judged = any(source is not None and source.dev_queries and source.judged for source in sources)
        if model is not None and model.keep_if_better and not held_out:
            self.faults.append("model.keep_if_better needs held-out queries: give a source dev_queries")
        if calibrate and not judged and (held_out or "calibrate" in values) and len(uses) == len(sources):
            self.faults.append(
                "calibrate needs held-out queries that people judged: give a judged source dev_queries, or set "
                "calibrate.enabled = false"
            )
        if self._has_adapter and (trainable or Trainable()).weights == "lora":
            self._own_adapter(top.table("finetune"), len(seeds), interpolate is not None)
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
            probe,
            select,
            trainable or Trainable(),
            finetune or FinetuneSettings(),
            replay,
            seeds,
            interpolate,
            calibrate,
            seed,
        )

    def _model(self, values: dict[str, Any]) -> ModelChoice | None:
        table = Table(self, "model", values, {"base", "checkpoint", "scale", "max_length", "keep_if_better"})
        length = table.integer("max_length", None, low=32)
        keep = table.boolean("keep_if_better", False)
        if "checkpoint" in values:
            for name in ("base", "scale"):
                if name in values:
                    self.faults.append(f"model.{name} can't be given with model.checkpoint, which has its own")
            checkpoint = table.checkpoint("checkpoint")
            if checkpoint is None:
                return None
            from darl_rerank.model.checkpoint import Checkpoint

            try:
                begun = Checkpoint.load(checkpoint)
            except InputError as error:
                self.faults.append(f"model.checkpoint: {error}")
                return None
            self._has_adapter = begun.adapter_folder is not None
            return ModelChoice(checkpoint=checkpoint, scale=begun.scale, max_length=length, keep_if_better=keep)
        if keep:
            self.faults.append("model.keep_if_better needs model.checkpoint: there is no earlier model to keep")
        name = table.string("scale", "trec4") or "trec4"
        if name not in SCALES:
            self.faults.append(f"model.scale: unknown relevance scale {name!r}; known: {', '.join(sorted(SCALES))}")
            return None
        base = table.string("base", "smollm2")
        if base is not None and is_checkpoint(base if base in shipped_names() else self.path.parent / base):
            self.faults.append(f"model.base: {base} is a checkpoint, not a base model: give it as model.checkpoint")
        # A base that is a path is meant relative to the recipe, like every other path.
        if base is not None and (self.path.parent / base / "config.json").is_file():
            base = str(self.path.parent / base)
        return ModelChoice(base=base or "smollm2", scale=SCALES[name], max_length=length)

    def _source(self, place: int, values: dict[str, Any], grades: int | None) -> Source | None:
        known = {f.name for f in fields(Source)}
        name = values.get("name")
        where = f"source {name!r}" if isinstance(name, str) else f"source {place + 1}"
        table = Table(self, where, values, known)
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
        only_train = {"dev_queries", "negatives", "weight", "judged"} - ({"dev_queries"} if use == "known" else set())
        if use != "train" and (unfit := sorted(values.keys() & only_train)):
            self.faults.append(f"{where}: {', '.join(unfit)} can't be given with use = {use!r}")
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
            "judged": table.boolean("judged", True),
            "group": table.string("group", None),
            "licence": table.string("licence", None),
        }
        arguments |= files
        return None if len(self.faults) > before else Source(**arguments)

    def _negatives(self, where: str, values: dict[str, Any] | None, grades: int | None) -> Negatives | None:
        if values is None:
            return None
        where = f"{where}: negatives"
        table = Table(self, where, values, {f.name for f in fields(Negatives)})
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
        table = Table(self, "finetune", values, plain | of_weights | {"replay", "seeds"})
        integers = {"batch", "micro_batches", "max_examples", "layers", "rank", "delivered_rank"}
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
        terms = Table(self, "finetune.occ", table.table("occ"), {f.name for f in fields(OccWeights)})
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

    def _own_adapter(self, finetune: dict[str, Any], seeds: int, interpolate: bool) -> None:
        """What can't go with LoRA on the adapter that model.checkpoint has."""
        given = [f"finetune.{name}" for name in ("rank", "alpha", "dropout") if name in finetune]
        given += ["finetune.seeds with more than one seed"] if seeds > 1 else []
        given += ["interpolate"] if interpolate else []
        if given:
            self.faults.append(
                f"{', '.join(given)} can't be given where LoRA trains the adapter that model.checkpoint has: "
                'leave that out, or train with weights = "all"'
            )

    def _probe(self, values: dict[str, Any] | None) -> ProbeSettings | None:
        if values is None:
            return None
        table = Table(self, "probe", values, {f.name for f in fields(ProbeSettings)})
        given = {
            name: table.integer(name, None) if name in ("epochs", "patience") else table.number(name, None)
            for name in values
            if name in table.known
        }
        built: ProbeSettings | None = self._built(
            "probe", ProbeSettings, {k: v for k, v in given.items() if v is not None}
        )
        return built

    def _select(self, values: dict[str, Any] | None, seed: int) -> SelectStage | None:
        if values is None:
            return None
        settings = {"band", "per_query", "half_distance", "targets"}
        own = {"budget", "strategy", "labels", "annotations", "teacher"}
        table = Table(self, "select", values, settings | own)
        if "budget" not in values:
            self.faults.append("select.budget is missing")
        strategy = table.string("strategy", "dasa") or "dasa"
        if strategy not in STRATEGIES:
            self.faults.append(f"select.strategy: unknown: {strategy!r}; known: {', '.join(STRATEGIES)}")
        default = next((name for name in ("teacher", "annotations") if name in values), "annotations")
        labels = table.string("labels", default) or default
        if labels not in ("annotations", "teacher", "pool"):
            self.faults.append(f"select.labels: expected annotations, teacher or pool, found {labels!r}")
        if labels == "teacher" and "teacher" not in values:
            self.faults.append("select.teacher is missing: a checkpoint that gives the labels")
        given: dict[str, Any] = {"seed": seed}
        if "band" in values:
            given["band"] = table.interval("band", (80.0, 99.5), 0.0, 100.0)
        for name in ("per_query", "targets"):
            if name in values:
                given[name] = table.integer(name, 1)
        if "half_distance" in values:
            given["half_distance"] = table.number("half_distance", None)
        chosen = self._built("select", SelectionSettings, given)
        # Annotators fill the file in after the first run, so it need not be there yet.
        annotations = table.string("annotations", None)
        return SelectStage(
            table.integer("budget", 1),
            strategy,
            chosen or SelectionSettings(),
            labels,
            None if annotations is None else self.path.parent / annotations,
            table.checkpoint("teacher"),
        )

    def _calibrate(self, values: dict[str, Any]) -> CalibrateStage | None:
        table = Table(self, "calibrate", values, {"novelty", "bias", "soft", "enabled"})
        stage = CalibrateStage(
            table.boolean("novelty", True), table.boolean("bias", False), table.boolean("soft", True)
        )
        return stage if table.boolean("enabled", True) else None

    def _interpolate(self, values: dict[str, Any] | None) -> InterpolateStage | None:
        if values is None:
            return None
        table = Table(self, "interpolate", values, {"alphas", "choose_by"})
        choose_by = table.string("choose_by", "rps") or "rps"
        if choose_by not in MEASURES:
            self.faults.append(f"interpolate.choose_by: expected one of {', '.join(MEASURES)}, found {choose_by!r}")
        alphas = values.get("alphas", list(ALPHAS))
        numbers = isinstance(alphas, list) and all(
            isinstance(a, int | float) and not isinstance(a, bool) and 0 <= a <= 1 for a in alphas
        )
        if not numbers or not alphas:
            table.fault("alphas", "a list of numbers within 0 and 1")
            alphas = list(ALPHAS)
        return InterpolateStage(tuple(float(a) for a in alphas), choose_by)

    def _built(self, where: str, kind: Any, given: dict[str, Any]) -> Any:
        try:
            return kind(**given)
        except InputError as error:
            self.faults.append(f"{where}: {error}")
            return None
