"""What a recipe may say: one class a table, one field a key, checked when it is made.

Tables whose keys are those of several classes: [finetune] is `FinetuneSettings`, `Trainable`, and `Recipe`'s replay and
seeds; [select] is `SelectStage` and `SelectionSettings`. What a training reads is in `source`.
"""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from darl_rerank.model.decisions import grade_above_lowest
from darl_rerank.model.scale import SCALES, RelevanceScale

from .checked import checked
from .fields import (
    Amount,
    Band,
    Base,
    CheckpointFolder,
    Count,
    FutureFile,
    Layers,
    Positive,
    Scale,
    Share,
    Text,
    Unit,
    Whole,
)
from .source import Exclude, Source

LossName = Literal["occ", "ce", "label_smoothing", "sord", "emd", "corn"]
StrategyName = Literal[
    "dasa",
    "dasa-without-band",
    "dasa-without-coverage",
    "random",
    "novel",
    "uncertainty",
    "mahalanobis",
    "knn",
    "kcenter",
]
# No other way to choose is shown to train a better model, whatever the share of new pairs (docs/rare-shift.md).
DEFAULT_STRATEGY: StrategyName = "random"
ALPHAS = tuple(i / 10 for i in range(11))


@checked
class ModelChoice:
    """[model]: what a training starts from.

    Attributes:
        base: "smollm2", a local folder or a hub id.
        checkpoint: the folder of a checkpoint to go on from instead; in a recipe also the name of one that ships.
        scale: the grades; those of `checkpoint`, if it is given.
        max_length: longest prompt in tokens; None keeps the checkpoint's, or 512.
        keep_if_better: the outcome is `checkpoint` as it was, if the trained model is worse than it on the held-out
            pairs.
    """

    base: Base = "smollm2"
    checkpoint: CheckpointFolder | None = None
    scale: Scale = SCALES["trec4"]
    max_length: Annotated[int, Field(ge=32)] | None = None
    keep_if_better: bool = False

    @model_validator(mode="after")
    def _has_an_earlier_model(self) -> Self:
        if self.keep_if_better and self.checkpoint is None:
            raise ValueError("keep_if_better needs a checkpoint: there is no earlier model to keep")
        return self


@checked
class ProbeSettings:
    """[probe]: how the head is trained.

    Attributes:
        epochs: most passes over the training set.
        patience: passes without a better loss on the held-out pairs after which it ends.
        learning_rate: of Adam, relative to the root mean square of the first head's weights.
        max_norm: cap on the Frobenius norm of the weight, as a multiple of the first one's.
    """

    epochs: Count = 200
    patience: Count = 10
    learning_rate: Positive = 0.05
    max_norm: Positive = 2.0


