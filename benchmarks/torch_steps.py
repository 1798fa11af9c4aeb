"""What each step of the torch engine's decoder is worth on this CPU, each undone by itself, and what did not pay.

    python benchmarks/torch_steps.py [--collection FOLDER] [--model FOLDER] [--precision bfloat16]

All variants grade the same pairs in turn, several times; ratios are of medians. Writes results/torch_steps.json, one
entry a precision.
"""

from __future__ import annotations

import dataclasses
import json
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from provenance import RESULTS, provenance, write_result
from speed.pairs import grouped, read_pairs
from torch.nn import functional as F

from darl_rerank import Checkpoint
from darl_rerank.engines import fused_decoder, torch_engine
from darl_rerank.engines.base import GradeOutput, grade_groups
from darl_rerank.engines.batching import MicroBatch, plan
from darl_rerank.engines.block_attention import BlockAttention
from darl_rerank.engines.fused_decoder import FusedDecoder
from darl_rerank.engines.products import Product, product_kind
from darl_rerank.engines.torch_engine import TorchEngine
from darl_rerank.model.prompt import PromptGroup
from darl_rerank.model.shipped import DEFAULT
from darl_rerank.training.loop.progress import resident_mib

BUDGETS = (256, 512, 1024, 2048, 4096)
PRODUCTS = ("mkldnn::_linear_pointwise", "aten::mm", "aten::addmm", "aten::linear")
ATTENTION = ("aten::bmm", "aten::baddbmm", "aten::_softmax", "aten::_scaled_dot_product_flash_attention_for_cpu")
Run = Callable[[], GradeOutput]


class _Apart:
    """Several products, one after the other."""

    def __init__(self, products: list[Product]) -> None:
        self._products = products

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([product(x) for product in self._products], dim=-1)


class _Joined:
    """Gate and up as one product; stands for both, the activation following it."""

    def __init__(self, product: Product) -> None:
        self._product = product

    def swish(self, x: torch.Tensor) -> torch.Tensor:
        return self._product(x)

    def times(self, _: torch.Tensor, joined: torch.Tensor) -> torch.Tensor:
        gate, up = joined.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)


class Variants:
    """Engines that differ in one step; weights are loaded anew for each."""

    def __init__(self, checkpoint: Checkpoint, precision: str) -> None:
        self._checkpoint, self._precision = checkpoint, precision

    def built(self, *, fused: bool = True) -> TorchEngine:
        return TorchEngine(self._checkpoint, device="cpu", precision=self._precision, fused=fused)

    def decoder(self) -> tuple[TorchEngine, FusedDecoder]:
        engine = self.built()
        assert isinstance(engine.decoder, FusedDecoder), "only decoders of the Llama kind have these steps"
        return engine, engine.decoder

    def without_onednn(self) -> TorchEngine:
        kind = fused_decoder.product_kind
        fused_decoder.product_kind = lambda device, dtype: Product  # type: ignore[attr-defined]
        try:
            return self.built()
        finally:
            fused_decoder.product_kind = kind  # type: ignore[attr-defined]

    def by_torchs_attention(self) -> TorchEngine:
        engine, decoder = self.decoder()
        decoder._attention = BlockAttention(decoder._heads, fused=True)
        return engine

    def whole_last_layer(self) -> TorchEngine:
        engine, decoder = self.decoder()
        decoder._shortened = len(decoder._layers)
        return engine

    def replaced(self, change: Callable[[Any, type[Product]], dict[str, Any]]) -> TorchEngine:
        """With some of each layer's products replaced by what `change` makes of transformers' layer."""
        from darl_rerank.model.base_weights import load_body

        engine, decoder = self.decoder()
        body = load_body(self._checkpoint, decoder._dtype)
        kind = product_kind(torch.device("cpu"), decoder._dtype)
        decoder._layers = [
            dataclasses.replace(ours, **change(theirs, kind))
            for ours, theirs in zip(decoder._layers, body.layers, strict=True)
        ]
        return engine


def qkv_apart(layer: Any, kind: type[Product]) -> dict[str, Any]:
    modules = [layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj]
    return {"qkv": _Apart([kind([m.weight.detach()], [None]) for m in modules])}


