"""Which novelty score tells far domains from web passages: python benchmarks/novelty.py DATA CACHE [--help]

A model trained on some collections should find other domains strange, and web passages, which are like what it was
trained on without being it, hardly. Small samples of collections are run through the model, and every combination of
feature part, number of dimensions and score is compared by AUROC and FPR95:

    home        trained on questions, products and films: a forum against web passages (judged pairs of a TREC Deep
                Learning track), and these against held-out queries of the training collections
    wikipedia   trained on questions on Wikipedia: products against web passages
    forum       held-out categories of a forum against held-out questions of the categories trained on

DATA is a folder of collections (topics.tsv, corpus.jsonl.gz, qrels.txt). Features are kept in CACHE, a folder a set, so
a second run only scores. Scores are chosen on the development sets; the test sets (trec-dl-2019, icecat, medquad) are
printed with --test, for the library's default alone.

With --layer the middle part is behind that layer, and only the layers up to it are run: the last layer's part is not
compared.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from provenance import write_result
from sklearn.covariance import LedoitWolf
from tqdm import tqdm

from darl_rerank import Checkpoint, RelevanceScale, Reranker
from darl_rerank.engines.loading import load_engine
from darl_rerank.evaluation.detection import auroc, fpr_at_recall
from darl_rerank.model.novelty import MAHALANOBIS, NEIGHBOUR, PART_WEIGHTS, fit_novelty
from darl_rerank.training.data.features import extract_features
from darl_rerank.training.data.sources import load_source
from darl_rerank.training.recipe.source import Negatives, Source
from darl_rerank.trec.graded_pairs import GradedPair

GRADES = 4
HOME = ("natural-questions", "wiki-qa-mix", "selqa", "product-questions", "msrd")
# Positives only: their negatives are drawn, or a model of novelty would know pairs that fit and no others.
POSITIVES_ONLY = ("natural-questions", "wiki-qa-mix", "medquad")
CATEGORIES = ("Visas and Permits", "Salary and Allowances", "Working in Qatar", "Moving to Qatar", "Opportunities")
AWAY = ("Politics", "Qatari Culture", "Funnies", "Health and Fitness", "Sports in Qatar", "Computers and Internet",
        "Pets and Animals", "Environment", "Education", "Cars and driving")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample of a collection: so many queries with so many documents each, of a share of its queries."""

    collection: str
    queries: int
    documents: int = 2
    part: tuple[float, float] = (0.0, 1.0)
    groups: tuple[str, ...] = ()

    def pairs(self, data: Path, words: int, seed: int) -> list[GradedPair]:
        """Its pairs, documents cut to `words` words so that length alone tells no domain; 0: not cut."""
        folder = data / self.collection
        drawn = self.collection in POSITIVES_ONLY
        source = Source(
            name=self.collection,
            use="train",
            topics=folder / "topics.tsv",
            corpus=folder / "corpus.jsonl.gz",
            qrels=next(path for path in (folder / "qrels.txt", folder / "qrels.txt.gz") if path.is_file()),
            partial=True,
            negatives=Negatives(per_query=0, random=1) if drawn else None,
            groups_file=folder / "categories.tsv" if self.groups else None,
            only_groups=self.groups,
            part=self.part,
            max_queries=self.queries,
            max_documents=self.documents - drawn,
        )
        found = load_source(source, GRADES, seed=seed).train
        return [replace(p, document=" ".join(p.document.split()[:words])) for p in found] if words else found


def samples() -> dict[str, Sample]:
    sets = {f"{name}/train": Sample(name, 100, part=(0.0, 0.7)) for name in HOME}
    sets |= {f"{name}/home": Sample(name, 80, part=(0.7, 1.0)) for name in HOME}
    sets["trec-dl-2021"] = Sample("trec-dl-2021", 50, 4)
    sets["medquad"] = Sample("medquad", 100)
    sets["forum/train"] = Sample("semeval-cqa", 100, part=(0.0, 0.7), groups=CATEGORIES)
    sets["forum/home"] = Sample("semeval-cqa", 80, part=(0.7, 1.0), groups=CATEGORIES)
    sets["forum/away"] = Sample("semeval-cqa", 100, groups=AWAY)
    sets["trec-dl-2019"] = Sample("trec-dl-2019", 43, 5)
    sets["icecat"] = Sample("icecat", 100)
    return sets


