"""Teach a checkpoint to run all tokens through its first layers only, from its own scores: `prefill_layers`.

    python benchmarks/bundled/prefill.py TEXTS OUTPUT [--model smollm2-darl] [--layers 12] [--queries 7000]

TEXTS is collect.py's folder. Behind --layers only the last token goes on, and keys and values of later layers are made
of the states there (last_tokens.py). The whole model's probabilities and last states are the labels; nothing that
people said is used. Only the later layers' adapter and the head change, so novelty that looks no further stays.

Queries, drawn by collection, get documents that people judged and such that share words with them; an eighth of the
Wikipedia queries get long ones, some passages together. OUTPUT/states keeps what the whole model gives them, a query a
file; what is there is not run again. On a GPU they stay in its memory instead, some 80 KiB a pair. Of the queries the
first --held-out are measured on, not trained on.

OUTPUT gets the checkpoint, in OUTPUT/model, with the calibration of the model it learned from, without exits and what
else was fitted to scores, which refit.py fits; and train.json.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from json_lines import json_lines
from last_tokens import LastTokens, States
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor, nn

from darl_rerank import Checkpoint
from darl_rerank.engines.torch_engine import TorchEngine
from darl_rerank.files import atomic_write
from darl_rerank.model.decisions import Decisions
from darl_rerank.model.head import Head
from darl_rerank.progress import progress_bar
from darl_rerank.training.model.lowrank import LowRank, read_adapter, save_as_adapter

SEED = 11
SHARES = {"films": 9, "products": 16, "wikipedia": 45}
# Documents of a query: at most so many that people judged, then so many of the first by shared words, down to a place.
JUDGED, PLACES = 2, ((3, 0, 6), (2, 6, 40), (1, 40, 200))
LONG, LONGEST = 0.12, 4
# Tokens that the whole model runs together, and queries of a step of training, on a CPU and on a GPU.
TOKENS = {"cpu": 1024, "cuda": 32768}
TOGETHER = {"cpu": 6, "cuda": 48}


@click.command(help=__doc__)
@click.argument("texts", type=click.Path(exists=True, path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--model", default="smollm2-darl", show_default=True)
@click.option("--layers", default=12, show_default=True, help="How many run all tokens.")
@click.option("--queries", default=7000, show_default=True)
@click.option("--held-out", default=60, show_default=True, help="Queries that are measured on.")
@click.option("--epochs", default=4.0, show_default=True)
@click.option("--learning-rate", default=2e-4, show_default=True, help="1e-3 was far too much.")
@click.option("--precision", default="bfloat16", show_default=True, help="Of the whole model, for the labels.")
def main(
    texts: Path, output: Path, model: str, layers: int, queries: int, held_out: int, epochs: float,
    learning_rate: float, precision: str,
) -> None:  # fmt: skip
    torch.manual_seed(SEED)
    torch.set_float32_matmul_precision("high")
    teacher = Checkpoint.load(model)
    output.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = states_of(drawn(texts, queries), teacher, layers, output / "states", device, precision)
    student = LastTokens(teacher, layers).to(device)
    facts: dict[str, Any] = {"before": measured(student, found[:held_out])}
    click.echo(f"before: {facts['before']}", err=True)
    facts |= train(student, found[held_out:], epochs, learning_rate, TOGETHER[device])
    facts |= {"after": measured(student, found[:held_out]), "learned from": teacher.fingerprint, "layers": layers}
    facts["device"] = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    click.echo(f"after: {facts['after']}", err=True)
    save(student, teacher, layers, output, facts)


def drawn(texts: Path, count: int) -> list[tuple[str, list[str]]]:
    """Queries with documents, of all collections mixed."""
    rng = random.Random(SEED)
    rows: list[tuple[str, list[str]]] = []
    for name, share in SHARES.items():
        corpus = list(json_lines(texts / f"{name}.texts.jsonl.gz"))
        asked = list(json_lines(texts / f"{name}.queries.jsonl.gz"))
        asked = rng.sample(asked, min(len(asked), round(count * share / sum(SHARES.values()))))
        vectorizer = TfidfVectorizer(sublinear_tf=True, dtype=np.float32)
        words = vectorizer.fit_transform(corpus)
        for start in range(0, len(asked), 512):
            part = asked[start : start + 512]
            cosines = (vectorizer.transform([each["query"] for each in part]) @ words.T).toarray()
            for query, row in zip(part, cosines, strict=True):
                places = _chosen(query, [int(place) for place in np.argsort(-row)[: PLACES[-1][2]]], rng)
                places = [place for place in dict.fromkeys(places) if corpus[place]]
                more = (2, LONGEST) if name == "wikipedia" and rng.random() < LONG else (1, 1)
                rows.append((query["query"], [" ".join(corpus[p : p + rng.randint(*more)]) for p in places]))
    rng.shuffle(rows)
    return rows


def _chosen(query: dict[str, Any], order: Sequence[int], rng: random.Random) -> list[int]:
    said = [int(place) for place in query["said"]]
    if query.get("fixed"):  # a search whose list was made with it
        return rng.sample(said, min(len(said), 6)) + rng.sample(order[:40], 2)
    found = rng.sample(said, min(len(said), JUDGED))
    for count, begin, end in PLACES:
        found += rng.sample(order[begin:end], min(count, len(order[begin:end])))
    return found


def states_of(
    rows: Sequence[tuple[str, list[str]]], teacher: Checkpoint, layers: int, folder: Path, device: str, precision: str
) -> list[Callable[[], States]]:
    """What the whole model makes of each query's documents: on a CPU in files, a query each, on a GPU in its memory."""
    on_disk = device == "cpu"
    paths = [folder / f"{number}.safetensors" for number in range(len(rows))]
    if on_disk:
        folder.mkdir(exist_ok=True)
    missing = [number for number, path in enumerate(paths) if not (on_disk and path.is_file())]
    kept: dict[int, States] = {}
    # All tokens' states of the middle layer are what the decoder gives besides the last ones.
    teacher = teacher.replace(feature_layer=layers, exits=None, novelty=None)
    engine = TorchEngine(teacher, device=device, precision=precision) if missing else None
    with progress_bar("states", len(rows), unit="query", done=len(rows) - len(missing), progress=True) as bar:
        for number in missing:
            assert engine is not None
            states = run(engine, teacher, *rows[number], TOKENS[device])
            if on_disk:
                save_states(paths[number], states)
            else:
                kept[number] = states
            bar.update(1)
    if on_disk:
        return [partial(read_states, path) for path in paths]
    return [partial(kept.__getitem__, number) for number in range(len(rows))]


