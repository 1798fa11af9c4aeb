"""What a recipe may say: one class a table, one field a key, checked when it is made.

Tables whose keys are those of several classes: [finetune] is `FinetuneSettings`, `Trainable`, and `Recipe`'s replay and
seeds; [select] is `SelectStage` and `SelectionSettings`.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    File,
    FutureFile,
    Interval,
    Label,
    Layers,
    Positive,
    Scale,
    Share,
    Text,
    Unit,
    Whole,
)

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
Use = Literal["train", "known", "pool", "ood_dev", "test", "ood_test"]
# The model learns or knows these pairs, and some of their queries are held out.
LEARNED = ("train", "known")
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
class Negatives:
    """[source.negatives]: unjudged documents that are taken to be (mostly) irrelevant.

    Attributes:
        run: a run over the source's topics, whose unjudged documents are drawn from; None for the corpus only.
        bm25: have the run made: BM25 of the source's topics over its corpus (the command line does it, with Lucene).
        skip: how many of a query's first unjudged documents to leave out: unjudged positives stand there.
        depth: down to which rank of the run documents are drawn.
        per_query: how many documents of the run each query gets.
        random: how many documents of the whole corpus each query gets.
        target: their label.
    """

    run: File | None = None
    bm25: bool = False
    skip: Whole = 1
    depth: Count = 50
    per_query: Whole = 3
    random: Whole = 0
    target: Label = 0


@checked
class Source:
    """[[source]]: one collection, or a part of one.

    Attributes:
        name: what it is called in counts and in the model card.
        use: "train"; "known", judged pairs like those the model is for, which are not trained on: novelty is fitted on
            them beside what is trained on, calibration on those that are held out (on all, if the temperature does not
            follow novelty); "pool", to select from (labels it may have are hidden); "ood_dev", out-of-distribution
            pairs for interpolation and calibration; "test" and "ood_test", for the report.
        pairs: JSONL of graded pairs; or None with the next three.
        topics, corpus, qrels: as in TREC.
        run: for a pool, the run whose documents it is made of, instead of qrels.
        partial: leave out judgements whose query or document is missing, instead of failing.
        grades: the collection's labels, as text, onto the model's scale; all of them. None if they are the model's own.
        negatives: what to draw for each query besides what is judged, if anything.
        groups_file: TSV of query id and group (a forum category, a domain).
        only_groups, skip_groups: which of those groups' queries to take; all if both are empty.
        part: which share of the queries to take, as two fractions: (0, 0.8) and (0.8, 1) have no query in common. The
            order is that of a digest of the query's text, so it is the same in every source and every run.
        max_queries: at most so many queries, drawn at random; all if None.
        max_documents: at most so many documents a query, its labels as even as they can be; all if None. A recipe's
            training sources take 8 if it says nothing; `train --pairs` takes all.
        dev_queries: of a training or known source, how many queries are held out for development.
        weight: what an example counts in the loss.
        judged: of a training source, whether people judged its pairs. Calibration and novelty are fitted on judged
            pairs only.
        licence: of the data, for the model card.
        group: the group (domain) of its pairs where neither they nor `groups_file` name it; `name` if None.
    """

    name: Text
    use: Use = "train"
    pairs: File | None = None
    topics: File | None = None
    corpus: File | None = None
    qrels: File | None = None
    run: File | None = None
    partial: bool = False
    grades: Mapping[str, Label] | None = None
    negatives: Negatives | None = None
    groups_file: File | None = None
    only_groups: tuple[str, ...] = ()
    skip_groups: tuple[str, ...] = ()
    part: Interval = (0.0, 1.0)
    max_queries: Count | None = None
    max_documents: Count | None = None
    dev_queries: Whole = 0
    weight: Amount = 1.0
    judged: bool = True
    licence: Text | None = None
    group: Text | None = None

    @model_validator(mode="after")
    def _fits_its_use(self) -> Self:
        given = {key for key in ("pairs", "topics", "corpus", "qrels", "run") if getattr(self, key) is not None}
        enough = [{"pairs"}, {"topics", "corpus", "qrels"}, {"pairs", "topics", "corpus"}]
        if self.use == "pool":
            enough.append({"topics", "corpus", "run"})
        faults = []
        if given not in enough:
            found = ", ".join(sorted(given)) or "none of them"
            faults.append(f"expected pairs, or topics, corpus and qrels; found {found}")
        of_training = {"dev_queries": self.dev_queries, "negatives": self.negatives, "weight": self.weight != 1}
        of_training["judged"] = not self.judged
        unfit = [key for key, value in of_training.items() if value and (key, self.use) != ("dev_queries", "known")]
        if self.use != "train" and unfit:
            faults.append(f"{', '.join(unfit)} can't be given with use = {self.use!r}")
        if self.negatives is not None and self.negatives.bm25 and self.negatives.run is not None:
            faults.append("negatives: expected run or bm25, found both")
        if faults:
            raise ValueError("; ".join(faults))
        return self


@checked
class Exclude:
    """[exclude]: collections whose queries and documents must not be trained on.

    Attributes:
        topics: files whose queries are left out.
        corpora: files whose documents are left out.
    """

    topics: tuple[File, ...] = ()
    corpora: tuple[File, ...] = ()


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
    strategy: StrategyName = "dasa"
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
