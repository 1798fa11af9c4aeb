"""Trains by a recipe: probe, select, fine-tune, interpolate, calibrate, evaluate; each stage kept and resumable."""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file
from tqdm import tqdm

from darl_rerank import __version__
from darl_rerank.errors import InputError
from darl_rerank.model.base_model import file_sha256
from darl_rerank.model.checkpoint import Checkpoint
from darl_rerank.reranker import Reranker
from darl_rerank.trec.graded_pairs import GradedPair, read_graded_pairs

from .calibration_stage import calibrated
from .card import model_card
from .features import extract_features
from .finetune import check_variety, finetune
from .grade_model import GradeModel, Trainable, load_grade_model, save_trained, save_weights
from .interpolate import GradedSet, alpha_curve, average, interpolated
from .labels import hard_grades, label_matrix, numbered
from .lowrank import as_adapter, read_adapter
from .predict import predict_logits, training_device
from .probe import final_states, fit_probe
from .recipe import Recipe, SelectStage
from .selection.annotation import Annotation, label_with_teachers, read_annotations, write_annotations
from .selection.select_pairs import select_pairs
from .stages import Stages, is_first_process, portable
from .start import start_checkpoint
from .steps import QueryExamples, query_examples
from .training_set import ID_DEV, OOD_DEV, TrainingSet

_STATE = "trainable.safetensors"


class AnnotationsWantedError(InputError):
    """Training can go on once the file named in the message has been filled in."""


@dataclass(frozen=True, slots=True)
class Trained:
    """What a training made.

    Attributes:
        checkpoint: as saved.
        stages: what each stage returned, by name.
    """

    checkpoint: Checkpoint
    stages: dict[str, Any]


