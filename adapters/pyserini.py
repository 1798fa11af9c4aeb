"""Pyserini as the first stage: its hits in, the same hits out in the order of the graded second stage.

Uses only API that Pyserini 1.6 and 2.x share: `search`, `batch_search`, `doc`, and `docid`, `score` and
`lucene_document` of a hit. Building and reading Lucene indexes is in `darl_rerank.adapters.lucene`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

from darl_rerank.arguments import check_count
from darl_rerank.errors import InputError
from darl_rerank.results import RankedDocument
from darl_rerank.trec.runs import strictly_decreasing

from .jvm import ensure_jvm, jvm_lock
from .lucene import LuceneDocuments, build_lucene_index, lucene_search, open_lucene_index
from .stored_text import TEXT_FIELDS, stored_text

__all__ = [
    "LuceneDocuments",
    "RerankedHit",
    "RerankingSearcher",
    "build_lucene_index",
    "ensure_jvm",
    "jvm_lock",
    "lucene_search",
    "open_lucene_index",
    "rerank_batch",
    "rerank_hits",
    "stored_text",
]


def __getattr__(name: str) -> Any:
    """Pyserini's own `LuceneSearcher`, imported when it is asked for, since Java has to be started before."""
    if name != "LuceneSearcher":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    ensure_jvm()
    from pyserini.search.lucene import LuceneSearcher

    return LuceneSearcher


class CanRerank(Protocol):
    """The part of `darl_rerank.Reranker` that the adapters use."""

    @property
    def rerank_many(self) -> Callable[..., Sequence[Sequence[RankedDocument]]]: ...


class RerankedHit:
    """A hit of the first stage with its judgement; everything else is asked of the original hit.

    `isinstance` takes it for the original's class too, so that code which checks goes on working.

    Attributes:
        docid: the document's id.
        score: what hits are ordered by: expected gain, or the fusion's score with `fuse`. Where two neighbours would be
            equal in a TREC file, the lower one is moved down by about 1e-6, so that any writer keeps the order;
            `ranked.score` is never changed.
        ranked: the judgement as the reranker gave it; None for a hit below the reranked depth.
        first_stage_rank: the place, from 1, that the first stage gave it.
    """

    __slots__ = ("_hit", "docid", "first_stage_rank", "ranked", "score")

    def __init__(self, hit: Any, score: float, ranked: RankedDocument | None, first_stage_rank: int) -> None:
        self._hit = hit
        self.docid: str = hit.docid
        self.score = score
        self.ranked = ranked
        self.first_stage_rank = first_stage_rank

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self._hit)

    @property
    def first_stage_score(self) -> float:
        """The score that the first stage gave it."""
        return float(self._hit.score)

    @property
    def grade(self) -> int | None:
        """The grade, 0 the lowest; None for a hit that was not judged."""
        return None if self.ranked is None else self.ranked.grade

    @property
    def grade_name(self) -> str | None:
        """The name of the grade; None for a hit that was not judged."""
        return None if self.ranked is None else self.ranked.grade_name

    @property
    def probabilities(self) -> tuple[float, ...] | None:
        """Calibrated probability of every grade, lowest first; None for a hit that was not judged."""
        return None if self.ranked is None or not self.ranked.judged else self.ranked.probabilities

    @property
    def novelty(self) -> float | None:
        """Percentile 0 to 100; None for a hit that was not judged or where the model has no novelty statistics."""
        return None if self.ranked is None else self.ranked.novelty

    def __getattr__(self, name: str) -> Any:
        if name in RerankedHit.__slots__:  # not set yet: copying makes an empty object first
            raise AttributeError(name)
        return getattr(self._hit, name)

    def __repr__(self) -> str:
        return f"RerankedHit(docid={self.docid!r}, score={self.score:.6f}, grade={self.grade})"


def rerank_hits(
    reranker: CanRerank,
    query: str,
    hits: Sequence[Any],
    *,
    depth: int | None = None,
    top_k: int | None = None,
    text_fields: Sequence[str] = TEXT_FIELDS,
    lookup: Any = None,
    fuse: Literal["auto"] | None = None,
) -> list[RerankedHit]:
    """Rerank the hits of one query.

    Args:
        reranker: what judges.
        query: the query's text.
        hits: what `search` of any Pyserini searcher returned, or anything else with `docid` and `score`.
        depth: how many hits to judge; the rest follows unjudged, in its old order. All if None.
        top_k: how many hits to return; all if None.
        text_fields: which fields make up the text, see `stored_text`.
        lookup: where texts come from if hits carry none (`FaissSearcher`, hybrid): a mapping or callable from docid
            to string, mapping or document, or a searcher with `doc`, such as `LuceneSearcher`.
        fuse: "auto" orders by the model's scores and the hits' own together, see `Reranker.rerank`.

    A hit without text is not judged: it follows the judged ones, `ranked.judged` is False and `ranked.reason` says why.

    Raises:
        InputError: no hit has a text, an empty query, `depth` or `top_k` below 1.
    """
    options = {"depth": depth, "top_k": top_k, "text_fields": text_fields, "lookup": lookup, "fuse": fuse}
    return rerank_batch(reranker, {"": query}, {"": hits}, **options)[""]


