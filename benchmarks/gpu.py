"""Speed on one GPU, side by side: torch, ONNX Runtime in float16, sentence-transformers, transformers.

    python benchmarks/gpu.py --all --minutes 10

Models in the shapes of SmolLM2-135M and Qwen3-0.6B, at 128 and 512 tokens a pair; shares are of the measured peak of
torch's products. Weights are random unless --model names a checkpoint: speed does not hang on them, so no download is
needed. results/gpu.json is written anew after each row; what there was no time for, or could not be loaded, is listed
with the reason. Without a GPU it says so, writes nothing and ends well.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from provenance import write_result
from speed import contenders as c
from speed.ceiling import ceilings, linear_parameters
from speed.pairs import Pairs, read_pairs

from darl_rerank import Checkpoint, RelevanceScale
from darl_rerank.model.prompt import PromptEncoder
from darl_rerank.model.shipped import DEFAULT

PER_QUERY = 100


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder of transformers, from its own configuration file.

    Attributes:
        kind: its model type.
        settings: of the configuration class.
        pairs: how many pairs of 128 tokens a measurement has; of longer ones as many fewer.
    """

    kind: str
    settings: dict[str, Any]
    pairs: int


def _shape(kind: str, hidden: int, inner: int, layers: int, heads: int, key_heads: int, size: int, pairs: int) -> Shape:
    settings = {
        "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": key_heads, "head_dim": size,
    }  # fmt: skip
    return Shape(kind, settings, pairs)


SHAPES = {
    "SmolLM2-135M": _shape("llama", 576, 1536, 30, 9, 3, 64, 4000),
    "Qwen3-0.6B": _shape("qwen3", 1024, 3072, 28, 16, 8, 128, 2000),
    "tiny": _shape("llama", 32, 64, 2, 4, 2, 8, 8),  # to try this script out
}


def random_checkpoint(size: str, tokenizer_from: Checkpoint, folder: Path) -> Checkpoint:
    """A checkpoint with random weights in a shape of `SHAPES`, under another checkpoint's tokenizer."""
    from tokenizers import Tokenizer
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer.from_str(tokenizer_from.tokenizer_json)
    config = AutoConfig.for_model(
        SHAPES[size].kind, vocab_size=tokenizer.get_vocab_size(), tie_word_embeddings=True, eos_token_id=0,
        pad_token_id=0, bos_token_id=None, **SHAPES[size].settings,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder / "base")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder / "base")
    made = Checkpoint.from_base(str(folder / "base"), RelevanceScale.named("trec4"))
    return made.save(folder / "checkpoint")


