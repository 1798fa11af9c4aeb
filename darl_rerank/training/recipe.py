"""The recipe of a training: a TOML file whose faults are all reported at once.

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

`docs/training.md` has every key.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from darl_rerank.errors import InputError
from darl_rerank.model.scale import SCALES, RelevanceScale

from .finetune import FinetuneSettings
from .grade_model import Trainable
from .interpolate import ALPHAS
from .probe import ProbeSettings
from .selection.strategies import SelectionSettings
from .sources import Source


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """What a training starts from.

    Attributes:
        base: "smollm2", a local folder or a hub id.
        checkpoint: the folder of a checkpoint to go on from instead; in a recipe also the name of one that ships.
        scale: the grades; those of `checkpoint`, if it is given.
        max_length: longest prompt in tokens; None keeps the checkpoint's, or 512.
        keep_if_better: the outcome is `checkpoint` as it was, if the trained model is worse than it on the held-out
            pairs.
    """

    base: str = "smollm2"
    checkpoint: Path | None = None
    scale: RelevanceScale = SCALES["trec4"]
    max_length: int | None = None
    keep_if_better: bool = False


@dataclass(frozen=True, slots=True)
class SelectStage:
    """Which pairs of the pool are labelled and added to the training set.

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

    budget: int
    strategy: str = "dasa"
    settings: SelectionSettings = field(default_factory=SelectionSettings)
    labels: str = "annotations"
    annotations: Path | None = None
    teacher: Path | None = None


@dataclass(frozen=True, slots=True)
class InterpolateStage:
    """How α is swept and chosen; see `interpolate.alpha_curve`."""

    alphas: tuple[float, ...] = ALPHAS
    choose_by: str = "rps"


@dataclass(frozen=True, slots=True)
class CalibrateStage:
    """What calibration is and which held-out pairs it is fitted on; see `calibrate.fit_calibration`.

    Attributes:
        novelty: whether the temperature follows novelty.
        bias: whether each grade gets a bias beside it.
        soft: whether pairs with soft labels count. Such a label is only as sure as whoever set it down meant to be.
    """

    novelty: bool = True
    bias: bool = False
    soft: bool = True


@dataclass(frozen=True, slots=True)
class Recipe:
    """A whole training.

    Attributes:
        path: the file it was read from.
        model: what it starts from.
        sources: the training collections.
        exclude_topics, exclude_corpora: collections whose queries and documents must not be trained on.
        probe: linear probing; None leaves the stage out.
        select: selection; None leaves it out.
        trainable: which weights fine-tuning changes.
        finetune: how.
        replay: original training examples for each selected one; all of them if None.
        seeds: one fine-tuning each; the mean of several is taken (a model soup).
        interpolate: None leaves the stage out and keeps the fine-tuned weights.
        calibrate: None leaves the stage out.
        seed: of all draws.
    """

    path: Path
    model: ModelChoice
    sources: tuple[Source, ...]
    exclude_topics: tuple[Path, ...] = ()
    exclude_corpora: tuple[Path, ...] = ()
    probe: ProbeSettings | None = None
    select: SelectStage | None = None
    trainable: Trainable = field(default_factory=Trainable)
    finetune: FinetuneSettings = field(default_factory=FinetuneSettings)
    replay: float | None = None
    seeds: tuple[int, ...] = (0,)
    interpolate: InterpolateStage | None = None
    calibrate: CalibrateStage | None = CalibrateStage()
    seed: int = 0

    def used_for(self, *uses: str) -> list[Source]:
        """The sources with one of these uses."""
        return [source for source in self.sources if source.use in uses]

    @property
    def grades(self) -> int:
        """Number of grades K of the model."""
        return len(self.model.scale)


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
    from .recipe_reader import RecipeReader

    return RecipeReader(path).read(values)