def train_by(
    recipe: Recipe,
    data: TrainingSet,
    output: Path,
    work: Path,
    *,
    device: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Trained | None:
    """Run all stages and write the checkpoint; what is finished in `work` is not run again.

    Args:
        recipe: what to do.
        data: its pairs.
        output: the checkpoint folder.
        work: for the stages.
        device: "cpu" to stay off a GPU.
        overwrite: replace an existing checkpoint.
        progress: show rates and times left on stderr.

    Returns:
        None in all but the first of several processes.

    Raises:
        AnnotationsWantedError: the chosen pairs wait for their grades.
        InputError: `work` is another training's, or a stage can't work with its data.
    """
    check_variety(data.examples(recipe.grades))
    return _Training(recipe, data, work, device, progress).run(output, overwrite)


class _Training:
    """The stages in order. Each is a method that takes what it needs from the folders of those before it."""

    def __init__(self, recipe: Recipe, data: TrainingSet, work: Path, device: str | None, progress: bool) -> None:
        self.recipe, self.data = recipe, data
        self.device, self.progress = device, progress
        self.stages = Stages(work, _plan(recipe, data))
        self.results: dict[str, Any] = {}

    def run(self, output: Path, overwrite: bool) -> Trained | None:
        self._stage("start", self._start)
        if self.recipe.probe is not None:
            self._stage("probe", self._probe)
        if self.recipe.select is not None:
            self._stage("select", self._select)
            # Annotators write it between two runs.
            written = self.recipe.select.annotations
            sealed = None if written is None or not written.is_file() else file_sha256(written)
            inputs = {"annotations": sealed} if self.recipe.select.labels == "annotations" else None
            self.results["labels"] = self.stages.run("labels", self._labels, inputs=inputs)
        for seed in self.recipe.seeds:
            self._stage(f"finetune-{seed}", lambda folder, seed=seed: self._finetune(folder, seed), shared=True)
        if not is_first_process():
            return None
        self._stage("merge", self._merge)
        against = self.results["merge"]["against_earlier"]
        kept_earlier = against is not None and against["keep"]
        if self.recipe.calibrate is not None and self.data.judged[1] and not kept_earlier:
            self._stage("calibrate", self._calibrate)
        final = Checkpoint.load(
            self.stages.path("calibrate" if "calibrate" in self.results else "merge") / "checkpoint"
        )
        if self.recipe.used_for("test", "ood_test"):
            self._stage("evaluate", self._evaluate)
        earlier = self._earlier()
        facts = {
            "recipe": portable(asdict(self.recipe)),
            "stages": self.results,
            "data": self.data.table(),
            "earlier": earlier,
        }
        begun = Checkpoint.load(self._checkpoint("start")).adapter_folder
        rank = None
        if begun is not None and self.recipe.trainable.weights == "lora":
            rank = read_adapter(begun).rank
        card = model_card(final, self.recipe, self.data, self.results, earlier, rank)
        final = final.replace(provenance=facts)
        saved = final.save(output, overwrite=overwrite, card=final.card(card))
        return Trained(saved, self.results)

    def _earlier(self) -> list[dict[str, Any]]:
        """The trainings of the checkpoint that this one began with, oldest first."""
        facts = dict(Checkpoint.load(self._checkpoint("start")).provenance)
        before: list[dict[str, Any]] = facts.pop("earlier", [])
        return [*before, facts] if "recipe" in facts else before

    def _stage(self, name: str, work: Any, *, shared: bool = False) -> None:
        self.results[name] = self.stages.run(name, work, shared=shared)

    def _checkpoint(self, stage: str) -> Path:
        return self.stages.path(stage) / "checkpoint"

    @property
    def _begun(self) -> Path:
        """What fine-tuning starts from."""
        return self._checkpoint("start" if self.recipe.probe is None else "probe")

    def _reranker(self, checkpoint: Path) -> Reranker:
        return Reranker.from_pretrained(checkpoint, engine="torch", device=self.device)

    def _start(self, folder: Path) -> dict[str, Any]:
        checkpoint = start_checkpoint(self.recipe.model).save(folder / "checkpoint", overwrite=True)
        return {"base": checkpoint.base.name, "fingerprint": checkpoint.fingerprint}

    def _probe(self, folder: Path) -> dict[str, Any]:
        reranker = self._reranker(self._checkpoint("start"))
        checkpoint, grades = reranker.checkpoint, self.recipe.grades
        sets = {}
        for name, pairs in (("training", self.data.train), ("held-out", self.data.dev)):
            found = extract_features(
                reranker, pairs, folder / name, progress=self.progress, description=f"features, {name}"
            )
            sets[name] = (
                final_states(found, checkpoint.head), label_matrix(pairs, grades), numbered(p.qid for p in pairs)
            )  # fmt: skip
        weights = np.concatenate([
            np.full(len(s.train), s.source.weight, np.float32) for s in self.data.sources if s.source.use == "train"
        ])  # fmt: skip
        outcome = fit_probe(
            checkpoint.head, *sets["training"], sets["held-out"], checkpoint.scale.gains,
            loss=self.recipe.finetune.loss, terms=self.recipe.finetune.occ, settings=self.recipe.probe,
            weights=weights, seed=self.recipe.seed, progress=self.progress,
        )  # fmt: skip
        checkpoint.replace(head=outcome.head, trained=True).save(folder / "checkpoint", overwrite=True)
        return {key: value for key, value in asdict(outcome).items() if key != "head"}

    def _select(self, folder: Path) -> dict[str, Any]:
        stage = self._selection
        reranker = self._reranker(self._begun)
        pool = self._pool()
        chosen = select_pairs(
            pool, self.data.train, self.data.dev, reranker, reranker, folder,
            strategy=stage.strategy, budget=stage.budget, settings=stage.settings, progress=self.progress,
        )  # fmt: skip
        rows = [int(row) for row in chosen.rows]
        blank = [replace(pool[row], grade=None, probabilities=None) for row in rows]
        write_annotations(
            folder / "annotations.jsonl",
            (Annotation(*item) for item in zip(blank, chosen.novelty, chosen.predicted, strict=True)),
        )
        if self.progress:
            for warning in chosen.summary["warnings"]:
                tqdm.write(f"Warning: select: {warning}", file=sys.stderr)
        return {"rows": rows, **chosen.summary}

    @property
    def _selection(self) -> SelectStage:
        assert self.recipe.select is not None
        return self.recipe.select

    def _pool(self) -> list[GradedPair]:
        known = {pair.key for pair in (*self.data.train, *self.data.dev)}
        return [pair for pair in self.data.of("pool") if pair.key not in known]

    def _labels(self, folder: Path) -> dict[str, Any]:
        """Give the chosen pairs their labels, in labelled.jsonl."""
        stage = self._selection
        blank = self.stages.path("select") / "annotations.jsonl"
        scale = Checkpoint.load(self._begun).scale
        left_out = 0
        if stage.labels == "pool":
            pool = self._pool()
            pairs = [pool[row] for row in self.results["select"]["rows"]]
            if not all(pair.labelled for pair in pairs):
                raise InputError('select.labels = "pool", but the pool has pairs without a label')
        elif stage.labels == "teacher":
            assert stage.teacher is not None
            asked = read_graded_pairs(blank, labels="ignored")
            answers = label_with_teachers(asked, [self._reranker(stage.teacher)], scale)
            pairs, left_out = answers.pairs, len(answers.disagreed)
        else:
            if stage.annotations is None or not stage.annotations.is_file():
                wanted = stage.annotations or "a copy of it, named in the recipe as select.annotations"
                raise AnnotationsWantedError(
                    f"{len(self.results['select']['rows'])} pairs wait for their grades in {blank}: put a grade in the "
                    f"place of null, save it as {wanted}, and give the same command again"
                )
            pairs = read_annotations(stage.annotations, scale)
        count = write_annotations(
            folder / "labelled.jsonl", (Annotation(pair, 0.0, ()) for pair in pairs if pair.labelled)
        )
        return {"labels": stage.labels, "pairs": count, "left_out": left_out}

    def _examples(self) -> list[QueryExamples]:
        """The training set as fine-tuning sees it: the original examples, and the selected ones."""
        grades = self.recipe.grades
        original = self.data.examples(grades)
        if self.recipe.select is None:
            return original
        path = self.stages.path("labels") / "labelled.jsonl"
        selected = query_examples(read_graded_pairs(path, grades=grades), grades)
        if self.recipe.replay is not None:
            # ID replay: enough of the original set to not forget it, not so much as to drown what was selected.
            random.Random(self.recipe.seed).shuffle(original)
            wanted = self.recipe.replay * sum(map(len, selected))
            kept, size = [], 0
            for example in original:
                if size >= wanted:
                    break
                kept.append(example)
                size += len(example)
            original = kept
        return [*original, *selected]

    def _finetune(self, folder: Path, seed: int) -> dict[str, Any]:
        checkpoint = Checkpoint.load(self._begun)
        model = load_grade_model(checkpoint, self.recipe.trainable, seed=seed)
        settings = replace(self.recipe.finetune, seed=seed)
        examples = self._examples()
        outcome = finetune(model, checkpoint, examples, settings, folder, device=self.device, progress=self.progress)
        if is_first_process():
            save_weights(folder / _STATE, model.trainable_state())
        return {**asdict(outcome), "training_examples": sum(map(len, examples)), "queries": len(examples)}

    def _merge(self, folder: Path) -> dict[str, Any]:
        """Average the seeds, choose α, and write the model as a checkpoint."""
        checkpoint = Checkpoint.load(self._begun)
        states = [load_file(self.stages.path(f"finetune-{seed}") / _STATE) for seed in self.recipe.seeds]
        model = load_grade_model(checkpoint, _soup(self.recipe.trainable, len(states)), seed=self.recipe.seeds[0])
        model.to(training_device(self.device))
        first, last = model.trainable_state(), states[0] if len(states) == 1 else average(states)
        curve: dict[str, Any] | None = None
        if self.recipe.interpolate is not None:
            curve = self._alpha_curve(folder, model, checkpoint, first, last)
            last = interpolated(first, last, curve["chosen"])
        model.load_trainable(dict(last))
        rank = self.recipe.trainable.delivered_rank
        saved = save_trained(model, checkpoint, folder / ("checkpoint" if rank is None else "whole"), overwrite=True)
        kept = 1.0
        if rank is not None:
            kept = as_adapter(saved, folder / "checkpoint", rank=rank, overwrite=True)[1].kept
        against = self._against_earlier(folder) if self.recipe.model.keep_if_better else None
        if against is not None and against["keep"]:
            Checkpoint.load(self._checkpoint("start")).save(folder / "checkpoint", overwrite=True)
        return {"seeds": list(self.recipe.seeds), "curve": curve, "kept": kept, "against_earlier": against}

    def _against_earlier(self, folder: Path) -> dict[str, Any]:
        """RPS on the held-out pairs of the model that the training began with and of the trained one, both
        temperature-scaled, and whether the first is to be kept."""
        sets = self._held_out()
        paths = {0.0: self._checkpoint("start"), 1.0: folder / "checkpoint"}

        def logits_at(place: float) -> Mapping[str, NDArray[np.float32]]:
            reranker = self._reranker(paths[place])
            return {
                name: extract_features(
                    reranker, pairs, folder / f"{('earlier', 'trained')[int(place)]}-{name.replace(' ', '-')}",
                    with_features=False, progress=self.progress, description=name,
                ).logits
                for name, pairs in sets.items()
            }  # fmt: skip

        gains = Checkpoint.load(paths[0.0]).scale.gains
        curve = alpha_curve(logits_at, _graded(sets), gains, alphas=tuple(paths), choose_by="rps")
        earlier, trained = (float(np.mean([values["rps"][i] for values in curve.values.values()])) for i in (0, 1))
        return {"pairs": sum(map(len, sets.values())), "earlier": earlier, "trained": trained, "keep": not curve.chosen}

    def _held_out(self) -> dict[str, list[GradedPair]]:
        sets = {ID_DEV: self.data.dev, OOD_DEV: self.data.of("ood_dev")}
        return {name: pairs for name, pairs in sets.items() if pairs}

    def _alpha_curve(
        self, folder: Path, model: GradeModel, checkpoint: Checkpoint, first: Any, last: Any
    ) -> dict[str, Any]:
        assert self.recipe.interpolate is not None
        encoder = checkpoint.encoder()
        sets = self._held_out()

        def logits_at(alpha: float) -> Mapping[str, NDArray[np.float32]]:
            # Each α is kept: a kill costs one of them, not all.
            path = folder / f"logits-{alpha:g}.npz"
            if path.is_file():
                with np.load(path, allow_pickle=False) as kept:
                    return {name: kept[name] for name in sets}
            model.load_trainable(interpolated(first, last, alpha))
            found = {
                name: predict_logits(
                    model, encoder, pairs, progress=self.progress, description=f"α = {alpha:g}, {name}"
                )
                for name, pairs in sets.items()
            }
            temporary = path.with_name(f".{path.name}")
            with temporary.open("wb") as stream:
                np.savez(stream, **found)  # type: ignore[arg-type]
            temporary.replace(path)
            return found

        stage = self.recipe.interpolate
        curve = alpha_curve(
            logits_at, _graded(sets), checkpoint.scale.gains, alphas=stage.alphas, choose_by=stage.choose_by
        )
        return curve.to_dict()

    def _calibrate(self, folder: Path) -> dict[str, Any]:
        """Fit novelty on the final model's own features, then the temperature; on pairs that people judged."""
        stage = self.recipe.calibrate
        assert stage is not None
        final, facts = calibrated(
            self._reranker(self._checkpoint("merge")), self.data.judged[0],
            self.data.calibration_sets(novelty=stage.novelty), stage, folder, seed=self.recipe.seed,
            progress=self.progress,
        )  # fmt: skip
        final.save(folder / "checkpoint", overwrite=True)
        return facts

    def _evaluate(self, folder: Path) -> dict[str, Any]:
        from .test_sets import evaluate_test_sets

        stage = "calibrate" if "calibrate" in self.results else "merge"
        sources = [source for source in self.data.sources if source.source.use in ("test", "ood_test")]
        return evaluate_test_sets(
            self._reranker(self._checkpoint(stage)),
            {source.source.group or source.source.name: source.train for source in sources},
            folder,
            curve=self.results["merge"]["curve"],
            seed=self.recipe.seed,
            progress=self.progress,
        )


def _plan(recipe: Recipe, data: TrainingSet) -> dict[str, Any]:
    """What decides a training's results, by name. Files count by content: their names may stay when they change."""
    plan = {
        "darl-rerank": __version__,
        "recipe": portable(asdict(recipe)),
        "data": data.digest(),
        "model": start_checkpoint(recipe.model).fingerprint,
    }
    if recipe.select is not None and recipe.select.teacher is not None:
        plan["teacher"] = Checkpoint.load(recipe.select.teacher).fingerprint
    return plan


def _graded(sets: Mapping[str, list[GradedPair]]) -> dict[str, GradedSet]:
    return {name: GradedSet(hard_grades(p), numbered(x.qid for x in p)) for name, p in sets.items()}


def _soup(trainable: Trainable, count: int) -> Trainable:
    """What holds the mean of `count` fine-tuned models; see `interpolate.average`."""
    if trainable.weights != "lora" or count == 1:
        return trainable
    return replace(trainable, rank=trainable.rank * count, alpha=trainable.alpha * count)
