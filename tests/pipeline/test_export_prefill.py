"""Exports of checkpoints behind whose first layers only the last token goes on (prefill_layers)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from darl_rerank.export.graph import GradeGraph, trace
from darl_rerank.export.inputs import forward
from darl_rerank.export.precision import convert
from darl_rerank.export.weights import without_prefix
from numpy.typing import NDArray

from darl_rerank import Checkpoint
from darl_rerank.model.base_weights import load_body
from darl_rerank.model.checkpoint import PREFIX_GRAPH
from darl_rerank.model.head import Head

LAYERS, ALL_TOKENS = 3, 1
RNG = np.random.default_rng(0)
ROWS = [RNG.integers(3, 384, length) for length in (24, 9, 17)]
PREFIX = 6


def checkpoint_of(family: str, tiny_model: Path, folder: Path, layers: int | None = ALL_TOKENS) -> Checkpoint:
    """A random decoder of three layers for the tiny model's tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    settings: dict[str, Any] = {
        "vocab_size": 384, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": LAYERS, "head_dim": 8,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.3,
        "pad_token_id": 0,
    }  # fmt: skip
    if family == "gemma3_text":
        settings["sliding_window"] = 8  # shorter than the sequences, so that the window counts
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings))
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:  # else the same in all layers
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model.save_pretrained(folder / "base")
    head = Head(RNG.normal(size=(4, 32)).astype(np.float32), np.zeros(4, np.float32))
    changed = Checkpoint.load(tiny_model).replace(head=head, feature_layer=1, prefill_layers=layers)
    return changed.save(folder / "checkpoint", model=folder / "base")


def expected_logits(checkpoint: Checkpoint) -> NDArray[np.float32]:
    """Of `ROWS`, one by one, as transformers computes them."""
    body = load_body(checkpoint, torch.float32)
    with torch.no_grad():
        states = [body(input_ids=torch.from_numpy(ids)[None]).last_hidden_state[0, -1].numpy() for ids in ROWS]
    found: NDArray[np.float32] = np.stack(states) @ checkpoint.head.weight.T
    return found


def traced(checkpoint: Checkpoint, path: Path, **options: Any) -> tuple[GradeGraph, Any]:
    graph = GradeGraph(checkpoint, **options).eval()
    trace(graph, path)
    return graph, onnx.load(str(path))


def run(model: Any, rows: list[NDArray[np.int64]], **inputs: Any) -> dict[str, NDArray[np.float32]]:
    """Of rows padded on both sides in turn."""
    width = max(map(len, rows))
    ids, mask = np.full((len(rows), width), 7, np.int64), np.zeros((len(rows), width), np.int64)
    for i, row in enumerate(rows):
        start = (width - len(row)) * (i % 2)
        ids[i, start : start + len(row)], mask[i, start : start + len(row)] = row, 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    found = session.run(names, {"input_ids": ids, "attention_mask": mask, **inputs})
    return dict(zip(names, found, strict=True))


@pytest.mark.parametrize("family", ["qwen2", "gemma3_text"])
def test_later_layers_run_last_tokens_on_keys_and_values_of_the_states_before(
    family: str, tiny_model: Path, tmp_path: Path
) -> None:
    checkpoint = checkpoint_of(family, tiny_model, tmp_path)
    graph, model = traced(checkpoint, tmp_path / PREFIX_GRAPH)
    expected = expected_logits(checkpoint)
    plain = run(without_prefix(model), ROWS)
    np.testing.assert_allclose(plain["logits"], expected, atol=1e-4)
    assert np.abs(expected - expected_logits(checkpoint.replace(prefill_layers=None))).max() > 0.01
    for short in (1, 2, 3):  # halves of which one is empty, or both are one query
        found = [run(without_prefix(model), rows)["logits"] for rows in ([ROWS[0][:short]], [ROWS[0][:short], ROWS[1]])]
        np.testing.assert_allclose(found[0][0], found[1][0], atol=1e-4)
    # Behind a prefix, which one row is run for, all rows of it.
    start = ROWS[0][:PREFIX]
    heads, size = graph.config.num_key_value_heads, graph.config.head_dim
    nothing = np.zeros((LAYERS, 2, heads, 0, size), np.float32), np.zeros(32, np.float32)
    before = run(model, [start], prefix_keys_values=nothing[0], prefix_own_sum=nothing[1])
    whole = run(without_prefix(model), [np.concatenate([start, row]) for row in ROWS])
    behind = run(model, ROWS, prefix_keys_values=before["keys_values"], prefix_own_sum=before["own_sum"])
    for name in ("logits", "features"):
        np.testing.assert_allclose(behind[name], whole[name], atol=1e-4)
    # Of more rows the first one's keys and values come back.
    two = run(model, ROWS[:2], prefix_keys_values=nothing[0], prefix_own_sum=nothing[1])["keys_values"]
    one = run(model, ROWS[:1], prefix_keys_values=nothing[0], prefix_own_sum=nothing[1])["keys_values"]
    np.testing.assert_allclose(two, one, atol=1e-4)
    # As it is differentiated: one row, without blocks.
    with torch.no_grad():
        alone = graph.of_row(torch.from_numpy(ROWS[1])[None])
    np.testing.assert_allclose(alone[0][0], expected[1], atol=1e-4)


