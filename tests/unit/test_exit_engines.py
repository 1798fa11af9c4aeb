"""Early exit in the engines, on a random model of four layers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from darl_rerank import Checkpoint, RankedDocument, Reranker
from darl_rerank.engines.decoder_loading import load_decoder
from darl_rerank.engines.torch_engine import TorchEngine
from darl_rerank.engines.torch_exits import TorchExits
from darl_rerank.errors import InputError
from darl_rerank.model.base_weights import load_body
from darl_rerank.model.calibration import Calibration
from darl_rerank.model.decisions import Cut, Promise
from darl_rerank.model.exits import ExitHead, Exits, exit_logits
from darl_rerank.model.head import Head
from darl_rerank.model.novelty import fit_novelty, middle_layer_weights

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


QUERY = "laptop for the house"
DOCUMENTS = [
    "a notebook computer with a battery cable", "garden hose",
    "the quick brown fox jumps over the lazy dog, " * 4 + "twice",
    "printer toner cartridge, price", "x",
    "which product is the best for the price? " * 9 + "this", "north of the country",
    "what does it do in the house while it rains", "battery", "fox, dog and hose in the garden",
]  # fmt: skip


def whole(checkpoint: Checkpoint, **options: Any) -> Reranker:
    return Reranker(checkpoint, TorchEngine(checkpoint, device="cpu", precision="float32", **options))


@pytest.fixture(scope="module")
def ruled(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with a threshold under which some pairs leave at each of its exits and some stay."""
    assert checkpoint.exits is not None
    collector = TorchExits(checkpoint.exits, "softmax", torch.device("cpu"))
    decoder = load_decoder(checkpoint, torch.float32, torch.device("cpu"))
    group = checkpoint.encoder().encode(QUERY, DOCUMENTS)
    reached = {}

    class Watching:
        layers = (1, 3)

        def leaving(self, layer: int, states: torch.Tensor) -> NDArray[np.bool_]:
            exit = checkpoint.exits.at(layer)  # type: ignore[union-attr]
            reached[layer] = exit.probabilities(collector.logits(layer, states))[:, 2:].sum(axis=1)
            return np.zeros(len(states), dtype=bool)

    decoder.run([group.prefix + suffix for suffix in group.suffixes], exits=Watching())
    # Between two neighbours, so that no rounding decides.
    ordered = np.sort(reached[1])
    threshold = float(ordered[2:4].mean())
    assert ordered[3] - ordered[2] > 1e-4
    gone = reached[1] < threshold
    assert (reached[3][~gone] < threshold).any()
    assert (reached[3][~gone] > threshold).any()
    assert np.abs(reached[3] - threshold).min() > 1e-4
    rule = Cut(Promise("recall", 0.9, 2), threshold, None, {})
    return checkpoint.replace(exits=Exits(checkpoint.exits.heads, rule))


def test_pairs_leave_by_the_exit_s_probability_and_their_results_are_the_exit_s(ruled: Checkpoint) -> None:
    body = load_body(ruled, torch.float32)
    group = ruled.encoder().encode(QUERY, DOCUMENTS)
    scores = whole(ruled).score_pairs([(QUERY, document) for document in DOCUMENTS])
    assert scores.exit_layers is not None
    assert set(scores.exit_layers.tolist()) == {0, 1, 3}
    assert ruled.exits is not None
    for i, suffix in enumerate(group.suffixes):
        with torch.no_grad():
            output = body(input_ids=torch.tensor([group.prefix + suffix]), output_hidden_states=True)
        expected = 0
        logits = output.last_hidden_state[0, -1].numpy() @ ruled.head.weight.T + ruled.head.bias
        for layer in (1, 3):
            found = exit_logits(ruled.exits.at(layer).head, "softmax", output.hidden_states[layer][:, -1].numpy())
            if ruled.exits.leaving(layer, found)[0]:
                expected, logits = layer, found[0]
                break
        assert scores.exit_layers[i] == expected
        np.testing.assert_allclose(scores.logits[i], logits, atol=2e-4)
        exit = None if not expected else ruled.exits.at(expected)
        calibration = ruled.calibration if exit is None else exit.calibration
        np.testing.assert_allclose(scores.probabilities[i], calibration.probabilities(logits[None])[0], atol=1e-4)
    left = scores.exit_layers > 0
    assert scores.score[left].max() < scores.score[~left].min()


@pytest.mark.parametrize("options", [{"batch_tokens": 40}, {"batch_tokens": 300}, {"share_prefix": False}])
def test_a_pair_s_result_depends_on_the_pair_alone(ruled: Checkpoint, options: dict[str, Any]) -> None:
    engine = TorchEngine(ruled, device="cpu", precision="float32")
    alone = [Reranker(ruled, engine).score_pairs([(QUERY, document)], features=True) for document in DOCUMENTS]
    together = Reranker(ruled, engine, **options).score_pairs([(QUERY, d) for d in reversed(DOCUMENTS)], features=True)
    for i, one in enumerate(reversed(alone)):
        assert together.exit_layers is not None
        assert one.exit_layers is not None
        assert together.exit_layers[i] == one.exit_layers[0]
        np.testing.assert_allclose(together.probabilities[i], one.probabilities[0], atol=1e-5)
        np.testing.assert_allclose(together.features[i], one.features[0], atol=1e-5)  # type: ignore[index]


