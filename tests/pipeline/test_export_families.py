"""Export of random decoders of each family: the graphs grade as torch does, and others are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from darl_rerank.export import folder as export_folder
from darl_rerank.export.graph import GradeGraph, trace
from darl_rerank.export.inputs import input_sizes
from darl_rerank.export.int8 import quantize
from darl_rerank.export.precision import in_blocks, products
from darl_rerank.export.sensitivity import effects
from darl_rerank.export.smoothing import smooth, smoothing
from darl_rerank.export.weights import without_prefix

from darl_rerank import Checkpoint
from darl_rerank.cli import cli
from darl_rerank.errors import InputError
from darl_rerank.model.base_weights import load_body
from darl_rerank.model.checkpoint import GRAPH, PREFIX_GRAPH
from darl_rerank.model.head import Head


def save_base(family: str, folder: Path) -> None:
    """A random decoder of two layers for the tiny model's tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {
        "vocab_size": 384, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    }  # fmt: skip
    if family in ("gemma2", "gemma3_text", "mistral"):
        settings["sliding_window"] = 8  # shorter than the sequence, so that the window counts
    if family == "gpt2":
        settings = {"vocab_size": 384, "n_embd": 32, "n_layer": 2, "n_head": 4}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # else zeros
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)


def family_checkpoint(family: str, tiny_model: Path, folder: Path) -> Checkpoint:
    save_base(family, folder / "base")
    head = Head(np.random.default_rng(0).normal(size=(4, 32)).astype(np.float32), np.zeros(4, np.float32))
    return Checkpoint.load(tiny_model).replace(head=head).save(folder / "checkpoint", model=folder / "base")


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3_text", "mistral"])
def test_families(family: str, tiny_model: Path, tmp_path: Path) -> None:
    """Both graphs: the gate's sample shares prefixes; then whole sequences, padded on either side."""
    checkpoint = family_checkpoint(family, tiny_model, tmp_path)
    parity = export_folder.export(checkpoint, tmp_path / "exported")
    assert parity.largest_difference < 1e-4
    ids = np.random.default_rng(1).integers(3, 384, (2, 24))
    padded, mask = np.full((2, 30), 1, np.int64), np.zeros((2, 30), np.int64)
    padded[0, 6:], padded[1, :24] = ids
    mask[0, 6:], mask[1, :24] = 1, 1
    session = onnxruntime.InferenceSession(str(tmp_path / "exported" / GRAPH))
    found = session.run(["logits"], {"input_ids": padded, "attention_mask": mask})[0]
    with torch.no_grad():
        states = load_body(checkpoint, torch.float32)(input_ids=torch.from_numpy(ids)).last_hidden_state[:, -1]
    np.testing.assert_allclose(found, states.numpy() @ checkpoint.head.weight.T, atol=1e-4)


@pytest.mark.parametrize(("family", "precision"), [("llama", "int8"), ("qwen2", "int8"), ("llama", "int4")])
def test_what_one_product_alone_does_to_the_logits(
    family: str, precision: str, tiny_model: Path, tmp_path: Path
) -> None:
    """The first-order effects are those of the smoothed graph with that product alone quantised; Qwen has biases."""
    checkpoint = family_checkpoint(family, tiny_model, tmp_path)
    traced, ids = tmp_path / PREFIX_GRAPH, np.random.default_rng(1).integers(3, 384, (4, 1, 24))
    inputs = [{"input_ids": row, "attention_mask": np.ones_like(row)} for row in ids]
    module = GradeGraph(checkpoint).eval()
    trace(module, traced)
    model = without_prefix(onnx.load(str(traced)))
    assert {"layers.0.self_attn.q_proj", "layers.1.mlp.down_proj"} < set(products(model))
    factors = {}
    if precision == "int8":
        factors = smoothing(model, products(model), lambda readers: input_sizes(module, readers, inputs))
        assert factors
        smooth(model, products(model), factors)
    exact = centred_logits(model, inputs)
    moved = effects(module, factors, precision, inputs)
    assert set(moved) == set(products(model))
    for name, effect in moved.items():
        one = onnx.ModelProto()
        one.CopyFrom(model)
        if precision == "int8":
            quantize(one, {name: products(one)[name]})
        else:
            in_blocks(one, [name], 4)
        measured = np.sqrt(np.mean((centred_logits(one, inputs) - exact) ** 2))
        assert effect == pytest.approx(measured, rel=0.2), name


def centred_logits(model: Any, inputs: list[dict[str, Any]]) -> Any:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    logits = np.concatenate([session.run(["logits"], one)[0] for one in inputs])
    return logits - logits.mean(axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("family", "reason"),
    [("gpt2", "gpt2 can't be exported"), ("gemma2", "could not be loaded: Gemma2Model does not support")],
)
def test_other_families_are_refused(family: str, reason: str, tiny_model: Path, tmp_path: Path) -> None:
    checkpoint = family_checkpoint(family, tiny_model, tmp_path)
    with pytest.raises(InputError, match=reason):
        export_folder.export(checkpoint, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_a_model_without_a_grade_head_is_refused(tmp_path: Path) -> None:
    save_base("llama", tmp_path / "base")
    result = CliRunner().invoke(cli, ["export", str(tmp_path / "base"), str(tmp_path / "out")])
    assert result.exit_code == 3
    assert "checkpoint.json" in result.output
    assert not (tmp_path / "out").exists()