@pytest.mark.parametrize("rotated", [False, True])
def test_all_tokens_have_two_products_in_a_later_layer(rotated: bool, tiny_model: Path, tmp_path: Path) -> None:
    checkpoint = checkpoint_of("llama", tiny_model, tmp_path)
    graph, model = traced(checkpoint, tmp_path / PREFIX_GRAPH, rotated=rotated)
    np.testing.assert_allclose(run(without_prefix(model), ROWS)["logits"], expected_logits(checkpoint), atol=1e-4)
    read = {node.input[1]: node.input[0] for node in model.graph.node if node.op_type == "MatMul"}
    assert read.keys() == graph.products().keys()
    sources = {
        name: source for name, source in read.items() if int(name.split(".")[1]) >= ALL_TOKENS and name[-6] in "kv"
    }
    assert len(sources) == 4
    # Where the norms' gains are in the weights all later layers read one tensor.
    assert len(set(sources.values())) == (1 if rotated else 2)
    kinds = Counter(node.op_type for node in model.graph.node)
    assert kinds["Attention"] == LAYERS + ALL_TOKENS  # two halves where all tokens are run
    if rotated:
        assert kinds["RMSNormalization"] == 2 * LAYERS + 2
    # In int8 each tensor is quantised once, with zero points that are made once for all tokens and once for last ones.
    convert(low := onnx.ModelProto.FromString(model.SerializeToString()), "int8")
    exact, found = (run(without_prefix(one), ROWS)["logits"] for one in (model, low))
    assert np.linalg.norm(found - exact) < 0.3 * np.linalg.norm(exact)  # random weights round badly
    kinds = Counter(node.op_type for node in low.graph.node)
    assert kinds["QuantizeLinear"] == len(set(read.values()))
    assert sum(node.input[0] == "int8.zero" for node in low.graph.node) == 2
    # The scales of queries and keys are in their cosines and sines.
    unscaled = [node.input[0] for node in low.graph.node if node.op_type == "Mul" and ".unscaled" in node.input[0]]
    assert len(unscaled) == LAYERS * 4  # values, o_proj, gate_proj, down_proj
    # What calibration sees are those tensors, and last tokens elsewhere.
    batch = {"input_ids": ROWS[1][None]}
    _, seen = forward(graph, graph.products(), batch)
    tokens = {name: states.shape[1] for name, (states, _) in seen.items()}
    assert {name for name, count in tokens.items() if count == 1} == {
        name for name in tokens if int(name.split(".")[1]) >= ALL_TOKENS and name not in sources
    }
    assert len({id(seen[name][0]) for name in sources}) == (1 if rotated else 2)
    logits, seen_of_all = forward(graph, graph.products(), batch, every_token=True)
    np.testing.assert_allclose(logits.detach(), forward(graph, {}, batch)[0].detach(), atol=1e-5)
    for name, (states, _) in seen.items():
        assert seen_of_all[name][0].shape[1] == len(ROWS[1])
        np.testing.assert_allclose(seen_of_all[name][0][:, -1].detach(), states[:, -1].detach(), atol=1e-4)


def test_one_product_for_queries_keys_and_values(tiny_model: Path, tmp_path: Path) -> None:
    """Then all layers run all tokens."""
    checkpoint = checkpoint_of("phi3", tiny_model, tmp_path, None)
    _, model = traced(checkpoint, tmp_path / PREFIX_GRAPH)
    np.testing.assert_allclose(run(without_prefix(model), ROWS)["logits"], expected_logits(checkpoint), atol=1e-4)


def test_all_layers_run_all_tokens_where_features_are_of_the_last(tiny_model: Path, tmp_path: Path) -> None:
    checkpoint = checkpoint_of("llama", tiny_model, tmp_path, None).replace(feature_layer=LAYERS)
    _, model = traced(checkpoint, tmp_path / PREFIX_GRAPH)
    np.testing.assert_allclose(run(without_prefix(model), ROWS)["logits"], expected_logits(checkpoint), atol=1e-4)
