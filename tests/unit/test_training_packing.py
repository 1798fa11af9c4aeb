"""A packed sequence of prompts gives what the prompts give one by one."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

from darl_rerank import Checkpoint, Reranker
from darl_rerank.engines.attention import masked_attention
from darl_rerank.engines.torch_engine import TorchEngine
from darl_rerank.model.base_weights import load_body
from darl_rerank.model.prompt import PromptGroup
from darl_rerank.training.model.grade_model import GradeModel, load_grade_model
from darl_rerank.training.model.packing import TOKEN_MULTIPLE, _attend, pack
from darl_rerank.training.recipe.settings import Trainable

QUERIES = ("laptop", "garden hose 20 m", "lap")
DOCUMENTS = ("Dell XPS 13 notebook with a long description" * 6, "hose", "Laptop sleeve 13 inch, black", "x")


@pytest.fixture
def model(tiny_model: Path) -> GradeModel:
    return load_grade_model(Checkpoint.load(tiny_model), Trainable("all"))


def groups(checkpoint: Checkpoint) -> list[PromptGroup]:
    encoder = checkpoint.encoder()
    return [encoder.encode(query, DOCUMENTS[: i + 2]) for i, query in enumerate(QUERIES)]


def test_packed_logits_are_those_of_the_engine(tiny_model: Path, tiny_reranker: Reranker, model: GradeModel) -> None:
    packed = pack(groups(Checkpoint.load(tiny_model)))
    with torch.inference_mode():
        (logits,) = model.eval()(packed.last, **packed.inputs()).numpy()
    pairs = [(query, document) for i, query in enumerate(QUERIES) for document in DOCUMENTS[: i + 2]]
    expected = tiny_reranker.score_pairs(pairs).logits
    assert logits.shape == expected.shape
    assert abs(logits - expected).max() < 2e-5


def test_training_runs_what_the_engine_runs_behind_prefill_layers(tiny_model: Path, tmp_path: Path) -> None:
    """With the tiny model's two layers once more, two layers lie behind those that run all tokens."""
    checkpoint = Checkpoint.load(tiny_model)
    body = load_body(checkpoint, torch.float32)
    body.layers.extend(deepcopy(body.layers))
    body.config.num_hidden_layers = 4
    LlamaForCausalLM(body.config).save_pretrained(tmp_path / "model")
    weights = {f"model.{name}": value.contiguous() for name, value in body.state_dict().items()}
    save_file(weights, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    shallow = checkpoint.replace(prefill_layers=2, novelty=None).save(tmp_path / "saved", model=tmp_path / "model")
    assert shallow.prefill_layers == 2
    packed = pack(groups(shallow))
    pairs = [(query, document) for i, query in enumerate(QUERIES) for document in DOCUMENTS[: i + 2]]
    expected = Reranker(shallow, TorchEngine(shallow, device="cpu", precision="float32")).score_pairs(pairs).logits
    for trainable in (Trainable("all"), Trainable(rank=2)):
        model = load_grade_model(shallow, trainable).eval()
        with torch.inference_mode():
            (logits,) = model(packed.last, **packed.inputs()).numpy()
        assert abs(logits - expected).max() < 2e-5
    whole = shallow.replace(prefill_layers=None)
    other = Reranker(whole, TorchEngine(whole, device="cpu", precision="float32")).score_pairs(pairs).logits
    assert abs(other - expected).max() > 0.01


def test_a_shared_beginning_stands_once(tiny_model: Path) -> None:
    prompts = groups(Checkpoint.load(tiny_model))
    packed = pack(prompts)
    whole = sum(len(g.prefix) + len(s) for g in prompts for s in g.suffixes)
    assert packed.tokens < sum(len(g.prefix) for g in prompts) + sum(len(s) for g in prompts for s in g.suffixes)
    assert packed.tokens < whole
    assert packed.ids.shape[1] % TOKEN_MULTIPLE == 0


def test_gradients_are_those_of_prompts_run_apart(tiny_model: Path, model: GradeModel) -> None:
    prompts = groups(Checkpoint.load(tiny_model))
    alone = [PromptGroup(g.prefix, (s,), (0,), (False,)) for g in prompts for s in g.suffixes]
    weight = model.body.layers[0].mlp.up_proj.weight

    def gradient(batches: list[list[PromptGroup]]) -> torch.Tensor:
        model.zero_grad()
        for batch in batches:
            packed = pack(batch)
            model(packed.last, **packed.inputs()).square().sum().backward()
        assert weight.grad is not None
        return weight.grad.clone()

    together, apart = gradient([prompts]), gradient([[group] for group in alone])
    assert together.abs().max() > 0
    torch.testing.assert_close(together, apart, rtol=1e-3, atol=1e-5)


def test_prompts_with_nothing_in_common(model: GradeModel) -> None:
    prompts = [PromptGroup((5, 6), ((7,), (8, 9)), (0, 1), (False, False)), PromptGroup((9,), ((4,),), (0,), (False,))]
    together = pack(prompts)
    with torch.inference_mode():
        (logits,) = model.eval()(together.last, **together.inputs())
        apart = [model(p.last, **p.inputs())[0] for g in prompts for p in (pack([g]),)]
    torch.testing.assert_close(logits, torch.cat(apart), rtol=1e-4, atol=1e-5)


def test_the_fused_kernels_attend_as_what_is_written_out() -> None:
    torch.manual_seed(0)
    q = torch.randn(3, 6, 32, 8, requires_grad=True)
    k, v = (torch.randn(3, 2, 64, 8, requires_grad=True) for _ in range(2))
    mask = torch.rand(3, 1, 32, 64) < 0.5
    mask[..., 0] = True
    written_out, fused = _attend(q, k, v, mask, None, 0.0), masked_attention(q, k, v, mask)
    torch.testing.assert_close(fused, written_out)
    gradients = (torch.autograd.grad(output.square().sum(), (q, k, v)) for output in (fused, written_out))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
