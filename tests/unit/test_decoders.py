"""The fused decoder against transformers' own forward pass, on random models of every kind it takes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.attention.varlen
from transformers import AutoConfig, AutoModel

from darl_rerank import Checkpoint, Reranker
from darl_rerank.engines import decoder_loading, fused_weights, products
from darl_rerank.engines.block_attention import BlockAttention
from darl_rerank.engines.decoder import DecoderStates, PlainDecoder
from darl_rerank.engines.decoder_loading import load_decoder
from darl_rerank.engines.fused_decoder import FusedDecoder
from darl_rerank.engines.fused_weights import FusedWeights, cache_path
from darl_rerank.engines.products import OneDnnProduct, Product, product_kind
from darl_rerank.engines.torch_engine import TorchEngine
from darl_rerank.engines.varlen_attention import VarlenAttention, varlen_works
from darl_rerank.errors import InputError
from darl_rerank.model.base_model import BaseModel
from darl_rerank.model.base_weights import with_shared_states

CPU = torch.device("cpu")
PREFIX = [5, 9, 2, 30, 7]
# From one token to many, two of equal length, out of order.
SEQUENCES = [[3], [8, 1, 4, 4, 60, 61, 2, 2, 19], [11, 12], [13, 14], list(range(20, 50))]
SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama, biases and scaled positions": {
        "attention_bias": True,
        "mlp_bias": True,
        "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0},
    },
    "llama, no shared keys": {"num_key_value_heads": 4},
    "mistral": {"sliding_window": 64},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
}


def random_model(kind: str, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind.partition(",")[0], **(SHAPE | KINDS.get(kind, {})))
    model = AutoModel.from_config(config, dtype=torch.float32, attn_implementation="sdpa").eval()
    for parameter in model.parameters():  # norms and biases as well, which start as ones and zeros
        parameter.data = parameter.data + 0.2 * torch.randn_like(parameter)
    return model.to(dtype)


def fused_decoder(model: Any, feature_layer: int = 2, prefill_layers: int | None = None) -> FusedDecoder:
    weights = FusedWeights.of_model(model)
    assert weights is not None
    return FusedDecoder(weights, feature_layer, prefill_layers=prefill_layers)


@torch.inference_mode()
def both(
    kind: str, dtype: torch.dtype = torch.float32, feature_layer: int = 2, prefill_layers: int | None = None
) -> list[tuple[DecoderStates, DecoderStates]]:
    """States without a prefix and behind one, each by transformers and by the fused decoder."""
    plain = PlainDecoder(with_shared_states(random_model(kind, dtype), prefill_layers), feature_layer)
    fused = fused_decoder(random_model(kind, dtype), feature_layer, prefill_layers)
    starts = [decoder.run([PREFIX], keep=True).keys_values for decoder in (plain, fused)]
    return [
        (plain.run(SEQUENCES), fused.run(SEQUENCES)),
        (plain.run(SEQUENCES, starts[0]), fused.run(SEQUENCES, starts[1])),
        (plain.run([PREFIX], keep=True), fused.run([PREFIX], keep=True)),
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_the_fused_decoder_gives_what_transformers_gives(kind: str) -> None:
    for plain, fused in both(kind):
        torch.testing.assert_close(fused.final, plain.final, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(fused.middle, plain.middle, atol=2e-5, rtol=1e-5)
    for (keys, values), kept in zip(plain.keys_values, fused.keys_values, strict=True):
        torch.testing.assert_close(kept[0], keys, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(kept[1], values, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_last_token_goes_on_behind_prefill_layers(kind: str) -> None:
    for (plain, fused), (whole, _) in zip(both(kind, feature_layer=1, prefill_layers=1), both(kind), strict=True):
        torch.testing.assert_close(fused.final, plain.final, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(fused.middle, plain.middle, atol=2e-5, rtol=1e-5)
        assert not torch.allclose(plain.final, whole.final, atol=0.01)
    for (keys, values), kept in zip(plain.keys_values, fused.keys_values, strict=True):
        torch.testing.assert_close(kept[0], keys, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(kept[1], values, atol=2e-5, rtol=1e-5)


def test_prefill_layers_up_to_the_last_are_the_whole_model() -> None:
    for (plain, fused), (_, whole) in zip(both("qwen3", prefill_layers=2), both("qwen3"), strict=True):
        torch.testing.assert_close(plain.final, whole.final, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(fused.final, whole.final, atol=0, rtol=0)
    with pytest.raises(InputError, match="prefill_layers 3 is not below the model's 3 layers"):
        with_shared_states(random_model("llama"), 3)


def test_prefill_layers_that_a_model_does_not_have_are_refused(tiny_model: Path) -> None:
    checkpoint = Checkpoint.load(tiny_model)
    load_decoder(checkpoint, torch.float32, CPU)  # what a cache holds of the weights must not hide it
    for fused in (True, False):
        with pytest.raises(InputError, match="prefill_layers 2 is not below the model's 2 layers"):
            load_decoder(checkpoint.replace(prefill_layers=2), torch.float32, CPU, fused=fused)


@pytest.mark.parametrize("feature_layer", [1, 3])
def test_any_layer_can_be_the_middle_one(feature_layer: int) -> None:
    for plain, fused in both("llama", feature_layer=feature_layer):
        torch.testing.assert_close(fused.final, plain.final, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(fused.middle, plain.middle, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_fused_decoder_rounds_no_worse_than_transformers(dtype: torch.dtype) -> None:
    for (exact, _), (plain, fused) in zip(both("qwen3"), both("qwen3", dtype), strict=True):
        for part in ("final", "middle"):
            errors = [(getattr(s, part).float() - getattr(exact, part)).square().mean().sqrt() for s in (fused, plain)]
            assert 0 < errors[0] < 1.5 * errors[1]


@pytest.mark.parametrize("prefix", [None, PREFIX])
def test_the_gpu_way_of_attention_gives_the_same(prefix: list[int] | None) -> None:
    decoder = fused_decoder(random_model("qwen3"))
    with torch.inference_mode():
        before = None if prefix is None else decoder.run([prefix], keep=True).keys_values
        expected = decoder.run(SEQUENCES, before)
        decoder._attention = BlockAttention(decoder._heads, fused=True)
        found = decoder.run(SEQUENCES, before)
    torch.testing.assert_close(found.final, expected.final, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.middle, expected.middle, atol=1e-5, rtol=1e-5)


def of_each_length(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, query_ends: torch.Tensor, key_ends: torch.Tensor,
    most_queries: int, most_keys: int, *, window_size: tuple[int, int], enable_gqa: bool, num_splits: int,
) -> torch.Tensor:  # fmt: skip
    """What torch's kernel for sequences of different lengths computes, sequence by sequence; it runs on GPUs alone."""
    assert window_size == (-1, 0)
    assert num_splits == 1
    assert enable_gqa == (queries.shape[1] != keys.shape[1])
    found = []
    for i in range(len(query_ends) - 1):
        q = queries[query_ends[i] : query_ends[i + 1]].transpose(0, 1)
        k, v = (part[key_ends[i] : key_ends[i + 1]].transpose(0, 1) for part in (keys, values))
        assert q.shape[1] <= most_queries
        assert k.shape[1] <= most_keys
        seen = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool).tril(k.shape[1] - q.shape[1])
        attend = torch.nn.functional.scaled_dot_product_attention
        found.append(attend(q[None], k[None], v[None], attn_mask=seen, enable_gqa=True)[0].transpose(0, 1))
    return torch.cat(found)