def test_off_is_what_a_checkpoint_without_exits_gives(ruled: Checkpoint, tmp_path: Path) -> None:
    ruled.save(tmp_path / "ruled")
    pairs = [(QUERY, document) for document in DOCUMENTS]
    options: dict[str, Any] = {"engine": "torch", "device": "cpu", "precision": "float32"}
    off = Reranker.from_pretrained(tmp_path / "ruled", exit="off", **options)
    on = Reranker.from_pretrained(tmp_path / "ruled", **options)
    without = whole(ruled.replace(exits=None))
    found, expected, early = (each.score_pairs(pairs, features=True) for each in (off, without, on))
    for name in ("logits", "probabilities", "score", "features"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert found.exit_layers is None
    assert off.fingerprint == without.fingerprint != on.fingerprint
    stayed = early.exit_layers == 0
    np.testing.assert_array_equal(early.grade[stayed], expected.grade[stayed])
    np.testing.assert_allclose(early.score[stayed], expected.score[stayed], atol=1e-5)
    with pytest.raises(InputError, match="exit must be 'auto' or 'off', got 'on'"):
        Reranker.from_pretrained(tmp_path / "ruled", exit="on", **options)  # type: ignore[arg-type]


def test_any_decoder_gives_the_same(ruled: Checkpoint) -> None:
    pairs = [(QUERY, document) for document in DOCUMENTS]
    fused, plain = (whole(ruled, fused=way).score_pairs(pairs, features=True) for way in (True, False))
    np.testing.assert_array_equal(fused.exit_layers, plain.exit_layers)
    np.testing.assert_allclose(fused.logits, plain.logits, atol=2e-4)
    np.testing.assert_allclose(fused.features, plain.features, atol=2e-4)


def test_all_may_leave_at_once(ruled: Checkpoint) -> None:
    assert ruled.exits is not None
    for fused in (True, False):
        everything = ruled.replace(exits=Exits(ruled.exits.heads, Cut(Promise("recall", 0.9, 2), 2.0)))
        scores = whole(everything, fused=fused).score_pairs([(QUERY, d) for d in DOCUMENTS], features=True)
        assert (scores.exit_layers == 1).all()
        assert np.isnan(scores.features).all()


def test_novelty_is_known_of_pairs_that_came_to_the_layers_it_looks_at(ruled: Checkpoint) -> None:
    pairs = [(QUERY, document) for document in DOCUMENTS]
    features = whole(ruled.replace(exits=None)).score_pairs(pairs, features=True).features
    assert features is not None
    novelty = fit_novelty(features, features, weights=middle_layer_weights(features.shape[1]), k=1)
    early, full = (whole(each.replace(novelty=novelty)) for each in (ruled, ruled.replace(exits=None)))
    found, expected = early.score_pairs(pairs), full.score_pairs(pairs)
    assert found.exit_layers is not None
    known = found.exit_layers != 1
    np.testing.assert_array_equal(np.isnan(found.novelty), ~known)
    np.testing.assert_allclose(found.novelty[known], expected.novelty[known], atol=0.5)  # type: ignore[index]
    ranking = early.rerank(QUERY, DOCUMENTS)
    layers = [ranked.exit_layer for ranked in ranking]
    # Whole ones first.
    assert layers == sorted(layers, key=lambda layer: layer is not None)
    assert [ranked.novelty is None for ranked in ranking] == [layer == 1 for layer in layers]
    assert [RankedDocument.from_dict(ranked.to_dict()).exit_layer for ranked in ranking] == layers


def test_another_prevalence_counts_for_pairs_that_left(ruled: Checkpoint) -> None:
    shares = (0.25, 0.25, 0.25, 0.25)
    known = ruled.replace(calibration=Calibration(prevalence=shares))
    pairs = [(QUERY, document) for document in DOCUMENTS]
    scores = whole(known).score_pairs(pairs)
    same, rare = (whole(known).score_pairs(pairs, prevalence=p) for p in (shares, (0.7, 0.1, 0.1, 0.1)))
    np.testing.assert_allclose(same.probabilities, scores.probabilities, atol=1e-9)
    np.testing.assert_allclose(same.score, scores.score, atol=1e-9)
    assert (rare.probabilities[:, 0] > scores.probabilities[:, 0]).all()


def test_an_exit_behind_the_last_layer_is_refused(ruled: Checkpoint) -> None:
    assert ruled.exits is not None
    late = replace(ruled.exits.heads[0], layer=LAYERS)
    with pytest.raises(InputError, match="the exit behind layer 4 is not one before the last of 4 layers"):
        whole(ruled.replace(exits=Exits((late,))))