def of_length(pairs: Pairs, encoder: PromptEncoder, tokens: int, count: int) -> Pairs:
    """`count` pairs of about `tokens` tokens each: documents cut out of the texts of `pairs`, one after the other."""
    words = " ".join(document for _, document in pairs).split()
    queries = list(dict.fromkeys(query for query, _ in pairs))
    made: Pairs = []
    start = 0
    while len(made) < count:
        query = queries[len(made) // PER_QUERY % len(queries)]
        prefix = len(encoder.encode(query, ["x"]).prefix)
        text = " ".join((words + words)[start : start + tokens])
        start = (start + 13) % len(words)
        ids = encoder._plain.encode(text, add_special_tokens=False).ids
        room = tokens - prefix - len(encoder._answer)
        made.append((query, encoder._plain.decode(ids[:room])))
    return made


def contenders(checkpoint: Checkpoint, device: str, cache: Path) -> Iterator[c.Contender]:
    """Those of most interest first. In bfloat16, or in float32 on a CPU, where this is only tried out."""
    number_format = "float32" if device == "cpu" else "bfloat16"
    yield c.of_torch(checkpoint, number_format, device)
    classifier = c.write_classifier(checkpoint, cache / "classifier")
    yield c.of_cross_encoder(classifier, checkpoint, number_format, device=device)
    yield c.of_transformers(classifier, checkpoint, number_format, device)
    precision = "float32" if device == "cpu" else "float16"

    def load() -> c.Run:
        # The device is asked for first: an export takes a minute.
        from darl_rerank.engines.providers import require_provider

        require_provider(device)
        return c.of_onnx(c.exported_folder(checkpoint, precision, cache), precision, device).load()

    yield c.Contender(f"darl-rerank, ONNX Runtime, {precision}", precision, True, load)


class Clock:
    """Time left, and whether a part may still begin."""

    def __init__(self, minutes: float) -> None:
        self._ends = time.monotonic() + 60 * minutes

    def left(self) -> float:
        """Seconds."""
        return self._ends - time.monotonic()


def measure(run: c.Run, pairs: Pairs, repeats: int, clock: Clock) -> list[float]:
    """Seconds of each run over all pairs; at least one run, and no further one that the time left does not hold."""
    run(pairs[:PER_QUERY])
    seconds: list[float] = []
    while len(seconds) < repeats and (not seconds or clock.left() > seconds[-1]):
        begun = time.perf_counter()
        run(pairs)
        seconds.append(time.perf_counter() - begun)
    return seconds


@dataclass
class Table:
    """Rows measured so far; written anew after each."""

    name: str
    common: dict[str, Any]
    rows: list[dict[str, Any]]
    skipped: list[dict[str, str]]

    def write(self) -> Path:
        return write_result(self.name, {**self.common, "rows": self.rows, "skipped": self.skipped})

    def skip(self, size: str, name: str, reason: str) -> None:
        self.skipped.append({"model": size, "name": name, "reason": reason})
        click.echo(f"{size:13} {name}: not measured, {reason}", err=True)
        self.write()


def measure_size(
    size: str,
    checkpoint: Checkpoint,
    device: str,
    tokens: list[int],
    repeats: int,
    clock: Clock,
    table: Table,
    cache: Path,
) -> None:
    """All rows of one model: one contender after the other, since several would share the GPU's memory."""
    texts, encoder = read_pairs(None, 2000, PER_QUERY), checkpoint.encoder()
    parameters, peak = linear_parameters(checkpoint), table.common["ceiling"]
    count = SHAPES[size].pairs if size in SHAPES else 4000
    for contender in contenders(checkpoint, device, cache):
        if clock.left() <= 0:
            table.skip(size, contender.name, "no time left")
            continue
        ((_, run),) = c.loaded([contender])
        if isinstance(run, str):
            table.skip(size, contender.name, run)
            continue
        for length in tokens:
            if clock.left() <= 0:
                table.skip(size, f"{contender.name}, {length} tokens", "no time left")
                continue
            pairs = of_length(texts, encoder, length, max(1, count * 128 // length))
            try:
                seconds = measure(run, pairs, repeats, clock)
            except Exception as error:  # other libraries raise what they like; the reason goes into the table
                table.skip(size, f"{contender.name}, {length} tokens", f"{type(error).__name__}: {str(error)[:200]}")
                continue
            rate = len(pairs) / statistics.median(seconds)
            best = peak.get(contender.number_format, {}).get("best")
            table.rows.append({
                "model": size, "tokens": length, "name": contender.name, "pairs": len(pairs), "seconds": seconds,
                "pairs_per_second": rate, "share_of_ceiling": rate * 2 * parameters * length / best if best else None,
            })  # fmt: skip
            table.write()
            click.echo(f"{size:13} {length:4} tokens  {contender.name:50} {rate:8.0f} pairs/s", err=True)
        del run
        if device != "cpu":
            torch.cuda.empty_cache()


@click.command()
@click.option("--model", type=click.Path(path_type=Path), help="a checkpoint folder to measure too, with its weights")
@click.option("--sizes", default="SmolLM2-135M", show_default=True, help=f"of {', '.join(SHAPES)}")
@click.option("--tokens", default="128,512", show_default=True)
@click.option("--all", "everything", is_flag=True, help="SmolLM2-135M and Qwen3-0.6B, whatever --sizes says")
@click.option("--minutes", default=10.0, show_default=True, help="after which nothing more is begun")
@click.option("--repeats", default=3, show_default=True)
@click.option("--device", default="cuda", show_default=True, help="cpu only to try this script out")
@click.option("--name", default="gpu", show_default=True, help="of the file in results/")
def main(
    model: Path | None, sizes: str, tokens: str, everything: bool, minutes: float, repeats: int, device: str, name: str
) -> None:
    """Measure and write results/gpu.json."""
    if device != "cpu" and not torch.cuda.is_available():
        click.echo("torch sees no GPU here: not measured, nothing written")
        return
    clock = Clock(minutes)
    chosen = ["SmolLM2-135M", "Qwen3-0.6B"] if everything else sizes.split(",")
    if unknown := [size for size in chosen if size not in SHAPES]:
        raise click.UsageError(f"unknown size {unknown[0]!r}; known: {', '.join(SHAPES)}")
    own = Checkpoint.load(DEFAULT)
    common = {
        "gpu": "none" if device == "cpu" else torch.cuda.get_device_name(), "repeats": repeats, "seed": 0,
        "ceiling": {} if device == "cpu" else ceilings([(4096, 4096), (8192, 8192)], device),
        "attention": attention_of(device),
    }  # fmt: skip
    table = Table(name, common, [], [])
    with tempfile.TemporaryDirectory() as scratch:
        models = {size: lambda size=size: random_checkpoint(size, own, Path(scratch) / size) for size in chosen}
        if model is not None:
            models = {model.name: lambda: Checkpoint.load(model), **models}
        for size, load in models.items():
            if clock.left() <= 0:
                table.skip(size, "all", "no time left")
                continue
            lengths = [int(length) for length in tokens.split(",")]
            cache = Path(scratch) / "cache" / size
            measure_size(size, load(), device, lengths, repeats, clock, table, cache)
    click.echo(str(table.write().name))


def attention_of(device: str) -> str:
    """Which way of attention the torch engine takes there."""
    from darl_rerank.engines.varlen_attention import varlen_works

    if device == "cpu":
        return "blocks"
    return "by lengths" if varlen_works(torch.device(device), torch.bfloat16) else "fused, blocks"


if __name__ == "__main__":
    main()
