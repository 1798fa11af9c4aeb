"""A judged TREC run as a reranking task of MTEB: ours beside a CrossEncoder of sentence-transformers on the same base.

    python benchmarks/mteb_reranking.py NAME RUN TOPICS CORPUS QRELS [--depth 20]

The candidates are the run's first ones; all figures are MTEB's own. Rows: the run as it is; the checkpoint that ships;
an untrained checkpoint of ours on smollm2 (`darl-rerank init`); a CrossEncoder on smollm2, which compares the logits of
"yes" and "no" after the last token, untrained too. Writes results/mteb_NAME.json.
"""

from __future__ import annotations

import os
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is fetched: the task comes from files

import click
import mteb
import torch
from darl_rerank.adapters.mteb import DarlMtebModel
from datasets import Dataset
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models.model_meta import ModelMeta
from provenance import write_result
from sentence_transformers import CrossEncoder

from darl_rerank import Checkpoint, RelevanceScale, Reranker
from darl_rerank.model.smollm2 import smollm2_folder
from darl_rerank.trec.corpora import load_documents
from darl_rerank.trec.qrels import read_qrels
from darl_rerank.trec.runs import read_run
from darl_rerank.trec.topics import read_topics

MEASURES = ("ndcg_at_10", "map_at_10", "mrr_at_10")
# What the CrossEncoder is asked, as the instruction before query and document.
QUESTION = "Answer with yes or no: does the document answer the query?"


class FromFiles(AbsTaskRetrieval):
    """A reranking task whose data is handed over instead of fetched."""

    metadata = TaskMetadata(
        name="FromFiles", type="Reranking", main_score="ndcg_at_10", description="A judged TREC run.", reference=None,
        dataset={"path": "files", "revision": "1"}, eval_splits=["test"], eval_langs=["eng-Latn"],
    )  # fmt: skip

    def __init__(self, split: dict[str, Any]) -> None:
        super().__init__()
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True

    def load_data(self, **_: Any) -> None:
        """It is there already."""


class InOrder:
    """The first stage itself: scores that keep its order."""

    mteb_model_meta = ModelMeta.create_empty(overwrites={"name": "trec/run", "model_type": ["cross-encoder"]})

    def predict(self, inputs1: Any, inputs2: Any, **_: Any) -> list[float]:
        """The pairs of a query come in the run's order."""
        return [-float(i) for i in range(sum(len(batch["text"]) for batch in inputs2))]


def read_split(run: Path, topics: Path, corpus: Path, qrels: Path, depth: int) -> dict[str, Any]:
    """What MTEB calls a split: corpus, queries, judgements and each query's candidates."""
    judgements = read_qrels(qrels)
    ranked = {qid: [hit.docid for hit in hits[:depth]] for qid, hits in read_run(run).items() if qid in judgements}
    documents = load_documents(corpus, {docid for docids in ranked.values() for docid in docids})
    texts = {qid: text for qid, text in read_topics(topics).items() if qid in ranked}
    return {
        "corpus": Dataset.from_dict({
            "id": list(documents),
            "title": [document.title or "" for document in documents.values()],
            "text": [document.text for document in documents.values()],
        }),
        "queries": Dataset.from_dict({"id": list(texts), "text": list(texts.values())}),
        "relevant_docs": {qid: dict(judgements[qid]) for qid in texts},
        "top_ranked": {qid: ranked[qid] for qid in texts},
    }  # fmt: skip


@click.command(help=__doc__)
@click.argument("name")
@click.argument("files", nargs=4, type=click.Path(path_type=Path, exists=True))
@click.option("--depth", default=20, show_default=True)
def main(name: str, files: tuple[Path, Path, Path, Path], depth: int) -> None:
    split = read_split(*files, depth)
    torch.manual_seed(0)
    rows: dict[str, dict[str, float]] = {}

    def measure(title: str, model: Any) -> None:
        found = mteb.evaluate(model, FromFiles(split), cache=None, co2_tracker=False, show_progress_bar=False)
        scores = found.task_results[0].scores["test"][0]
        rows[title] = {measure: float(scores[measure]) for measure in MEASURES}
        click.echo(f"{title:<40} " + "  ".join(f"{m} {v:.4f}" for m, v in rows[title].items()))

    measure("the run as it is", InOrder())
    measure("smollm2-darl", DarlMtebModel("smollm2-darl"))
    with tempfile.TemporaryDirectory() as folder:
        Checkpoint.from_base("smollm2", RelevanceScale.named("trec4")).save(Path(folder) / "untrained")
        measure("ours, untrained", DarlMtebModel(Reranker.from_pretrained(Path(folder) / "untrained")))
    encoder = CrossEncoder(
        str(smollm2_folder()), prompts={"question": QUESTION}, default_prompt_name="question",
        model_kwargs={"dtype": torch.bfloat16}, device="cpu",
    )  # fmt: skip
    measure("CrossEncoder, untrained", encoder)
    write_result(
        f"mteb_{name}",
        {"depth": depth, "queries": len(split["queries"]), "mteb": version("mteb"), "rows": rows},
    )


if __name__ == "__main__":
    main()
