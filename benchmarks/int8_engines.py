"""int8 on a CPU by other libraries' kernels, beside ours: products alone, the whole model, a prompt's tokens a second.

    OMP_NUM_THREADS=1 python benchmarks/int8_engines.py EXPORT [--plain FOLDER] [--gguf FILE [--prompt-alone]]
        [--before EXPORT]

EXPORT is the int8 export of a checkpoint, BEFORE one that an earlier version made. Everything runs in turns in one
process on one core, and is timed by the processor's clock, so that ratios hold on a shared machine. Writes
results/int8_engines.json.

    products   one layer's products on 1,024 tokens: ONNX Runtime's MatMulIntegerToFloat, oneDNN's by torch
               (qlinear_pointwise), each with activations that are int8 already and with a scale a token taken first
    model      pairs a second: ours; OpenVINO on the graph in float32 with attention written out (--plain, exported with
               --opset 20), its weights compressed to int8 by NNCF, activations quantised by OpenVINO as they come
    prompt     tokens a second: llama.cpp (--gguf: SmolLM2-135M, made Q8_0 here if it is not) on prompts of 512 tokens;
               with --prompt-alone nothing else is measured, and what the file has of the rest stays
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from provenance import RESULTS, provenance, write_result
from speed.pairs import grouped, read_pairs

from darl_rerank import Checkpoint
from darl_rerank.engines.base import GradeOutput, grade_groups
from darl_rerank.engines.batching import MicroBatch
from darl_rerank.engines.onnx_engine import OnnxEngine
from darl_rerank.engines.torch_engine import TorchEngine
from darl_rerank.model.checkpoint import PREFIX_GRAPH
from darl_rerank.model.prompt import PromptGroup

TOKENS = 1024
SHAPES = ((576, 576), (576, 192), (576, 1536), (1536, 576))  # of SmolLM2-135M: inputs, outputs
PROMPT = 512
Run = Callable[[], Any]


def in_turns(runs: dict[str, Run], repeats: int) -> dict[str, list[float]]:
    """Processor seconds of each, every one once before any is timed."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(repeats):
        for name, run in runs.items():
            begun = time.process_time()
            run()
            seconds[name].append(time.process_time() - begun)
    for name, times in seconds.items():
        click.echo(f"{name:50} {statistics.median(times):8.4f} s", err=True)
    return seconds


def products(repeats: int) -> list[dict[str, Any]]:
    """Seconds of each way for each shape."""
    table = []
    for inputs, outputs in SHAPES:
        rng = np.random.default_rng(0)
        x = rng.normal(size=(TOKENS, inputs)).astype(np.float32)
        weight = rng.integers(-127, 127, (inputs, outputs), dtype=np.int8)
        seconds = in_turns({**_onnx_products(x, weight), **_onednn_products(x, weight)}, repeats)
        operations = 2 * TOKENS * inputs * outputs
        table += [
            {"inputs": inputs, "outputs": outputs, "way": way, "seconds": times,
             "operations_per_second": operations / statistics.median(times)}
            for way, times in seconds.items()
        ]  # fmt: skip
    return table


def _onnx_products(x: NDArray[np.float32], weight: NDArray[np.int8]) -> dict[str, Run]:
    import onnx
    import onnxruntime
    from darl_rerank.export.int8 import quantize
    from onnx import TensorProto, helper, numpy_helper

    def session(model: Any) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, TOKENS, size])
        for name, size in zip(("x", "y"), weight.shape, strict=True)
    ]
    product = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    constant = numpy_helper.from_array(weight.astype(np.float32), "w")
    model = helper.make_model(
        helper.make_graph([product], "product", ends[:1], ends[1:], [constant]),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )
    quantize(model, {"w": product})
    whole = session(model)
    alone = onnx.ModelProto()
    alone.CopyFrom(model)
    kept = [node for node in alone.graph.node if node.op_type == "MatMulIntegerToFloat"]
    del alone.graph.node[:], alone.graph.input[:], alone.graph.output[:]
    alone.graph.node.extend(kept)
    alone.graph.input.append(helper.make_tensor_value_info("x.int8", TensorProto.UINT8, [1, TOKENS, weight.shape[0]]))
    alone.graph.output.append(helper.make_tensor_value_info(kept[0].output[0], TensorProto.FLOAT, None))
    only = session(alone)
    low = np.clip(np.rint(x * 40) + 128, 0, 255).astype(np.uint8)[None]
    return {
        "ONNX Runtime, product": lambda: only.run(None, {"x.int8": low}),
        "ONNX Runtime, scale a token and product": lambda: whole.run(None, {"x": x[None]}),
    }