@torch.inference_mode()
def run(engine: TorchEngine, teacher: Checkpoint, query: str, documents: list[str], tokens: int) -> States:
    group = teacher.encoder().encode(query, documents)
    prefix = engine.decoder.run([group.prefix], keep=True)
    parts = [engine.decoder.run(batch, prefix.keys_values) for batch in batches_of(group.suffixes, tokens)]
    final = torch.cat([part.final for part in parts]).float()
    weight, bias = (torch.from_numpy(part).to(final) for part in (teacher.head.weight, teacher.head.bias))
    return States(
        prefix.middle.bfloat16(), torch.cat([part.middle for part in parts]).bfloat16(),
        torch.tensor([len(suffix) for suffix in group.suffixes]), F.linear(final, weight, bias), final.bfloat16(),
    )  # fmt: skip


def batches_of(suffixes: Sequence[Sequence[int]], tokens: int) -> Iterator[list[Sequence[int]]]:
    """In order, at most `tokens` together."""
    batch: list[Sequence[int]] = []
    for suffix in suffixes:
        if batch and sum(map(len, batch)) + len(suffix) > tokens:
            yield batch
            batch = []
        batch.append(suffix)
    yield batch


def save_states(path: Path, states: States) -> None:
    tensors = {name: getattr(states, name) for name in States.__slots__}
    temporary = path.with_suffix(".part")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
    temporary.rename(path)


