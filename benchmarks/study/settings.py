"""What a study consists of: its collections by role, budgets, seeds, and how models are trained. Two are defined here.

Roles. "home": pairs that can be labelled from the start (in-distribution, ID); "pool": unlabelled pairs of other
domains, whose labels are hidden until a strategy has chosen a pair; "home_dev", "away_dev": held out for temperature,
α and early stopping, the same ones in every arm; "home_test" (ID) and "away_test" (out-of-distribution, OOD): drawn by
query without regard to any model, never seen by training or selection.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from darl_rerank.model.scale import SCALES
from darl_rerank.training.recipe.settings import FinetuneSettings, ModelChoice, Trainable
from darl_rerank.training.recipe.source import Negatives, Source

ROLES = ("home", "home_dev", "home_test", "pool", "away_dev", "away_test")
# How much a measure may fall and still count as "no worse": stated here, before any arm was run.
MARGIN = 0.02


@dataclass(frozen=True, slots=True)
class Study:
    """One study.

    Attributes:
        name: of its result files.
        title: of its part of docs/study-tables.md.
        roles: sources by role; the sources' own `use` does not count.
        model: what every arm starts from; zero-shot.
        layers: how many of the decoder's last layers are fine-tuned (LoRA); what lies below is computed once.
        home_pairs: labelled ID pairs that every arm has, whole queries, drawn anew for every seed.
        pool_home: ID pairs among the unlabelled pool, as traffic would have them: of queries not drawn for training.
        budgets: pairs of the pool that are labelled beside them; the first one is run first.
        per_query: at most so many chosen pairs of a query, in every strategy.
        band: DASA's band of novelty percentiles.
        away_groups: whether to measure the groups of "away_test" one by one, too.
        head_seeds, seeds: how many seeds at the screening level and with fine-tuning.
        finetune: how; loss and seed are the arm's.
        alphas: weights of the interpolation that are tried, 0 the probe and 1 the fine-tuned model.
        resamples: draws of the bootstrap.
    """

    name: str
    title: str
    roles: Mapping[str, tuple[Source, ...]]
    model: ModelChoice
    layers: int = 10
    home_pairs: int = 1000
    pool_home: int = 1000
    budgets: tuple[int, ...] = (250, 1000)
    per_query: int = 5
    band: tuple[float, float] = (80.0, 99.5)
    away_groups: bool = False
    head_seeds: int = 5
    seeds: int = 3
    finetune: FinetuneSettings = field(default_factory=lambda: FinetuneSettings(batch=16, epochs=2, save_minutes=1))
    alphas: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    resamples: int = 1000

    @property
    def trainable(self) -> Trainable:
        return Trainable(layers=self.layers)

    def facts(self) -> dict[str, Any]:
        """The settings that a reader of the results needs, as JSON types."""
        return {
            "base": self.model.base if self.model.checkpoint is None else self.model.checkpoint.name,
            "scale": self.model.scale.name,
            "max_length": self.model.max_length,
            "layers": self.layers,
            "home_pairs": self.home_pairs,
            "pool_home": self.pool_home,
            "budgets": list(self.budgets),
            "per_query": self.per_query,
            "band": list(self.band),
            "finetune": asdict(self.finetune),
            "trainable": asdict(self.trainable),
            "alphas": list(self.alphas),
            "resamples": self.resamples,
            "no_worse_margin": MARGIN,
        }


def digest(values: Any) -> str:
    """A short name for JSON-like values: equal values, equal name."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]


# The forum's four largest categories are chatter; what is left is mostly about papers, work, shops and sights.
FORUM_HOME = ("Qatar Living Lounge", "Family Life in Qatar", "Advice and Help", "Socialising")


