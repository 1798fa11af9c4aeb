"""Training speed on this CPU: what packing, frozen layers and LoRA give, side by side.

    python benchmarks/training_speed.py TOPICS CORPUS [--memory MINUTES] [--only VARIANT] [--compile] [--name NAME]

Groups of a query with four random passages; a step is 32 examples. Each variant makes a few steps; the best counts,
since others may use the machine. With --memory one variant trains on for so long and its memory is recorded. --compile
runs the decoder's layers through torch.compile, the first step, which compiles, not counted; another allocator is tried
with LD_PRELOAD, whose library's name is recorded.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from provenance import write_result

from darl_rerank import Checkpoint, RelevanceScale
from darl_rerank.model.prompt import Prompt, PromptGroup
from darl_rerank.training.loop.progress import resident_mib
from darl_rerank.training.losses.occ import occ
from darl_rerank.training.model.grade_model import GradeModel, load_grade_model
from darl_rerank.training.model.packing import pack
from darl_rerank.training.model.predict import reduced_precision
from darl_rerank.training.recipe.settings import Trainable
from darl_rerank.trec.corpora import read_corpus
from darl_rerank.trec.topics import read_topics

DOCUMENTS, EXAMPLES = 4, 32
VARIANTS: dict[str, tuple[Trainable, bool]] = {
    "padded, all layers": (Trainable("all"), False),
    "packed, all layers": (Trainable("all"), True),
    "packed, LoRA 16": (Trainable("lora"), True),
    "packed, last 15 layers": (Trainable("all", layers=15), True),
    "packed, last 10 layers": (Trainable("all", layers=10), True),
    "packed, LoRA 16 on the last 15 layers": (Trainable("lora", layers=15), True),
}


def padded_logits(model: GradeModel, groups: list[PromptGroup]) -> torch.Tensor:
    """As transformers is usually fed: every prompt whole, padded to a multiple of 32."""
    rows = [group.prefix + suffix for group in groups for suffix in group.suffixes]
    longest = -(-max(map(len, rows)) // 32) * 32
    ids = torch.zeros((len(rows), longest), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    states = model.body(input_ids=ids, use_cache=False).last_hidden_state
    last = states[range(len(rows)), [len(row) - 1 for row in rows]]
    with torch.autocast("cpu", enabled=False):
        logits: torch.Tensor = model.head(last.float())
    return logits


def stepper(
    checkpoint: Checkpoint, trainable: Trainable, packed: bool, *, compiled: bool = False
) -> Callable[[list[PromptGroup]], None]:
    model = load_grade_model(checkpoint, trainable)
    if compiled:
        for layer in model.body.layers:
            layer.compile(dynamic=True)
    if not packed:
        model.body.config._attn_implementation = "sdpa"
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)
    queries = torch.arange(EXAMPLES // DOCUMENTS).repeat_interleave(DOCUMENTS)
    targets = torch.arange(EXAMPLES) % 4

    def step(groups: list[PromptGroup]) -> None:
        with reduced_precision(torch.device("cpu")):
            if packed:
                prompts = pack(groups)
                logits = model(prompts.last, **prompts.inputs())
            else:
                logits = padded_logits(model, groups)
        occ(logits, targets, queries=queries).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("topics", type=Path)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--only", action="append", choices=VARIANTS, help="may be repeated; all if not given")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--name", default="training_speed", help="the result's name")
    parser.add_argument("--memory", type=float, default=0.0, help="minutes of training to watch memory over")
    arguments = parser.parse_args()
    checkpoint = Checkpoint.from_base("smollm2", RelevanceScale.named("trec4"))
    prompt = Prompt.from_dict({**checkpoint.prompt.to_dict(), "max_length": arguments.max_length})
    encoder = checkpoint.replace(prompt=prompt).encoder()
    queries = list(read_topics(arguments.topics).values())
    documents = [d.full_text for _, d in zip(range(5000), read_corpus(arguments.corpus), strict=False)]

    def batch(seed: int) -> list[PromptGroup]:
        rng = random.Random(seed)
        return [
            encoder.encode(rng.choice(queries), rng.sample(documents, DOCUMENTS)) for _ in range(EXAMPLES // DOCUMENTS)
        ]

    lengths = [len(g.prefix) + len(s) for i in range(arguments.steps) for g in batch(i) for s in g.suffixes]
    tokens = sum(lengths) / len(lengths)
    rows: list[dict[str, Any]] = []
    print(f"{tokens:.0f} tokens a pair, batch {EXAMPLES}, {torch.get_num_threads()} threads")
    for name, (trainable, packed) in VARIANTS.items():
        if arguments.only and name not in arguments.only:
            continue
        step = stepper(checkpoint, trainable, packed, compiled=arguments.compile)
        begun = time.perf_counter()
        step(batch(99))
        first = time.perf_counter() - begun
        times = []
        for i in range(arguments.steps):
            groups = batch(i)
            begun = time.perf_counter()
            step(groups)
            times.append(time.perf_counter() - begun)
        rows.append(
            {"variant": name, "first_step": first, "seconds": times, "examples_per_second": EXAMPLES / min(times)}
        )
        print(f"{name:<40} {EXAMPLES / min(times):5.1f} examples/s, {resident_mib()} MiB", flush=True)
    memory: list[tuple[float, int]] = []
    if arguments.memory:
        step = stepper(checkpoint, *VARIANTS["packed, last 15 layers"])
        begun = time.monotonic()
        seed = 1000
        while time.monotonic() - begun < 60 * arguments.memory:
            step(batch(seed))
            seed += 1
            memory.append((round(time.monotonic() - begun, 1), resident_mib()))
        print(f"memory: {memory[min(5, len(memory) - 1)][1]} MiB after some steps, {memory[-1][1]} MiB at the end")
    values = {
        "tokens": tokens, "threads": torch.get_num_threads(), "compiled": arguments.compile,
        "allocator": Path(os.environ.get("LD_PRELOAD", "")).name or "the system's", "variants": rows,
        "memory_mib": memory,
    }  # fmt: skip
    print(write_result(arguments.name, values))


if __name__ == "__main__":
    main()
