"""Rotated decoders: the same results in float32, and no channel that stands out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from darl_rerank.export.rotation import Back, orthogonal, rotate


def decoder(family: str) -> Any:
    """A random decoder of two layers whose norms have gains, and whose biases are not zeros."""
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family, vocab_size=97, hidden_size=48, intermediate_size=80, num_hidden_layers=2, head_dim=12,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    body = AutoModel.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in body.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.uniform_(0.5, 1.5)
        body.get_input_embeddings().weight[:, 5] *= 100
    return body


@pytest.mark.parametrize("size", [1, 9, 32, 48, 576])
def test_the_matrix_is_orthogonal_and_always_the_same(size: int) -> None:
    found = orthogonal(size)
    torch.testing.assert_close(found @ found.T, torch.eye(size), atol=1e-5, rtol=0)
    assert torch.equal(found, orthogonal(size))


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_turned_back_a_rotated_decoder_gives_what_it_gave(family: str) -> None:
    ids = torch.arange(3, 20)[None]
    body = decoder(family)
    with torch.no_grad():
        expected = body(ids, output_hidden_states=True)
        back, back_final = rotate(body)
        found = body(ids, output_hidden_states=True)
        assert isinstance(back, Back)
        torch.testing.assert_close(back(found.hidden_states[1]), expected.hidden_states[1], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(
            back_final(found.last_hidden_state), expected.last_hidden_state, atol=1e-4, rtol=1e-4
        )

    def outliers(states: torch.Tensor) -> torch.Tensor:
        return (states.abs().amax(-1) / states.square().mean(-1).sqrt()).mean()

    assert outliers(found.hidden_states[1]) < 0.6 * outliers(expected.hidden_states[1])


@pytest.mark.parametrize("family", ["gemma", "olmo2", "gemma3_text"])
def test_a_decoder_with_other_norms_is_left_as_it_is(family: str) -> None:
    body = decoder(family)
    before = {name: parameter.clone() for name, parameter in body.named_parameters()}
    states = torch.ones(2, 48)
    assert all(turn(states) is states for turn in rotate(body))
    assert all(torch.equal(parameter, before[name]) for name, parameter in body.named_parameters())