@dataclass(frozen=True, slots=True)
class Features:
    """What is compared: features of each set, and the grades of the training sets (for the relative distance)."""

    of: dict[str, NDArray[np.float32]]
    grades: dict[str, NDArray[np.intp]]
    queries: dict[str, NDArray[np.str_]]

    def joined(self, names: Sequence[str]) -> NDArray[np.float32]:
        return np.concatenate([self.of[name] for name in names])


@dataclass(frozen=True, slots=True)
class Question:
    """Training sets, held-out sets of the same collections, and which sets are to be told from which.

    Attributes:
        training, home: names of sets; every second query of `home` makes the percentiles, the others are the pairs at
            home, under the name "home".
        told: (outside, inside) of each comparison.
    """

    name: str
    training: tuple[str, ...]
    home: tuple[str, ...]
    told: tuple[tuple[str, str], ...]

    @property
    def sets(self) -> set[str]:
        return {*self.training, *self.home, *(name for pair in self.told for name in pair if name != "home")}


def questions(test: bool) -> list[Question]:
    def both(names: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return tuple(f"{n}/train" for n in names), tuple(f"{n}/home" for n in names)

    web = "trec-dl-2021"
    asked = [
        Question("home", *both(HOME), (("forum/away", web), (web, "home"))),
        Question("wikipedia", *both(HOME[:3]), (("product-questions/train", web), ("product-questions/train", "home"))),
        Question("forum", ("forum/train",), ("forum/home",), (("forum/away", "home"),)),
    ]
    if test:
        told = (("icecat", "trec-dl-2019"), ("medquad", "trec-dl-2019"), ("icecat", "home"), ("trec-dl-2019", "home"))
        asked.append(Question("test", *both(HOME), told))
    return asked


def compare(
    question: Question, features: Features, parts: tuple[float, ...], dimensions: int, seed: int
) -> dict[str, dict[str, dict[str, float]]]:
    """AUROC and FPR95 by score and comparison, with these part weights and this many directions."""
    known = features.joined(question.training)
    home = features.joined(question.home)
    queries = np.concatenate([features.queries[name] for name in question.home])
    even = np.isin(queries, np.unique(queries)[::2])
    weights = np.repeat(np.array(parts, dtype=np.float32), known.shape[1] // len(parts))
    model = fit_novelty(known, home[even], weights=weights, dimensions=dimensions, seed=seed)
    others = {name: features.of[name] for pair in question.told for name in pair if name != "home"}
    sets = {"home": home[~even], **others}
    grades = np.concatenate([features.grades[name] for name in question.training])
    positions = model.project(known)[0]
    old = _Former(positions, grades)
    scores = {}
    for name, x in sets.items():
        raw, (where, rest) = model.raw(x), model.project(x)
        scores[name] = {
            "novelty": model.combine(raw),
            "mahalanobis": raw[MAHALANOBIS],
            "neighbour": raw[NEIGHBOUR],
            "kept directions": np.square(where, dtype=np.float64) @ (1 / model.variances),
            "off directions": rest.astype(np.float64),
            **old(where),
        }
    found: dict[str, dict[str, dict[str, float]]] = {}
    for outside, inside in question.told:
        labels = np.repeat([True, False], [len(sets[outside]), len(sets[inside])])
        for score in scores[outside]:
            values = np.concatenate([scores[outside][score], scores[inside][score]])
            found.setdefault(score, {})[f"{outside} | {inside}"] = {
                "auroc": float(auroc(labels, values)),
                "fpr95": float(fpr_at_recall(labels, values)),
            }
    return found


class _Former:
    """The scores that the library had at first, for comparison: they take cosines of, and grades' means in, `where`."""

    def __init__(self, positions: NDArray[np.float32], grades: NDArray[np.intp]) -> None:
        self._unit = _unit(positions)
        means = {int(g): positions[grades == g].mean(axis=0) for g in np.unique(grades)}
        residuals = positions - np.stack([means[int(g)] for g in grades])
        self._tied = LedoitWolf(assume_centered=True).fit(residuals)
        self._all = LedoitWolf(assume_centered=True).fit(positions)
        self._means = list(means.values())

    def __call__(self, where: NDArray[np.float32]) -> dict[str, NDArray[np.float64]]:
        nearest = np.min([self._tied.mahalanobis(where - mean) for mean in self._means], axis=0)
        return {
            "relative mahalanobis": nearest - self._all.mahalanobis(where),
            "centred cosine": 1 - np.sort(_unit(where) @ self._unit.T, axis=1)[:, -10].astype(np.float64),
        }


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


# Weights of the parts: mean of the middle layer, its last token, last token of the final layer.
PARTS = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 1.0, 0.0), (0.5, 1.0, 0.0), (1.0, 1.0, 1.0))
DIMENSIONS = (32, 64, 128, 256)
DEFAULT = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--model", type=Path, help="a checkpoint; the untrained base model if not given")
    parser.add_argument("--layer", type=int, help="whose states are the middle part; the model's own if not given")
    parser.add_argument("--words", type=int, default=100, help="words of a document that are kept; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--test", action="store_true", help="also the test sets, by the library's default alone")
    parser.add_argument("--question", action="append", help="ask this one; may be repeated; all if not given")
    parser.add_argument("--name", default="novelty", help="of the file in results/")
    args = parser.parse_args()

    asked = [question for question in questions(args.test) if not args.question or question.name in args.question]
    features = extracted(args, set().union(*(question.sets for question in asked)))
    tables: dict[str, Any] = {}
    for question in asked:
        test = question.name == "test"
        runs = [(parts, DEFAULT) for parts in PARTS if not (args.layer and parts[2])]
        runs += [(PART_WEIGHTS, d) for d in DIMENSIONS if d != DEFAULT]
        for parts, dimensions in [(PART_WEIGHTS, DEFAULT)] if test else tqdm(runs, desc=question.name):
            key = f"parts {'/'.join(f'{p:g}' for p in parts)}, {dimensions} dimensions"
            tables.setdefault(question.name, {})[key] = compare(question, features, parts, dimensions, args.seed)
        show(question.name, tables[question.name])
    sizes = {name: len(rows) for name, rows in features.of.items()}
    setting = {
        "model": args.model.name if args.model else "smollm2, untrained",
        "layer": args.layer, "words": args.words, "seed": args.seed,
    }  # fmt: skip
    print(write_result(args.name, {**setting, "pairs": sizes, "default": list(PART_WEIGHTS), "tables": tables}))