def _onednn_products(x: NDArray[np.float32], weight: NDArray[np.int8]) -> dict[str, Run]:
    import torch

    packed = torch.ops.onednn.qlinear_prepack(torch.from_numpy(weight.T.copy()), None)
    scales, zeros = torch.ones(weight.shape[1]), torch.zeros(weight.shape[1], dtype=torch.int64)
    states = torch.from_numpy(x)
    low = (states * 40).round().add(128).clamp(0, 255).to(torch.uint8)

    def product(given: Any) -> Any:
        return torch.ops.onednn.qlinear_pointwise(
            given, 1.0, 128, packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )

    @torch.inference_mode()
    def whole() -> Any:
        low_end, high_end = states.aminmax(dim=1, keepdim=True)
        scale = torch.maximum(high_end, -low_end).div_(127).clamp_(min=1e-12)
        given = (states / scale).round_().add_(128).to(torch.uint8)
        return product(given).mul_(scale)

    return {
        "oneDNN, product": torch.inference_mode()(lambda: product(low)),
        "oneDNN, scale a token and product": whole,
    }


class OpenVino:
    """Runs the graph with a prefix as `OnnxEngine` does, its weights compressed to int8.

    Args:
        folder: an export in float32 without the operator Attention.
        batch_tokens: of a micro-batch.
        group: channels that share a scale of an activation.
    """

    name, device, precision, exits = "openvino", "cpu", "int8", None

    def __init__(self, folder: Path, batch_tokens: int, group: int) -> None:
        import nncf
        import openvino

        core = openvino.Core()
        model = core.read_model(str(folder / PREFIX_GRAPH))
        model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
        settings = {
            "INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(group),
        }  # fmt: skip
        self.batch_tokens = batch_tokens
        self._compiled = core.compile_model(model, "CPU", settings)
        layers, two, heads, _, size = model.input("prefix_keys_values").partial_shape
        shape = [part.get_length() for part in (layers, two, heads)]
        self._nothing = (
            np.zeros((*shape, 0, size.get_length()), np.float32),
            np.zeros(model.input("prefix_own_sum").shape[0], np.float32),
        )

    def encode_prefix(self, prefix: tuple[int, ...]) -> Any:
        found = self._run((prefix,), None)
        return found["keys_values"].copy(), found["own_sum"].copy()

    def grade(self, batch: MicroBatch, prefix: Any, *, features: bool, **_: Any) -> GradeOutput:
        return GradeOutput(self._run(batch.sequences, prefix)["logits"].copy(), None)

    def _run(self, sequences: Sequence[tuple[int, ...]], prefix: Any) -> Any:
        ids = np.zeros((len(sequences), max(map(len, sequences))), np.int64)
        mask = np.zeros_like(ids)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)], mask[row, : len(sequence)] = sequence, 1
        keys_values, own_sum = prefix or self._nothing
        return self._compiled({
            "input_ids": ids, "attention_mask": mask, "prefix_keys_values": keys_values, "prefix_own_sum": own_sum,
        })  # fmt: skip