def rerank_batch(
    reranker: CanRerank,
    queries: Mapping[str, str],
    results: Mapping[str, Sequence[Any]],
    *,
    depth: int | None = None,
    top_k: int | None = None,
    text_fields: Sequence[str] = TEXT_FIELDS,
    lookup: Any = None,
    fuse: Literal["auto"] | None = None,
) -> dict[str, list[RerankedHit]]:
    """Rerank what `batch_search` returned; the arguments are those of `rerank_hits`, by query id.

    Raises:
        InputError: as `rerank_hits`, or a result without query.
    """
    for name, value in (("depth", depth), ("top_k", top_k)):
        if value is not None:
            check_count(name, value)
    if isinstance(text_fields, str):
        raise InputError(f"text_fields must be a sequence of names, got the string {text_fields!r}")
    if unknown := [qid for qid in results if qid not in queries]:
        raise InputError(f"{len(unknown)} results have no query: {', '.join(map(str, unknown[:5]))}")
    find = _as_lookup(lookup)
    # An empty result asks nothing of the reranker, not even whether its query is sound.
    asked = [qid for qid, hits in results.items() if hits]
    with jvm_lock:
        documents = _documents([results[qid][:depth] for qid in asked], text_fields, find)
    rules = {} if fuse is None else {"fuse": fuse}
    rankings = reranker.rerank_many([queries[qid] for qid in asked], documents, **rules) if asked else []
    by_qid = dict(zip(asked, rankings, strict=True))
    return {qid: _reordered(hits, by_qid.get(qid, []))[:top_k] for qid, hits in results.items()}


def _reordered(hits: Sequence[Any], ranking: Sequence[RankedDocument]) -> list[RerankedHit]:
    tail = hits[len(ranking) :]
    scores = [ranked.score if ranked.fused is None else ranked.fused for ranked in ranking] + [None] * len(tail)
    kept: list[float] = []
    for score, written in zip(scores, strictly_decreasing(scores), strict=True):
        kept.append(score if score is not None and f"{score:.6f}" == written else float(written))
    head = [
        RerankedHit(hits[ranked.index], score, ranked, ranked.index + 1)
        for ranked, score in zip(ranking, kept, strict=False)
    ]
    rest = zip(tail, kept[len(ranking) :], strict=True)
    return head + [RerankedHit(hit, score, None, rank) for rank, (hit, score) in enumerate(rest, len(ranking) + 1)]


def _documents(
    lists: Sequence[Sequence[Any]], text_fields: Sequence[str], find: Callable[[str], Any] | None
) -> list[list[dict[str, Any]]]:
    """Ids, texts and scores of the hits of several queries; the text of a hit that has none is empty.

    Raises:
        InputError: what is there are no hits, or none of them has a text: then it is the set-up that is wrong.
    """
    faults: list[InputError] = []

    def text(hit: Any) -> str:
        if not isinstance(getattr(hit, "docid", None), str):
            raise InputError(f"expected hits with docid and score, got {type(hit).__name__}")
        try:
            return _hit_text(hit, text_fields, find)
        except InputError as error:
            faults.append(error)
            return ""

    documents = [
        [{"text": text(hit), "id": hit.docid, "score": getattr(hit, "score", None)} for hit in hits] for hits in lists
    ]
    if faults and not any(document["text"] for found in documents for document in found):
        raise faults[0]
    return documents


def _hit_text(hit: Any, text_fields: Sequence[str], find: Callable[[str], Any] | None) -> str:
    if find is not None:
        return stored_text(hit.docid, find(hit.docid), text_fields)
    stored = getattr(hit, "lucene_document", None)
    if stored is None:
        raise InputError(
            f"document {hit.docid}: {type(hit).__name__} carries no text, as dense and hybrid results don't: "
            "give lookup, for example a LuceneSearcher or a mapping from docid to text"
        )
    return stored_text(hit.docid, stored, text_fields)


def _as_lookup(lookup: Any) -> Callable[[str], Any] | None:
    if lookup is None:
        return None
    if isinstance(lookup, Mapping):
        return lookup.get
    document = getattr(lookup, "doc", None)
    find = document if callable(document) else lookup
    if not callable(find):
        raise InputError(
            f"lookup must be a mapping, a callable or a searcher with doc(docid), got {type(lookup).__name__}"
        )
    return find  # type: ignore[no-any-return]