def extracted(args: argparse.Namespace, sets: set[str]) -> Features:
    """The features of these sets, from the cache as far as they are there."""
    if args.model:
        checkpoint = Checkpoint.load(args.model)
    else:
        checkpoint = Checkpoint.from_base("smollm2", RelevanceScale.named("trec4"))
    # Its own novelty is not asked for, and would only cost time.
    checkpoint = checkpoint.replace(novelty=None)
    if args.layer:
        checkpoint = checkpoint.replace(feature_layer=args.layer, layers=args.layer, exits=None)
    reranker = Reranker(checkpoint, load_engine(checkpoint, "torch", device="cpu", precision=None, exit="off"))
    found = Features({}, {}, {})
    for name, sample in samples().items():
        if name not in sets:
            continue
        pairs = sample.pairs(args.data, args.words, args.seed)
        rows = extract_features(reranker, pairs, args.cache / name.replace("/", "-"), description=name)
        found.of[name] = np.asarray(rows.features, dtype=np.float32)
        found.grades[name] = np.array([pair.hard_grade for pair in pairs])
        found.queries[name] = np.array([f"{name}/{pair.qid}" for pair in pairs])
    return found


def show(name: str, table: dict[str, dict[str, dict[str, dict[str, float]]]]) -> None:
    """AUROC / FPR95: a row a set-up and score, a column a comparison."""
    columns = list(next(iter(next(iter(table.values())).values())))
    print(f"\n{name:58}" + "".join(f"{column:>38}" for column in columns))
    for key, scores in table.items():
        for score, cells in scores.items():
            figures = [f"{cell['auroc']:.3f} / {cell['fpr95']:.2f}" for cell in cells.values()]
            print(f"{key + ': ' + score:58}" + "".join(f"{figure:>38}" for figure in figures))


if __name__ == "__main__":
    main()