def model(
    export: Path, before: Path | None, plain: Path | None, pairs: Sequence[tuple[str, str]], repeats: int
) -> dict[str, Any]:
    """Seconds of each engine on the same pairs, and how far its logits lie from torch's in float32."""
    checkpoint = Checkpoint.load(export)
    encoder = checkpoint.encoder()
    groups = [encoder.encode(query, documents) for query, documents in grouped(pairs)]
    runs: dict[str, Run] = {}
    logits: dict[str, list[Any]] = {}
    skipped: dict[str, str] = {}

    def add(name: str, engine: Any, share: bool = True) -> None:
        kept: list[Any] = []
        runs[name], logits[name] = (
            lambda: kept.__setitem__(
                slice(None), [grade_groups(engine, groups, grades=len(checkpoint.scale), share_prefix=share).logits]
            ),
            kept,
        )

    engine = OnnxEngine(checkpoint, device="cpu")
    add("ours", engine)
    add("ours, the prefix with every document", engine, share=False)
    if before is not None:
        add("ours, before", OnnxEngine(Checkpoint.load(before), device="cpu"))
    for precision in ("bfloat16", "float32"):
        add(f"torch, {precision}", TorchEngine(Checkpoint.load("smollm2-darl"), device="cpu", precision=precision))
    if plain is not None:
        for group in (32, 1 << 20):
            name = f"OpenVINO, scale of {'a token' if group > 1536 else f'{group} channels'}"
            try:
                add(name, OpenVino(plain, engine.batch_tokens, group))
            except Exception as error:  # a foreign library's; the reason goes into the table
                skipped[name] = f"{type(error).__name__}: {error}"[:200]
    seconds = in_turns(runs, repeats)
    reference = logits["torch, float32"][0]
    return {
        "pairs": len(pairs), "skipped": skipped,
        "tokens": sum(len(g.prefix) + len(s) for g in groups for s in g.suffixes),
        "rows": [
            {"engine": name, "seconds": times, "pairs_per_second": len(pairs) / statistics.median(times),
             "times_ours": statistics.median(times) / statistics.median(seconds["ours"]),
             "largest_logit_difference": float(np.abs(logits[name][0] - reference).max())}
            for name, times in seconds.items()
        ],
    }  # fmt: skip


def prompt(gguf: Path, work: Path, export: Path, repeats: int) -> dict[str, Any]:
    """Tokens a second of llama.cpp and of our export, on one prompt of `PROMPT` tokens."""
    import llama_cpp

    low = work / "q8_0.gguf"
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype, settings.allow_requantize, settings.nthread = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, True, 1
    if llama_cpp.llama_model_quantize(str(gguf).encode(), str(low).encode(), settings):
        raise click.ClickException(f"{gguf}: llama.cpp could not make it Q8_0")
    other = llama_cpp.Llama(
        str(low), n_ctx=PROMPT + 8, n_batch=PROMPT, n_ubatch=PROMPT, n_threads=1, n_threads_batch=1, verbose=False
    )
    tokens = [int(token) for token in np.random.default_rng(0).integers(100, 40_000, PROMPT)]
    engine = OnnxEngine(Checkpoint.load(export), device="cpu")
    group = PromptGroup((), (tuple(tokens),), (0,), (False,))

    def theirs() -> None:
        other.reset()
        other.eval(tokens)

    seconds = in_turns({"llama.cpp, Q8_0": theirs, "ours": lambda: grade_groups(engine, [group], grades=4)}, repeats)
    return {
        "provenance": provenance(), "tokens": PROMPT, "version": llama_cpp.__version__,
        "built for": llama_cpp.llama_print_system_info().decode(),
        "rows": [
            {"engine": name, "seconds": times, "tokens_per_second": PROMPT / statistics.median(times)}
            for name, times in seconds.items()
        ],
    }  # fmt: skip


@click.command(help=__doc__)
@click.argument("export", type=click.Path(path_type=Path))
@click.option("--before", type=click.Path(path_type=Path))
@click.option("--plain", type=click.Path(path_type=Path))
@click.option("--gguf", type=click.Path(path_type=Path))
@click.option("--collection", type=click.Path(path_type=Path), help="with topics.tsv, corpus.jsonl.gz, runs/")
@click.option("--pairs", default=100, show_default=True)
@click.option("--per-query", default=100, show_default=True)
@click.option("--prompt-alone", is_flag=True)
@click.option("--repeats", default=3, show_default=True)
def main(
    export: Path, before: Path | None, plain: Path | None, gguf: Path | None, collection: Path | None, pairs: int,
    per_query: int, prompt_alone: bool, repeats: int,
) -> None:  # fmt: skip
    if os.environ.get("OMP_NUM_THREADS") != "1":
        raise click.UsageError("processor seconds count every thread's waiting: set OMP_NUM_THREADS=1")
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    values: dict[str, Any] = {"collection": "icecat" if collection is None else collection.name, "per_query": per_query}
    if prompt_alone:
        values = json.loads((RESULTS / "int8_engines.json").read_text("utf-8"))
    else:
        values["products"] = products(5 * repeats)
        values["model"] = model(export, before, plain, read_pairs(collection, pairs, per_query), repeats)
    if gguf is not None:
        with tempfile.TemporaryDirectory() as work:
            values["prompt"] = prompt(gguf, Path(work), export, repeats)
    click.echo(write_result("int8_engines", values).name, err=True)


if __name__ == "__main__":
    main()