def forum(data: Path) -> Study:
    """SemEval 2016 task 3, question and comment, three grades: categories of one forum (near-OOD)."""
    folder = data / "semeval-cqa"

    def part(name: str, away: bool, low: float, high: float) -> tuple[Source, ...]:
        return (
            Source(
                name=name,
                topics=folder / "topics.tsv",
                corpus=folder / "corpus.jsonl.gz",
                qrels=folder / "qrels.txt",
                groups_file=folder / "categories.tsv",
                only_groups=() if away else FORUM_HOME,
                skip_groups=FORUM_HOME if away else (),
                part=(low, high),
            ),
        )

    return Study(
        name="forum",
        title="Forum: question and comment, other categories of one forum",
        roles={
            "home": part("home", False, 0.0, 0.58),
            "home_dev": part("home-dev", False, 0.58, 0.68),
            "home_test": part("home-test", False, 0.68, 1.0),
            "pool": part("away", True, 0.0, 0.55),
            "away_dev": part("away-dev", True, 0.55, 0.65),
            "away_test": part("away-test", True, 0.65, 1.0),
        },
        # Questions are long and repeated for each comment only once; at 192 tokens few comments are cut.
        model=ModelChoice(scale=SCALES["ternary"], max_length=192),
    )


# What a label of another collection says on the scale irrelevant, related, relevant, perfect.
CHOSEN: Mapping[int, float] = {2: 0.5, 3: 0.5}
PASSED_OVER: Mapping[int, float] = {0: 0.7, 1: 0.3}
_BINARY = {"0": PASSED_OVER, "1": CHOSEN}


def shop(data: Path) -> Study:
    """Web passages to product, film and medical search, four grades (far-OOD); Icecat is seen by no training.

    trec-dl-2022 has no labels here, so it can't be in a pool whose labels are asked for.
    """

    def source(name: str, folder: str, **settings: Any) -> Source:
        at = data / folder
        qrels = "qrels.txt.gz" if (at / "qrels.txt.gz").is_file() else "qrels.txt"
        return Source(
            name=name, topics=at / "topics.tsv", corpus=at / "corpus.jsonl.gz", qrels=at / qrels,
            partial=True, group=folder, **settings,
        )  # fmt: skip

    def web(name: str, low: float, high: float, questions: int, documents: int) -> tuple[Source, ...]:
        return (
            source(f"{name}-graded", "trec-dl-2021", part=(low, high), max_documents=documents),
            source(
                f"{name}-questions", "natural-questions", part=(low, high), max_queries=questions,
                grades={"1": CHOSEN}, negatives=Negatives(bm25=True, depth=30, per_query=2, random=1),
            ),
        )  # fmt: skip

    products: dict[str, Any] = {"max_documents": 4, "grades": {"0": 0, "1": 1, "2": CHOSEN}}
    return Study(
        name="shop",
        title="Web to shop: from passages of the web to products, films and medicine",
        roles={
            "home": web("home", 0.0, 0.8, 400, 24),
            "home_dev": web("home-dev", 0.8, 1.0, 40, 24),
            "home_test": (source("home-test", "trec-dl-2019", max_documents=60),),
            "pool": (
                source("products", "product-questions", part=(0.0, 0.7), max_queries=250, **products),
                source("films", "msrd", part=(0.0, 0.7), max_queries=120, max_documents=8, grades=_BINARY),
                source(
                    "medicine", "medquad", part=(0.0, 0.7), max_queries=200, max_documents=2,
                    grades={"1": CHOSEN}, negatives=Negatives(bm25=True, depth=30, per_query=1, random=1),
                ),
            ),
            "away_dev": (
                source("products-dev", "product-questions", part=(0.7, 1.0), max_queries=40, **products),
                source("films-dev", "msrd", part=(0.7, 0.8), max_queries=20, max_documents=8, grades=_BINARY),
            ),
            "away_test": (
                source("shop-test", "icecat", max_documents=20),
                source("films-test", "msrd", part=(0.8, 1.0), max_queries=100, max_documents=10, grades=_BINARY),
            ),
        },
        model=ModelChoice(scale=SCALES["trec4"], max_length=192),
        away_groups=True,
    )  # fmt: skip


STUDIES: dict[str, Callable[[Path], Study]] = {"forum": forum, "shop": shop}
