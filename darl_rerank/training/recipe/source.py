"""Which collections a recipe reads: [[source]], [source.negatives] and [exclude]."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import model_validator

from .checked import checked
from .fields import Amount, Count, File, Interval, Label, Text, Whole

Use = Literal["train", "known", "pool", "ood_dev", "test", "ood_test"]
# The model learns or knows these pairs, and some of their queries are held out.
LEARNED = ("train", "known")


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