def gate_and_up_joined(layer: Any, kind: type[Product]) -> dict[str, Any]:
    weights = [layer.mlp.gate_proj.weight.detach(), layer.mlp.up_proj.weight.detach()]
    joined = _Joined(kind(weights, [None, None]))
    return {"gate": joined, "up": joined}


def padded(batch: MicroBatch) -> MicroBatch:
    longest = max(map(len, batch.sequences))
    return dataclasses.replace(batch, sequences=tuple((*s, *[0] * (longest - len(s))) for s in batch.sequences))


def faults_and_seconds(run: Run, times: int) -> tuple[int, float]:
    """Page faults of one run, and its best time."""
    run()
    found = []
    for _ in range(times):
        before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
        run()
        seconds = time.perf_counter() - begun
        found.append((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, seconds))
    return min(f for f, _ in found), min(s for _, s in found)


def profile(run: Run) -> dict[str, float]:
    """Share of the time in products, in attention, and in all else."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as torch_profile

    with torch_profile(activities=[ProfilerActivity.CPU]) as found:
        run()
    times = {event.key: float(event.self_cpu_time_total) for event in found.key_averages()}
    total = sum(times.values())
    products, attention = (sum(times.get(name, 0.0) for name in names) / total for names in (PRODUCTS, ATTENTION))
    return {"products": products, "attention": attention, "rest": 1 - products - attention}


def operators(precision: str) -> dict[str, float]:
    """Milliseconds, best of half a second, of ways to do the same, at the sizes of SmolLM2 with 13 documents."""
    dtype = getattr(torch, precision)
    queries, keys, values = (torch.randn(39, length, 64).to(dtype) for length in (234, 108, 108))
    mask = torch.zeros(234, 108).masked_fill(torch.arange(108) > torch.arange(234)[:, None] % 78 + 30, -torch.inf)
    rows, places = torch.randn(15_000, 64).to(dtype), torch.randint(15_000, (13, 9, 78))

    def attention(way: torch.dtype) -> torch.Tensor:
        q, k, v = (part.to(way) for part in (queries, keys, values))
        return torch.bmm(torch.baddbmm(mask.to(way), q, k.transpose(1, 2), alpha=1 / 8).softmax(-1), v).to(dtype)

    ways: dict[str, Callable[[], Any]] = {
        f"attention in {precision}": lambda: attention(dtype),
        "attention in float32": lambda: attention(torch.float32),
        "rows by indexing": lambda: rows[places],
        "rows by index_select": lambda: rows.index_select(0, places.flatten()).view(*places.shape, -1),
    }
    found = {}
    for name, way in ways.items():
        way()
        best, begun = float("inf"), time.perf_counter()
        while time.perf_counter() - begun < 0.5:
            start = time.perf_counter()
            way()
            best = min(best, time.perf_counter() - start)
        found[name] = 1000 * best
    return found


def memory_of_shapes() -> dict[str, int]:
    """MiB that a hundred batched products leave behind, each of another number of documents and key heads."""
    found = {}
    for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        a, b = torch.randn(100, 96, 64).to(dtype), torch.randn(100, 64, 128).to(dtype)
        torch.bmm(a, b)
        before = resident_mib()
        for count in range(1, 100):
            torch.bmm(a[:count], b[:count])
        found[name] = resident_mib() - before
    return found


def measure(checkpoint: Checkpoint, precision: str, groups: list[PromptGroup], repeats: int) -> dict[str, Any]:
    variants, grades = Variants(checkpoint, precision), len(checkpoint.scale)

    def grading(engine: TorchEngine, **options: Any) -> Run:
        return lambda: grade_groups(engine, groups, grades=grades, **options)

    def grading_padded(engine: TorchEngine) -> Run:
        def run() -> GradeOutput:
            prefixes = {g.prefix: engine.encode_prefix(g.prefix) for g in groups}
            outputs = [
                engine.grade(padded(batch), prefixes.get(batch.prefix), features=False)
                for batch in plan(groups, engine.batch_tokens)
            ]
            return GradeOutput(np.concatenate([o.logits for o in outputs]), None)

        return run

    # First, since what glibc once keeps it keeps for good.
    kept, torch_engine._LARGEST_KEPT = torch_engine._LARGEST_KEPT, 8192
    without = faults_and_seconds(grading(variants.built()), repeats)
    torch_engine._LARGEST_KEPT = kept
    as_built = variants.built()
    with_memory = faults_and_seconds(grading(as_built), repeats)
    by_transformers = variants.built(fused=False)
    runs: dict[str, Run] = {
        "as built": grading(as_built),
        "transformers' forward pass": grading(by_transformers),
        "without oneDNN's products": grading(variants.without_onednn()),
        "query, key and value products apart": grading(variants.replaced(qkv_apart)),
        "gate and up as one product": grading(variants.replaced(gate_and_up_joined)),
        "attention by torch's kernel": grading(variants.by_torchs_attention()),
        "last layer for all tokens": grading(variants.whole_last_layer()),
        "padded micro-batches": grading_padded(as_built),
        "prefix run with every document": grading(as_built, share_prefix=False),
        "with novelty features": grading(as_built, features=True),
    } | {f"budget of {tokens} tokens": grading(as_built, batch_tokens=tokens) for tokens in BUDGETS}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for name, run in runs.items():
        click.echo(f"warming up: {name}", err=True)
        run()
    for _ in range(repeats):
        for name, run in runs.items():
            begun = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begun)
    built = statistics.median(seconds["as built"])
    table = [
        {"variant": name, "seconds": times, "ratio": statistics.median(times) / built}
        for name, times in seconds.items()
    ]
    for row in table:
        click.echo(f"{row['variant']:40} takes {row['ratio']:.2f} times as long", err=True)
    return {
        "rows": table,
        "memory_kept": {
            "page_faults_without": without[0], "seconds_without": without[1], "page_faults": with_memory[0],
            "seconds": with_memory[1],
        },
        "operators_ms": operators(precision),
        "profile": {"transformers": profile(grading(by_transformers)), "as built": profile(grading(as_built))},
    }  # fmt: skip


@click.command()
@click.option("--collection", type=click.Path(path_type=Path), help="with topics.tsv, corpus.jsonl.gz, runs/")
@click.option("--model", type=click.Path(path_type=Path), help="a checkpoint folder; the default one if not given")
@click.option("--precision", default="bfloat16", show_default=True)
@click.option("--pairs", default=26, show_default=True)
@click.option("--repeats", default=5, show_default=True)
@click.option("--name", default="torch_steps", show_default=True, help="of the file in results/")
def main(
    collection: Path | None, model: Path | None, precision: str, pairs: int, repeats: int, name: str
) -> None:  # fmt: skip
    """Measure and write results/torch_steps.json."""
    checkpoint = Checkpoint.load(DEFAULT if model is None else model)
    encoder = checkpoint.encoder()
    found = read_pairs(collection, pairs, pairs)
    # First, before other products leave memory behind that these could use.
    memory = memory_of_shapes()
    begun = time.perf_counter()
    groups = [encoder.encode(query, documents) for query, documents in grouped(found)]
    tokenising = time.perf_counter() - begun
    values = measure(checkpoint, precision, groups, repeats)
    built = statistics.median(values["rows"][0]["seconds"])
    values |= {
        "provenance": provenance(),
        "collection": "icecat" if collection is None else collection.name,
        "trained": checkpoint.trained, "pairs": len(found), "repeats": repeats, "seed": 0,
        "threads": torch.get_num_threads(), "mib_of_100_shapes": memory,
        "tokenising_seconds": tokenising, "tokenising_share": tokenising / built,
    }  # fmt: skip
    path = RESULTS / f"{name}.json"
    entries = json.loads(path.read_text("utf-8")).get("precisions", {}) if path.is_file() else {}
    write_result(name, {"precisions": {**entries, precision: values}})
    click.echo(f"tokenising takes {values['tokenising_share']:.2%} of the time; in {path.name}", err=True)


if __name__ == "__main__":
    main()
