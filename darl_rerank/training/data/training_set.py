"""All pairs of a recipe by use, checked for overlap."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace

from darl_rerank.errors import InputError
from darl_rerank.model.prompt import PromptEncoder
from darl_rerank.trec.graded_pairs import GradedPair

from ..model.initial import initial_checkpoint
from ..recipe.settings import Recipe
from ..recipe.source import LEARNED
from .examples import QueryExamples, query_examples
from .leaks import find_leaks, refuse_shared_queries
from .sources import Exclusions, SourcePairs, load_source, that_fit

# Names of held-out pairs, by where they are from.
ID_DEV, OOD_DEV = "ID dev", "OOD dev"


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """The pairs of all sources.

    Attributes:
        sources: what each gave.
        overlaps: lines that say what training and test pairs share beside queries.
    """

    sources: tuple[SourcePairs, ...]
    overlaps: tuple[str, ...] = field(default=())

    def of(self, *uses: str) -> list[GradedPair]:
        """The pairs of sources with these uses, in the sources' order, without those held out for development."""
        return [pair for source in self.sources if source.source.use in uses for pair in source.train]

    @property
    def train(self) -> list[GradedPair]:
        return self.of("train")

    @property
    def dev(self) -> list[GradedPair]:
        """In-distribution pairs, held out of the sources that are trained on or known."""
        return [pair for source in self.sources for pair in source.dev]

    @property
    def judged(self) -> tuple[list[GradedPair], list[GradedPair]]:
        """What people judged of the sources that are trained on or known, and of `dev`: novelty and calibration are
        fitted on these."""
        of_people = [source for source in self.sources if source.source.use in LEARNED and source.source.judged]
        return [p for source in of_people for p in source.train], [p for source in of_people for p in source.dev]

    def calibration_sets(self, *, novelty: bool) -> dict[str, list[GradedPair]]:
        """What calibration is fitted on, by name; those that novelty's percentiles are of stand first.

        Args:
            novelty: whether the temperature is to follow novelty. If so, known pairs say nothing of it: it is fitted
                on them, so that their novelty is lower than that of others like them.
        """
        known = [] if novelty else self.of("known")
        sets = {ID_DEV: self.judged[1], "known": known, OOD_DEV: self.of("ood_dev")}
        return {name: pairs for name, pairs in sets.items() if pairs}

    def examples(self, grades: int) -> list[QueryExamples]:
        """The training examples, each with its source's weight."""
        return [
            example
            for source in self.sources
            if source.source.use == "train"
            for example in query_examples(source.train, grades, weight=source.source.weight)
        ]

    def table(self) -> str:
        """Counts of every source, a line each."""
        lines = []
        for source in self.sources:
            shown = [f"{count:,} {name}" for name, count in source.counts.items() if count or "excluded" not in name]
            lines.append(f"{source.source.name} ({source.source.use}): {', '.join(shown)}")
        return "\n".join([*lines, *self.overlaps])

    def digest(self) -> str:
        """Changes whenever a text or a label does."""
        digest = hashlib.sha256()
        for source in self.sources:
            for pair in (*source.train, *source.dev):
                digest.update(repr((pair.query, pair.document, pair.grade, pair.probabilities, pair.group)).encode())
            digest.update(b"|")
        return digest.hexdigest()


def load_training_set(recipe: Recipe) -> TrainingSet:
    """Read all sources of a recipe and check that none of what is tested on is trained on.

    Raises:
        InputError: a source can't be read, or training pairs (or the pool) share queries with test pairs, with known
            ones or with out-of-distribution development pairs, or no held-out one has a grade and soft labels don't
            count.
    """
    excluded = Exclusions(recipe.exclude.topics, recipe.exclude.corpora)
    encoder = initial_checkpoint(recipe.model).encoder()
    grade_names = tuple(grade.name for grade in recipe.model.scale.grades)
    sources = tuple(
        _that_fit(load_source(s, recipe.grades, names=grade_names, seed=recipe.seed, excluded=excluded), encoder)
        for s in recipe.sources
    )
    overlaps = []
    # What is known but not trained on is tested on as well: calibration is fitted on it.
    for tested in (source for source in sources if source.source.use in ("known", "test", "ood_test", "ood_dev")):
        seen = ("train", "pool") if tested.source.use == "known" else (*LEARNED, "pool")
        for trained in (source for source in sources if source.source.use in seen):
            names = " and ".join(f"{s.source.use} source {s.source.name!r}" for s in (trained, tested))
            leaks = find_leaks([*trained.train, *trained.dev], [*tested.train, *tested.dev])
            refuse_shared_queries(names, leaks)
            overlaps.append(
                f"{names}: {len(leaks.queries)} queries, {leaks.documents} documents in common, "
                f"{leaks.near_duplicates} more nearly the same"
            )
    if not any(source.train for source in sources if source.source.use == "train"):
        raise InputError("there is nothing to train on", path=recipe.path)
    data = TrainingSet(sources, tuple(overlaps))
    _check_calibration(recipe, data)
    return data


def _check_calibration(recipe: Recipe, data: TrainingSet) -> None:
    """That there are pairs to calibrate on."""
    if recipe.calibrate is None or recipe.calibrate.soft:
        return
    sets = data.calibration_sets(novelty=recipe.calibrate.novelty)
    if sets and all(pair.probabilities is not None for pairs in sets.values() for pair in pairs):
        raise InputError(
            'calibrate.soft = false leaves no pairs: all labels held out are soft, expected a source for "known" or '
            '"ood_dev", or one with dev_queries, that has grades',
            path=recipe.path,
        )


def _that_fit(source: SourcePairs, encoder: PromptEncoder) -> SourcePairs:
    """Without the queries that are too long for the prompt, and their number among the counts."""
    train, dev = that_fit(source.train, encoder), that_fit(source.dev, encoder)
    left_out = len(source.train) + len(source.dev) - len(train) - len(dev)
    if not left_out:
        return source
    return replace(source, train=train, dev=dev, counts={**source.counts, "pairs with too long queries": left_out})
