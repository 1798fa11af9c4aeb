from __future__ import annotations

from typing import Any

import mteb
import pytest
from darl_rerank.adapters.mteb import DarlMtebModel
from datasets import Dataset
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models.models_protocols import CrossEncoderProtocol

from darl_rerank import InputError, Reranker
from darl_rerank.results import RankedDocument


class LocalReranking(AbsTaskRetrieval):
    """A reranking task of one query, from memory."""

    metadata = TaskMetadata(
        name="LocalReranking", type="Reranking", main_score="ndcg_at_10", description="A test.", reference=None,
        dataset={"path": "local", "revision": "1"}, eval_splits=["test"], eval_langs=["eng-Latn"],
    )  # fmt: skip
    query = ""
    texts: tuple[str, ...] = ()

    def load_data(self, **_: Any) -> None:
        ids = [f"d{i}" for i in range(len(self.texts))]
        split = {
            "corpus": Dataset.from_dict({"id": ids, "title": [""] * len(ids), "text": list(self.texts)}),
            "queries": Dataset.from_dict({"id": ["q"], "text": [self.query]}),
            "relevant_docs": {"q": {"d2": 1}},
            "top_ranked": {"q": ids},
        }
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True


def test_a_local_task(tiny_reranker: Reranker, query: str, texts: list[str], ranking: list[RankedDocument]) -> None:
    model = DarlMtebModel(tiny_reranker, name="tests/tiny")
    assert isinstance(model, CrossEncoderProtocol)
    task = LocalReranking()
    task.query, task.texts = query, tuple(texts)
    found = mteb.evaluate(model, task, cache=None, co2_tracker=False, show_progress_bar=False)
    scores = found.task_results[0].scores["test"][0]
    place = 1 + [r.index for r in ranking].index(2)
    assert scores["recip_rank_at_10" if "recip_rank_at_10" in scores else "mrr_at_10"] == pytest.approx(1 / place)
    assert found.model_name == "tests/tiny"
    assert found.model_revision == tiny_reranker.checkpoint.fingerprint[:12]


def test_predictions_are_the_rerankers(
    tiny_reranker: Reranker, query: str, texts: list[str], ranking: list[RankedDocument]
) -> None:
    model = DarlMtebModel(tiny_reranker)
    asked = [{"text": [query, query]}, {"text": [query, query]}]
    read = [{"text": texts[:2]}, {"text": texts[2:]}]
    expected = [r.score / 3 for r in sorted(ranking, key=lambda r: r.index)]
    assert model.predict(asked, read, hf_split="test") == pytest.approx(expected, abs=1e-6)
    with pytest.raises(InputError, match="got 4 queries but 2 documents"):
        model.predict(asked, read[:1])


def test_names(tiny_reranker: Reranker, tiny_model: Any) -> None:
    assert DarlMtebModel(tiny_reranker).mteb_model_meta.name == "darl-rerank/tiny_model"
    loaded = DarlMtebModel(tiny_model, device="cpu", engine="torch", precision="float32")
    assert loaded.mteb_model_meta.name == "darl-rerank/tiny_model"
    assert loaded.mteb_model_meta.model_type == ["cross-encoder"]