@checked
class SelectionSettings:
    """What every strategy is given beside the candidates and the budget; each takes what it needs.

    Attributes:
        band: novelty percentiles between which a pair is near enough to be about something and far enough to be new.
            Above lies mostly junk: empty, other language, broken markup.
        per_query: at most so many pairs of one query; no limit if None. It holds for every strategy.
        half_distance: half the squared distance at which a chosen pair covers another by half; what is typical between
            held-out pairs and the training set if None.
        targets: pairs of the pool, a seeded sample, whose coverage is maximised.
        seed: of all sampling.
    """

    band: Band = (80.0, 99.5)
    per_query: Count | None = 5
    half_distance: Positive | None = None
    targets: Count = 8192
    seed: Whole = 0

    def in_band(self, novelty: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
        """Which novelties lie in the band, its ends included, shape (n,)."""
        low, high = self.band
        return np.asarray((novelty >= low) & (novelty <= high))


@checked
class SelectStage:
    """[select]: which pairs of the pool are labelled and added to the training set.

    Attributes:
        budget: how many.
        strategy: a name of `selection.strategies.STRATEGIES`.
        settings: of the strategy.
        labels: who gives the labels: "annotations" (training stops after writing the file for annotators, and goes on
            when it is there with grades), "teacher" (another checkpoint's soft labels), or "pool" (the pool's own
            labels, hidden until then: for studies).
        annotations: the annotators' file, filled in.
        teacher: a checkpoint, as for the model.
    """

    budget: Count
    strategy: StrategyName = DEFAULT_STRATEGY
    settings: SelectionSettings = field(default_factory=SelectionSettings)
    labels: Literal["annotations", "teacher", "pool"] = "annotations"
    # Annotators fill the file in after the first run, so it need not be there yet.
    annotations: FutureFile | None = None
    teacher: CheckpointFolder | None = None

    @model_validator(mode="after")
    def _has_its_teacher(self) -> Self:
        if self.labels == "teacher" and self.teacher is None:
            raise ValueError("teacher is missing: a checkpoint that gives the labels")
        return self


@checked
class Trainable:
    """[finetune]: which weights are trained, besides the head.

    Attributes:
        weights: "lora": low-rank differences of all linear layers (PEFT); "all": the linear layers themselves; "head":
            nothing else. Embeddings and norms are never trained: their differences would not fit into an adapter.
        layers: only this many of the decoder's last layers, all if None. The gradient then ends there, which saves up
            to a third of the time.
        rank, alpha, dropout: of LoRA; a difference is scaled by alpha / rank. A checkpoint's adapter that is trained on
            keeps its rank, and has neither.
        delivered_rank: with "all": the checkpoint gets an adapter of this rank on the base model, cut from the whole
            difference (`lowrank.as_adapter`), instead of the whole model; None for the whole model.
    """

    weights: Literal["lora", "all", "head"] = "lora"
    layers: Count | None = None
    rank: Count = 16
    alpha: Positive = 32.0
    dropout: Share = 0.0
    delivered_rank: Count | None = None

    @model_validator(mode="after")
    def _delivers_what_it_trains(self) -> Self:
        if self.delivered_rank is not None and self.weights != "all":
            raise ValueError('delivered_rank goes with weights = "all"')
        return self


@checked
class OccWeights:
    """finetune.occ: what each term of the loss OCC counts beside the cross-entropy (weight 1); 0 switches it off.

    Attributes:
        rps: weight of the ranked probability score.
        over: weight of the mass above the true grade.
        rank: weight of the pairwise term.
        exponent: how fast OVER grows with the distance above the true grade.
        margin: part of the gain gap by which RANK wants two scores apart.
    """

    rps: Amount = 1.0
    over: Amount = 0.1
    rank: Amount = 0.25
    exponent: Amount = 1.0
    margin: Amount = 0.5


@checked
class FinetuneSettings:
    """[finetune]: how to fine-tune.

    Attributes:
        loss: a name of `losses.comparison.LOSSES`.
        occ: weights of OCC's terms, for the loss "occ".
        learning_rate: its peak, reached after `warmup` of the steps and then falling along a cosine to a tenth.
        warmup: share of the steps, but at least ten steps or a quarter of them; 0 for none.
        weight_decay: of AdamW, not applied to the head.
        batch: examples in an optimizer step; whole queries, so it may be a few more. A query with more than a quarter
            of it is cut into parts, so that a step has several queries.
        micro_batches: parts a step is cut into; must be a multiple of the number of processes.
        epochs: passes over the training set.
        max_examples: end after so many examples.
        max_minutes: end after so long; the learning rate then follows the time instead, whichever is further on.
        group_dro: step size of the group weights of group DRO; 0 for none.
        save_minutes: how often what a resume needs is written.
        seed: of the order, and of LoRA's start.
    """

    loss: LossName = "occ"
    occ: OccWeights = field(default_factory=OccWeights)
    learning_rate: Positive = 3e-4
    warmup: Share = 0.05
    weight_decay: Amount = 0.01
    batch: Count = 32
    micro_batches: Count = 1
    epochs: Positive = 1.0
    max_examples: Count | None = None
    max_minutes: Positive | None = None
    group_dro: Amount = 0.0
    save_minutes: Positive = 5.0
    seed: Whole = 0


@checked
class InterpolateStage:
    """[interpolate]: the weight α of the fine-tuned model, see `stages.merge.alpha_curve`.

    Attributes:
        alphas: which are tried.
        choose_by: the measure that chooses among them: its mean over the held-out pairs and those of "ood_dev".
    """

    alphas: Annotated[tuple[Unit, ...], Field(min_length=1)] = ALPHAS
    choose_by: Literal["ndcg@10", "qwk", "nll", "rps"] = "rps"


@checked
class CalibrateStage:
    """[calibrate]: what calibration is and which held-out pairs it is fitted on; see `model.temperature`.

    Attributes:
        novelty: whether the temperature follows novelty.
        bias: whether each grade gets a bias beside it.
        soft: whether pairs with soft labels count. A soft label says how sure its author was, not how often it is
            right.
        cuts: promises to fit thresholds for on the held-out pairs that people graded, see `model.decisions.Promise`.
        enabled: false leaves the stage out.
    """

    novelty: bool = True
    bias: bool = False
    soft: bool = True
    cuts: tuple[str, ...] = ()
    enabled: bool = True


@checked
class ExitsStage:
    """[exits]: heads at earlier layers, by which irrelevant pairs leave the model early; see `model.exits`.

    Attributes:
        layers: behind which, counted from 1.
        weight: what each exit's loss counts beside the model's own in fine-tuning (deep supervision), so that these
            layers come to know what is relevant; 0 to leave the model as it is.
        grade: the lowest that deserves a place; the middle one of the scale if None.
        share: of what deserves a place, how much may leave.
    """

    layers: Layers
    weight: Amount = 0.15
    grade: Text | None = None
    share: Annotated[float, Field(gt=0, lt=1)] = 0.02

    def lowest_grade(self, scale: RelevanceScale) -> int:
        """The number of `grade`.

        Raises:
            InputError: the scale has no such grade, or it is the lowest.
        """
        return len(scale) // 2 if self.grade is None else grade_above_lowest(self.grade, scale)


@checked
class Recipe:
    """A whole training.

    Attributes:
        path: the file it was read from.
        model: what it starts from.
        sources: the training collections.
        exclude: what must not be trained on.
        probe: linear probing; None leaves the stage out.
        select: selection; None leaves it out.
        trainable: which weights fine-tuning changes.
        finetune: how.
        replay: original training examples for each selected one; all of them if None.
        seeds: one fine-tuning each; the mean of several is taken (a model soup).
        interpolate: None leaves the stage out and keeps the fine-tuned weights.
        calibrate: None leaves the stage out.
        exits: None leaves them out.
        seed: of all draws.
    """

    path: Path
    model: ModelChoice
    sources: tuple[Source, ...]
    exclude: Exclude = field(default_factory=Exclude)
    probe: ProbeSettings | None = None
    select: SelectStage | None = None
    trainable: Trainable = field(default_factory=Trainable)
    finetune: FinetuneSettings = field(default_factory=FinetuneSettings)
    replay: Amount | None = None
    seeds: Annotated[tuple[Whole, ...], Field(min_length=1)] = (0,)
    interpolate: InterpolateStage | None = None
    calibrate: CalibrateStage | None = CalibrateStage()
    exits: ExitsStage | None = None
    seed: Whole = 0

    def used_for(self, *uses: str) -> list[Source]:
        """The sources with one of these uses."""
        return [source for source in self.sources if source.use in uses]

    @property
    def grades(self) -> int:
        """Number of grades K of the model."""
        return len(self.model.scale)
