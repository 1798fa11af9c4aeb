"""Early exit in the engines, on a random model of four layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from darl_rerank import Checkpoint
from darl_rerank.errors import InputError
from darl_rerank.model.base_weights import load_body
from darl_rerank.model.calibration import Calibration
from darl_rerank.model.exits import ExitHead, Exits
from darl_rerank.model.head import Head

LAYERS, HIDDEN = 4, 32


@pytest.fixture(scope="module")
def checkpoint(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Four random layers, the second the middle one, and exits behind the first and the third without a rule."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(1)
    config = LlamaConfig.from_pretrained(tiny_model / "model")
    config.num_hidden_layers = LAYERS
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "weights")
    tiny = Checkpoint.load(tiny_model)
    rng = np.random.default_rng(0)
    heads = tuple(
        ExitHead(
            layer,
            Head(
                tiny.head.weight + rng.normal(scale=0.1, size=(4, HIDDEN)).astype(np.float32),
                tiny.head.bias,
                rng.uniform(0.5, 1.5, HIDDEN).astype(np.float32),
            ),
            Calibration(2.0, bias=(0.0, 0.1, -0.1, 0.0)),
        )
        for layer in (1, 3)
    )
    return tiny.replace(feature_layer=2, exits=Exits(heads)).save(folder / "checkpoint", model=folder / "weights")


def test_a_shortened_model_is_the_first_layers_under_the_exit_s_norm(checkpoint: Checkpoint, tmp_path: Path) -> None:
    ended = checkpoint.ending_at(3).save(tmp_path / "ended")
    whole, body = (load_body(each, torch.float32) for each in (checkpoint, ended))
    ids = torch.arange(12)[None] + 3
    with torch.no_grad():
        states = whole(input_ids=ids, output_hidden_states=True).hidden_states[3][0, -1]
        found = body(input_ids=ids).last_hidden_state[0, -1]
    assert ended.exits is not None
    assert (len(body.layers), ended.exits.layers) == (3, (1,))
    norm = torch.from_numpy(ended.head.norm)
    torch.testing.assert_close(found, states * states.square().mean().rsqrt() * norm, atol=1e-4, rtol=1e-4)
    with pytest.raises(InputError, match="ends behind layer 9, which"):
        load_body(checkpoint.replace(layers=9), torch.float32)