class RerankingSearcher:
    """A searcher of Pyserini with the graded second stage behind it; used as the searcher was.

    `search` and `batch_search` ask the searcher for `depth` hits, rerank them and return the best `k`. With `k` above
    `depth`, the hits below `depth` follow unjudged in the first stage's order. All else is asked of the searcher.
    Safe to call from several threads, each with the results it would get alone: the searcher is asked and texts are
    read by one thread at a time, under `jvm_lock`. Take that lock too around what your threads ask of Java themselves,
    such as `hit.lucene_document.get`.

    Args:
        searcher: `LuceneSearcher`, `FaissSearcher`, a hybrid searcher, a `FusionSearcher`.
        reranker: what judges.
        depth: how many hits of each query to judge.
        text_fields: which fields make up the text, see `stored_text`.
        lookup: where texts come from if hits carry none, see `rerank_hits`.
        fuse: "auto" orders by both scores together, see `rerank_hits`.

    Raises:
        InputError: `depth` below 1, or an index without documents.
    """

    def __init__(
        self,
        searcher: Any,
        reranker: CanRerank,
        depth: int = 100,
        *,
        text_fields: Sequence[str] = TEXT_FIELDS,
        lookup: Any = None,
        fuse: Literal["auto"] | None = None,
    ) -> None:
        check_count("depth", depth)
        if getattr(searcher, "num_docs", None) == 0:
            raise InputError("the index has no documents", path=getattr(searcher, "index_dir", None))
        self.searcher = searcher
        self.reranker = reranker
        self.depth = depth
        self._options: dict[str, Any] = {
            "depth": depth, "text_fields": text_fields, "lookup": _as_lookup(lookup), "fuse": fuse,
        }  # fmt: skip

    def __getattr__(self, name: str) -> Any:
        if name == "searcher":  # not set yet: copying makes an empty object first
            raise AttributeError(name)
        return getattr(self.searcher, name)

    def search(self, q: Any = None, k: int = 10, *, query_text: str | None = None, **options: Any) -> list[RerankedHit]:
        """The best `k` documents for one query.

        Args:
            q: the query, as the searcher takes it; `query`, as Pyserini's dense searchers name it, does as well.
            k: how many to return.
            query_text: the query's text for the reranker, where `q` is a Lucene query or a vector.
            options: passed on to the searcher.

        Raises:
            InputError: `k` below 1, no query text, or as `rerank_hits`.
        """
        if q is None:
            q = options.pop("query", None)
        text = _query_text(q if query_text is None else query_text)
        wider = self._wider(self.searcher.search, k, options)
        with jvm_lock:
            hits = self.searcher.search(q, k=self._candidates(k), **wider)
        return rerank_hits(self.reranker, text, hits, top_k=k, **self._options)

    def batch_search(
        self,
        queries: Sequence[Any],
        qids: Sequence[str] | None = None,
        k: int = 10,
        threads: int = 1,
        *,
        query_texts: Sequence[str] | None = None,
        **options: Any,
    ) -> dict[str, list[RerankedHit]]:
        """The best `k` documents for each query, by query id, in the order of `qids`.

        Args:
            queries: the queries, as the searcher takes them.
            qids: their ids; `q_ids`, as Pyserini's dense searchers name them, does as well.
            k: how many to return for each.
            threads: how many threads the first stage may use.
            query_texts: the queries' texts for the reranker, where `queries` are not texts.
            options: passed on to the searcher.

        Raises:
            InputError: `k` below 1, ids that are not unique or not as many as queries, or as `rerank_hits`.
        """
        ids = options.pop("q_ids", None) if qids is None else qids
        if ids is None or len(ids) != len(queries):
            raise InputError(f"got {len(queries)} queries but {0 if ids is None else len(ids)} query ids")
        if len(set(ids)) != len(ids):
            raise InputError("query ids must be unique")
        given = queries if query_texts is None else query_texts
        texts = {qid: _query_text(text) for qid, text in zip(ids, given, strict=True)}
        if not texts:
            return {}
        wider = self._wider(self.searcher.batch_search, k, options)
        with jvm_lock:
            found = self.searcher.batch_search(queries, ids, k=self._candidates(k), threads=threads, **wider)
        results = {qid: found[qid] for qid in ids if qid in found}
        return rerank_batch(self.reranker, texts, results, top_k=k, **self._options)

    def _candidates(self, k: int) -> int:
        check_count("k", k)
        return max(k, self.depth)

    def _wider(self, search: Callable[..., Any], k: int, options: dict[str, Any]) -> dict[str, Any]:
        if options.get("return_vector"):
            raise InputError("return_vector can't be asked of a reranking searcher: ask its .searcher")
        # A hybrid searcher takes k0 hits of each of its two; left at its default it would never return `depth` of them.
        if "k0" in options or "k0" not in inspect.signature(search).parameters:
            return options
        return {**options, "k0": self._candidates(k)}


def _query_text(query: Any) -> str:
    if not isinstance(query, str):
        raise InputError(
            f"the reranker needs the query's text, got {type(query).__name__}: give query_text (or query_texts)"
        )
    return query
