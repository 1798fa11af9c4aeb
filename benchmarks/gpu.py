"""Speed on one GPU, side by side: torch, ONNX Runtime in float16, sentence-transformers, vLLM where it is installed.

    python benchmarks/gpu.py [--model FOLDER] [--sizes smollm2,0.6B,4B] [--repeats 3]

Besides the default checkpoint, models with random weights in the shapes of Qwen3-0.6B and Qwen3-4B, at 128 and 512
tokens a pair; shares are of the measured peak of torch's products. Writes results/gpu.json. Without a GPU it says so,
writes nothing and ends well.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from provenance import write_result
from speed import contenders as c
from speed.ceiling import ceilings, linear_parameters
from speed.pairs import Pairs, read_pairs

from darl_rerank import Checkpoint, RelevanceScale
from darl_rerank.cache import cache_folder
from darl_rerank.model.prompt import PromptEncoder
from darl_rerank.model.shipped import DEFAULT

TOKENS = (128, 512)
PER_QUERY = 100
# Hidden size, size of the gated MLP, layers, query heads, key heads of 128 (the models' own configuration files).
SHAPES = {"0.6B": (1024, 3072, 28, 16, 8), "4B": (2560, 9728, 36, 32, 8)}
PAIRS = {"smollm2": 4000, "0.6B": 2000, "4B": 400}
SQUARES = ((4096, 4096), (8192, 8192))


def random_checkpoint(size: str, tokenizer_from: Checkpoint, folder: Path) -> Checkpoint:
    """A checkpoint with random weights in the shape of Qwen3, under another checkpoint's tokenizer, prompt and head."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    hidden, inner, layers, heads, key_heads = SHAPES[size]
    tokenizer = Tokenizer.from_str(tokenizer_from.tokenizer_json)
    config = Qwen3Config(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=key_heads, head_dim=128, tie_word_embeddings=True,
        eos_token_id=0, pad_token_id=0, bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return Checkpoint.from_base(str(folder), RelevanceScale.named("trec4"))


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


def of_vllm(folder: Path, checkpoint: Checkpoint) -> c.Contender:
    """vLLM's classification of the same texts."""

    def load() -> c.Run:
        from vllm import LLM  # type: ignore[import-not-found]

        model = LLM(str(folder), runner="pooling", dtype="bfloat16", max_model_len=checkpoint.prompt.max_length)

        def run(pairs: Sequence[tuple[str, str]]) -> NDArray[np.float32]:
            texts = [first + second for first, second in c.whole_texts(checkpoint, pairs)]
            found = model.classify(texts, use_tqdm=False)
            return np.array([output.outputs.probs for output in found], dtype=np.float32)

        return run

    return c.Contender("vLLM, bfloat16", "bfloat16", False, load)


def measure(
    name: str, checkpoint: Checkpoint, device: str, repeats: int, cache: Path, texts: Pairs, peak: dict[str, Any]
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Rows of one model, and what could not be measured with the reason."""
    classifier = c.write_classifier(checkpoint, cache / f"classifier-{checkpoint.fingerprint[:12]}")
    wanted = [
        c.of_torch(checkpoint, "bfloat16", device),
        c.of_cross_encoder(classifier, checkpoint, "bfloat16", device=device),
        of_vllm(classifier, checkpoint),
    ]
    skipped = []
    try:
        wanted.append(c.of_onnx(c.exported_folder(checkpoint, "float16", cache), "float16", device))
    except Exception as error:  # the reason goes into the table
        skipped.append({"model": name, "name": "darl-rerank, ONNX Runtime, float16", "reason": str(error)[:200]})
    parameters = linear_parameters(checkpoint)
    table: list[dict[str, Any]] = []
    # One after the other: two models of four billion weights and vLLM's own memory would not fit together.
    for contender, run in c.loaded(wanted):
        if isinstance(run, str):
            skipped.append({"model": name, "name": contender.name, "reason": run})
            continue
        for tokens in TOKENS:
            pairs = of_length(texts, checkpoint.encoder(), tokens, max(1, PAIRS[name] * TOKENS[0] // tokens))
            run(pairs[:PER_QUERY])
            seconds = []
            for _ in range(repeats):
                begun = time.perf_counter()
                run(pairs)
                seconds.append(time.perf_counter() - begun)
            rate = len(pairs) / statistics.median(seconds)
            share = rate * 2 * parameters * tokens / peak[contender.number_format]["best"]
            table.append({
                "model": name, "tokens": tokens, "name": contender.name, "pairs": len(pairs), "seconds": seconds,
                "pairs_per_second": rate, "share_of_ceiling": share,
            })  # fmt: skip
            click.echo(f"{name:8} {tokens:4} tokens  {contender.name:50} {rate:8.0f} pairs/s", err=True)
    return table, skipped


@click.command()
@click.option("--model", type=click.Path(path_type=Path), help="a checkpoint folder; the default one if not given")
@click.option("--sizes", default="smollm2,0.6B,4B", show_default=True)
@click.option("--repeats", default=3, show_default=True)
@click.option("--name", default="gpu", show_default=True, help="of the file in results/")
def main(model: Path | None, sizes: str, repeats: int, name: str) -> None:
    """Measure and write results/gpu.json."""
    if not torch.cuda.is_available():
        click.echo("torch sees no GPU here: not measured, nothing written")
        return
    chosen = sizes.split(",")
    if unknown := [size for size in chosen if size not in PAIRS]:
        raise click.UsageError(f"unknown size {unknown[0]!r}; known: {', '.join(PAIRS)}")
    own = Checkpoint.load(DEFAULT if model is None else model)
    texts = read_pairs(None, 2000, PER_QUERY)
    peak = ceilings(list(SQUARES), "cuda")
    table, skipped = [], []
    with tempfile.TemporaryDirectory() as scratch:
        for size in chosen:
            checkpoint = own if size == "smollm2" else random_checkpoint(size, own, Path(scratch) / size)
            if checkpoint.folder is None:
                checkpoint = checkpoint.save(Path(scratch) / f"{size}-checkpoint")
            cache = cache_folder() / "gpu" if size == "smollm2" else Path(scratch)
            found, not_measured = measure(size, checkpoint, "cuda", repeats, cache, texts, peak)
            table += found
            skipped += not_measured
    values = {
        "gpu": torch.cuda.get_device_name(), "model": own.fingerprint, "repeats": repeats, "seed": 0,
        "ceiling": peak, "rows": table, "skipped": skipped,
    }  # fmt: skip
    click.echo(str(write_result(name, values).name))


if __name__ == "__main__":
    main()