def read_states(path: Path) -> States:
    with safe_open(path, "pt") as stored:
        return States(**{name: stored.get_tensor(name) for name in States.__slots__})


def train(
    student: LastTokens, found: Sequence[Callable[[], States]], epochs: float, learning_rate: float, together: int
) -> dict[str, Any]:
    """Cross-entropy with the whole model's probabilities and the relative squared error of its last states."""
    optimiser = torch.optim.AdamW(student.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    rng, order = random.Random(SEED), list[Callable[[], States]]()
    steps = round(epochs * len(found) / together)
    began, pairs, log = time.monotonic(), 0, list[dict[str, float]]()
    with progress_bar("training", steps, unit="step", done=0, progress=True) as bar:
        for step in range(steps):
            while len(order) < together:
                order += rng.sample(found, len(found))
            batch = [order.pop(0)() for _ in range(together)]
            rate = learning_rate * min((step + 1) / (0.05 * steps), (steps - step) / (0.95 * steps))
            for group in optimiser.param_groups:
                group["lr"] = rate
            final, logits = student(batch)
            wanted = torch.cat([each.final for each in batch]).float()
            divergence = _divergence(torch.cat([each.logits for each in batch]), logits).mean()
            loss = divergence + F.mse_loss(final, wanted) / wanted.square().mean()
            loss.backward()
            nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            pairs += len(logits)
            if step % 50 == 0:
                log.append({"step": step, "loss": loss.item(), "divergence": divergence.item()})
            bar.update(1)
    return {
        "queries": len(found), "pairs": pairs, "steps": steps, "epochs": epochs, "learning rate": learning_rate,
        "seconds": time.monotonic() - began, "seed": SEED, "log": log, "torch": torch.__version__,
    }  # fmt: skip


@torch.inference_mode()
def measured(student: LastTokens, found: Sequence[Callable[[], States]]) -> dict[str, float]:
    """Mean divergence in nats, and the correlation and mean distance of both expected gains."""
    rows = [(each.logits, student([each])[1]) for each in (load() for load in found)]
    wanted, given = (torch.cat([row[i] for row in rows]).cpu() for i in (0, 1))
    gains = torch.arange(float(wanted.shape[1]))
    both = torch.stack([each.softmax(-1) @ gains for each in (wanted, given)])
    return {
        "pairs": len(wanted),
        "divergence": round(_divergence(wanted, given).mean().item(), 4),
        "correlation": round(torch.corrcoef(both)[0, 1].item(), 4),
        "distance": round((both[0] - both[1]).abs().mean().item(), 4),
    }


def _divergence(wanted: Tensor, found: Tensor) -> Tensor:
    """Kullback and Leibler's, shape (n,), of logits."""
    return (wanted.softmax(-1) * (wanted.log_softmax(-1) - found.log_softmax(-1))).sum(-1)


def save(student: LastTokens, teacher: Checkpoint, layers: int, output: Path, facts: dict[str, Any]) -> None:
    assert teacher.adapter_folder is not None
    stored = read_adapter(teacher.adapter_folder)
    factors = {**stored.factors, **student.factors()}
    head = Head(student.rows.detach().cpu().numpy(), student.biases.detach().cpu().numpy(), teacher.head.norm)
    checkpoint = teacher.replace(
        head=head, prefill_layers=layers, exits=None, reach=None, finer_products={},
        decisions=Decisions(fusion=teacher.decisions.fusion),
        novelty=teacher.novelty if teacher.feature_layer <= layers else None,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "adapter"
        low_rank = LowRank(factors, stored.rank, 1.0, ())
        save_as_adapter(low_rank, folder, base_name=teacher.base.name, dtype=torch.float8_e4m3fn)
        checkpoint.save(output / "model", overwrite=True, adapter=folder)
    with atomic_write(output / "train.json") as stream:
        stream.write(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