@pytest.mark.parametrize("kind", ["qwen3", "llama, no shared keys"])
@pytest.mark.parametrize("prefix", [None, PREFIX])
def test_attention_by_lengths_gives_the_same(
    kind: str, prefix: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", of_each_length)
    states = []
    for packed in (False, True):
        decoder = fused_decoder(random_model(kind))
        if packed:
            decoder._attention, decoder._token_multiple = VarlenAttention(decoder._heads), 1
        with torch.inference_mode():
            before = None if prefix is None else decoder.run([prefix], keep=True).keys_values
            states.append(decoder.run(SEQUENCES, before))
    torch.testing.assert_close(states[1].final, states[0].final, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(states[1].middle, states[0].middle, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("wrong", [False, True])
def test_attention_by_lengths_is_tried_before_it_is_used(monkeypatch: pytest.MonkeyPatch, wrong: bool) -> None:
    def kernel(*given: Any, **options: Any) -> torch.Tensor:
        return of_each_length(*given, **options) + wrong

    assert not varlen_works(CPU, torch.bfloat16)  # torch's own has no kernel there
    varlen_works.cache_clear()
    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", kernel)
    assert varlen_works(CPU, torch.bfloat16) is not wrong
    assert not varlen_works(CPU, torch.float32)
    varlen_works.cache_clear()


def test_the_fused_decoder_keeps_no_second_copy_of_the_weights() -> None:
    weights = FusedWeights.of_model(random_model("llama"))
    assert weights is not None
    FusedDecoder(weights, 2)
    assert weights.tensors == {}


@pytest.mark.parametrize(
    ("kind", "more", "longest", "expected"),
    [
        ("llama", {}, 512, True),
        ("mistral", {"sliding_window": 512}, 512, True),
        ("mistral", {"sliding_window": 511}, 512, False),
        ("llama", {"hidden_act": "gelu"}, 512, False),
        # The same names of modules, another computation.
        ("granite", {}, 512, False),
        ("gemma2", {}, 512, False),
    ],
)
def test_what_is_fused(kind: str, more: dict[str, Any], longest: int, expected: bool) -> None:
    model = AutoModel.from_config(AutoConfig.for_model(kind, **(SHAPE | more)))
    weights = FusedWeights.of_model(model)
    assert (weights is not None and weights.fits(longest)) is expected


def test_rotary_factors_that_hang_on_the_length_are_left_to_transformers() -> None:
    config = AutoConfig.for_model(
        "llama", **SHAPE, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    )
    assert FusedWeights.of_model(AutoModel.from_config(config)) is None


@pytest.fixture
def kept(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    """The tiny checkpoint, with a cache of its own that keeps small models as well."""
    monkeypatch.setenv("DARL_RERANK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fused_weights, "_SMALLEST", 0)
    return Checkpoint.load(tiny_model)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_weights_from_the_cache_grade_the_same_without_transformers(
    kept: Checkpoint, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [("laptop", "a garden hose"), ("laptop", "a notebook")]
    first = Reranker(kept, TorchEngine(kept, device="cpu", precision=precision)).score_pairs(pairs)

    def never(*_: Any) -> Any:
        raise AssertionError("the model should not be read again")

    monkeypatch.setattr(decoder_loading, "load_body", never)
    again = Reranker(kept, TorchEngine(kept, device="cpu", precision=precision)).score_pairs(pairs)
    assert np.array_equal(first.logits, again.logits)
    assert first.novelty is None or np.array_equal(first.novelty, again.novelty)  # type: ignore[arg-type]


def test_a_damaged_file_in_the_cache_is_made_again(kept: Checkpoint) -> None:
    load_decoder(kept, torch.float32, CPU)
    path = cache_path(kept, torch.float32)
    assert path is not None
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:1000])
    load_decoder(kept, torch.float32, CPU)
    assert path.stat().st_size == size


def test_what_the_weights_depend_on_names_their_file(kept: Checkpoint) -> None:
    paths = [
        cache_path(kept, torch.float32),
        cache_path(kept, torch.bfloat16),
        cache_path(
            kept.replace(sha256={"adapter/adapter_model.safetensors": "a"}, base=BaseModel("x", sha256="b")),
            torch.float32,
        ),
        cache_path(
            kept.replace(sha256={"adapter/adapter_model.safetensors": "a"}, base=BaseModel("x", sha256="c")),
            torch.float32,
        ),
    ]
    assert None not in paths
    assert len(set(paths)) == len(paths)
    assert cache_path(kept.replace(sha256={}, base=BaseModel("org/model")), torch.float32) is None


def test_the_cache_keeps_the_few_used_last(kept: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_weights, "_KEPT", 2)
    dtypes = [torch.float32, torch.bfloat16, torch.float16]
    paths = [cache_path(kept, dtype) for dtype in dtypes]
    for age, (dtype, path) in enumerate(zip(dtypes, paths, strict=True)):
        load_decoder(kept, dtype, CPU)
        assert path is not None
        os.utime(path, (1000 + age, 1000 + age))
    assert [path is not None and path.is_file() for path in paths] == [False, True, True]


@pytest.mark.parametrize("kind", ["granite", "olmo2"])
def test_other_decoders_run_by_transformers(kind: str) -> None:
    """A prefix's keys and values behind transformers' own forward pass, against whole sequences."""
    with torch.inference_mode():
        decoder = PlainDecoder(random_model(kind), 2)
        before = decoder.run([PREFIX], keep=True).keys_values
        found = decoder.run(SEQUENCES, before)
        expected = decoder.run([PREFIX + sequence for sequence in SEQUENCES])
    torch.testing.assert_close(found.final, expected.final, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("share_prefix", [True, False])
def test_an_engine_grades_the_same_fused_or_not(tiny_model: Path, share_prefix: bool) -> None:
    checkpoint = Checkpoint.load(tiny_model)
    pairs = [(f"laptop {i % 3}", "garden hose " * (1 + 5 * (i % 7))) for i in range(40)]
    scores = []
    for fused in (True, False):
        engine = TorchEngine(checkpoint, device="cpu", precision="float32", fused=fused)
        reranker = Reranker(checkpoint, engine, batch_tokens=200, share_prefix=share_prefix)
        scores.append(reranker.score_pairs(pairs, features=True))
    np.testing.assert_allclose(scores[0].logits, scores[1].logits, atol=2e-5)
    assert scores[0].features is not None
    np.testing.assert_allclose(scores[0].features, scores[1].features, atol=1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [True, False])
def test_onednn_products_give_what_plain_ones_give(dtype: torch.dtype, with_bias: bool) -> None:
    if product_kind(CPU, dtype) is not OneDnnProduct:
        pytest.skip("this torch has no oneDNN products for it on this CPU")
    torch.manual_seed(0)
    weights = [torch.randn(n, 48).to(dtype) / 7 for n in (32, 16, 16)]
    biases: list[torch.Tensor | None] = [torch.randn(len(w)).to(dtype) if with_bias else None for w in weights]
    fused, plain = OneDnnProduct(weights, biases), Product(weights, biases)
    bound = 1e-5 if dtype == torch.float32 else 2**-6
    for tokens in (1, 7, 300):
        x, other = torch.randn(tokens, 48).to(dtype), torch.randn(tokens, 64).to(dtype)
        torch.testing.assert_close(fused(x), plain(x), atol=bound, rtol=bound)
        torch.testing.assert_close(fused.swish(x), plain.swish(x), atol=bound, rtol=bound)
        torch.testing.assert_close(fused.times(x, other), plain.times(x, other), atol=2 * bound, rtol=2 * bound)
        torch.testing.assert_close(fused.plus(x, other), plain.plus(x, other), atol=2 * bound, rtol=2 * bound)


@pytest.mark.parametrize("fault", [RuntimeError("no such layout"), AttributeError("no such operator"), None])
def test_products_fall_back_where_onednn_fails(monkeypatch: pytest.MonkeyPatch, fault: Exception | None) -> None:
    def broken(self: Any, x: torch.Tensor, then: str) -> torch.Tensor:
        if fault is not None:
            raise fault
        return Product.__call__(self, x) + 1

    products._onednn_works.cache_clear()
    monkeypatch.setattr(OneDnnProduct, "_run", broken)
    assert product_kind(CPU, torch.float32) is Product
    products._onednn_works.cache_clear()


def test_products_of_float16_are_plain() -> None:
    assert product_kind(CPU, torch.float16) is Product
