"""What takes sentence-transformers' CrossEncoder takes the reranker too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from beir.reranking import Rerank
from datasets import Dataset
from sentence_transformers.cross_encoder.evaluation import (
    CrossEncoderClassificationEvaluator,
    CrossEncoderCorrelationEvaluator,
    CrossEncoderRerankingEvaluator,
)

from darl_rerank import InputError, Reranker
from darl_rerank.results import RankedDocument


def shares(ranking: list[RankedDocument]) -> list[float]:
    """Relevance in the order of the input."""
    return [r.score / 3 for r in sorted(ranking, key=lambda r: r.index)]


def test_predict(tiny_reranker: Reranker, query: str, texts: list[str], ranking: list[RankedDocument]) -> None:
    encoder = tiny_reranker.as_cross_encoder()
    pairs = [(query, text) for text in texts]
    scores = encoder.predict(pairs)
    assert (type(scores), scores.dtype, scores.shape) == (np.ndarray, np.float32, (4,))
    assert scores == pytest.approx(shares(ranking), abs=1e-6)
    tensor = encoder.predict(pairs, convert_to_tensor=True, batch_size=2, pool=None)
    assert torch.equal(tensor, torch.from_numpy(scores))
    tensors = encoder.predict(pairs, convert_to_numpy=False)
    assert torch.equal(torch.stack(tensors), tensor)
    assert encoder.predict(pairs[0]) == encoder.predict([list(pairs[0])])[0] == pytest.approx(scores[0], abs=1e-6)
    assert encoder.predict([]).shape == (0,)
    assert encoder.predict(np.array(pairs)) == pytest.approx(scores)
    assert encoder.predict([(query, ""), pairs[1]])[0] == 0.0


def test_pairs_of_several_queries_keep_their_order(tiny_reranker: Reranker, query: str, texts: list[str]) -> None:
    pairs = [(asked, text) for text in texts for asked in (query, "watering plants")]
    scores = tiny_reranker.as_cross_encoder().predict(pairs)
    alone = [tiny_reranker.rerank(*(pair[0], [pair[1]]))[0].score / 3 for pair in pairs]
    assert scores == pytest.approx(alone, abs=1e-6)


def test_a_progress_bar(tiny_reranker: Reranker, query: str, texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("darl_rerank.cross_encoder._CHUNK", 3)
    shown: list[Any] = []
    bar = __import__("darl_rerank.cross_encoder", fromlist=["progress_bar"]).progress_bar
    monkeypatch.setattr(
        "darl_rerank.cross_encoder.progress_bar",
        lambda *a, progress, **o: bar(*a, **o, progress=(lambda *step: shown.append(step)) if progress else False),
    )
    encoder = tiny_reranker.as_cross_encoder()
    encoder.predict([(query, text) for text in texts], show_progress_bar=True)
    assert shown == [("scoring", 0, 4), ("scoring", 3, 4), ("scoring", 4, 4)]
    encoder.predict([(query, text) for text in texts])
    assert len(shown) == 3


def test_rank(tiny_reranker: Reranker, query: str, texts: list[str], ranking: list[RankedDocument]) -> None:
    encoder = tiny_reranker.as_cross_encoder()
    found = encoder.rank(query, texts, return_documents=True)
    assert found == [{"corpus_id": r.index, "score": r.score / 3, "text": r.document} for r in ranking]
    assert encoder.rank(query, texts, top_k=1) == [{"corpus_id": ranking[0].index, "score": ranking[0].score / 3}]
    assert encoder.rank(query, []) == []


def test_what_is_refused(tiny_reranker: Reranker) -> None:
    encoder = tiny_reranker.as_cross_encoder()
    with pytest.raises(InputError, match="no"):
        encoder.predict([("a", "b")], activation_fn=torch.nn.Sigmoid())
    with pytest.raises(InputError, match=r"expected \(query, document\) pairs, got 'abc'"):
        encoder.predict(["abc"])
    with pytest.raises(InputError, match="documents must be a list of documents, got a str"):
        encoder.rank("a", "abc")
    with pytest.raises(InputError, match="the query must be a string, got None"):
        encoder.predict([("a", "b"), (None, "b"), ("c", "b")])


def test_beirs_rerank(tiny_reranker: Reranker, query: str, texts: list[str], ranking: list[RankedDocument]) -> None:
    corpus = {f"d{i}": {"title": "", "text": text} for i, text in enumerate(texts)}
    first = {"q": {f"d{i}": float(4 - i) for i in range(4)}}
    found = Rerank(tiny_reranker.as_cross_encoder(), batch_size=2).rerank(corpus, {"q": query}, first, top_k=4)
    assert sorted(found["q"], key=found["q"].get, reverse=True) == [f"d{r.index}" for r in ranking]
    assert found["q"] == pytest.approx({f"d{r.index}": r.score / 3 for r in ranking}, abs=1e-6)


def test_hard_negatives_are_mined(tiny_reranker: Reranker, texts: list[str]) -> None:
    from sentence_transformers.util import mine_hard_negatives

    class Encoder:  # stands for a SentenceTransformer
        device = "cpu"
        similarity_fn_name = "cosine"

        def encode(self, sentences: list[str], **_: Any) -> Any:
            vectors = torch.tensor([[float(sum(map(ord, s)) % 7), float(len(s) % 5), 1.0] for s in sentences])
            vectors = torch.nn.functional.normalize(vectors)
            return vectors if _.get("convert_to_tensor") else vectors.numpy()

        encode_query = encode_document = encode

        def similarity(self, a: Any, b: Any) -> Any:
            return torch.as_tensor(a) @ torch.as_tensor(b).T

        def similarity_pairwise(self, a: Any, b: Any) -> Any:
            return (torch.as_tensor(a) * torch.as_tensor(b)).sum(1)

    pairs = Dataset.from_dict({"query": ["how long do cats live", "watering plants"], "text": [texts[2], texts[1]]})
    encoder = tiny_reranker.as_cross_encoder()
    mined = mine_hard_negatives(
        pairs, Encoder(), corpus=texts, cross_encoder=encoder, max_score=1.0, num_negatives=1, range_max=3,
        output_format="labeled-pair", output_scores=True, verbose=False,
    )  # fmt: skip
    assert len(mined) == 4
    for row in mined:
        assert row["score"] == pytest.approx(encoder.predict((row["query"], row["text"])), abs=1e-5)


def test_the_evaluators(tiny_reranker: Reranker, query: str, texts: list[str], ranking: list[RankedDocument]) -> None:
    encoder = tiny_reranker.as_cross_encoder()
    samples = [{"query": query, "positive": [texts[2]], "negative": [texts[0], texts[1], texts[3]]}]
    found = CrossEncoderRerankingEvaluator(samples, write_csv=False)(encoder)
    place = 1 + [r.index for r in ranking].index(2)
    assert found["mrr@10"] == pytest.approx(1 / place)
    pairs = [[query, text] for text in texts]
    correlation = CrossEncoderCorrelationEvaluator(pairs, shares(ranking), write_csv=False)(encoder)
    assert correlation["spearman"] == pytest.approx(1.0)
    classes = CrossEncoderClassificationEvaluator(pairs, [0, 0, 1, 1], write_csv=False)(encoder)
    assert 0 <= classes["average_precision"] <= 1
