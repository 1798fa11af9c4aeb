"""What every stage of a training is given: the recipe, the data, and what the stages before it left."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from darl_rerank import __version__
from darl_rerank.model.checkpoint import Checkpoint
from darl_rerank.progress import Progress
from darl_rerank.reranker import Reranker
from darl_rerank.trec.graded_pairs import GradedPair

from .data.training_set import ID_DEV, OOD_DEV, TrainingSet
from .model.initial import initial_checkpoint
from .recipe.settings import Recipe
from .work_folder import WorkFolder, portable

# What stages leave in their folders for those after them.
ANNOTATIONS = "annotations.jsonl"
LABELLED = "labelled.jsonl"
WEIGHTS = "trainable.safetensors"
# The stages from the trained weights on, each of which writes the checkpoint with something more; in their order.
COMPLETING = ("merge", "calibrate", "exits")


@dataclass(frozen=True, slots=True)
class Context:
    """One training.

    Attributes:
        recipe: what to do.
        data: its pairs.
        work: a folder for each stage.
        device: "cpu" to stay off a GPU.
        progress: see `darl_rerank.progress`.
        results: what each finished stage returned, by name.
    """

    recipe: Recipe
    data: TrainingSet
    work: WorkFolder
    device: str | None = None
    progress: Progress = True
    results: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def open(cls, recipe: Recipe, data: TrainingSet, folder: Path, *, device: str | None, progress: Progress) -> Self:
        """Begin in `folder`, or go on with what is finished there.

        Raises:
            InputError: the folder is another training's; the message says what differs.
        """
        # What decides the results. Files count by content: their names may stay when they change.
        plan: dict[str, Any] = {
            "darl-rerank": __version__,
            "recipe": portable(asdict(recipe)),
            "data": data.digest(),
            "model": initial_checkpoint(recipe.model).fingerprint,
        }
        if recipe.select is not None and recipe.select.teacher is not None:
            plan["teacher"] = Checkpoint.load(recipe.select.teacher).fingerprint
        return cls(recipe, data, WorkFolder(folder, plan), device, progress)

    def run(
        self,
        name: str,
        stage: Callable[[Context, Path], Any],
        *,
        shared: bool = False,
        inputs: Mapping[str, str | None] | None = None,
    ) -> None:
        """Run a stage, or take its result from an earlier run; see `WorkFolder.run`."""
        self.results[name] = self.work.run(name, lambda folder: stage(self, folder), shared=shared, inputs=inputs)

    def checkpoint(self, stage: str) -> Path:
        """The folder of the checkpoint that a stage wrote."""
        return self.work.path(stage) / "checkpoint"

    @property
    def begun(self) -> Path:
        """The checkpoint that fine-tuning starts from."""
        return self.checkpoint("start" if self.recipe.probe is None else "probe")

    @property
    def newest(self) -> Path:
        """The checkpoint of the last stage so far that completes the model."""
        return self.checkpoint([stage for stage in COMPLETING if stage in self.results][-1])

    @property
    def kept_earlier(self) -> bool:
        """Whether the model that the training began with has turned out better than the trained one."""
        against = self.results["merge"]["against_earlier"]
        return against is not None and bool(against["keep"])

    @property
    def held_out(self) -> dict[str, list[GradedPair]]:
        """The labelled pairs that are not trained on, by kind."""
        sets = {ID_DEV: self.data.dev, OOD_DEV: self.data.of("ood_dev")}
        return {name: pairs for name, pairs in sets.items() if pairs}

    @property
    def pool(self) -> list[GradedPair]:
        """The pairs to select from: those of the pool that are not labelled already."""
        known = {pair.key for pair in (*self.data.train, *self.data.dev)}
        return [pair for pair in self.data.of("pool") if pair.key not in known]

    def reranker(self, checkpoint: Path) -> Reranker:
        return Reranker.from_pretrained(checkpoint, engine="torch", device=self.device, exit="off")
