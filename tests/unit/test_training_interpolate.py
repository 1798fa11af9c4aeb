"""Weights between two models, averages of models, differences cut to low rank, and the linear probe."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from darl_rerank import Checkpoint, Reranker
from darl_rerank.errors import InputError
from darl_rerank.model.base_weights import load_body, load_causal_lm
from darl_rerank.model.head import Head
from darl_rerank.training.data.features import PairFeatures
from darl_rerank.training.loop.probe import fit_probe
from darl_rerank.training.model.grade_model import GradeModel, load_grade_model, save_trained
from darl_rerank.training.model.interpolate import average, interpolated
from darl_rerank.training.model.lowrank import (
    LARGEST_FLOAT8,
    LowRank,
    as_adapter,
    balanced,
    largest_rank,
    low_rank_difference,
    mean_adapter,
    read_adapter,
    save_as_adapter,
)
from darl_rerank.training.model.packing import pack
from darl_rerank.training.recipe.settings import ProbeSettings, Trainable
from darl_rerank.training.stages.merge import GradedSet, alpha_curve
from darl_rerank.training.stages.probe import final_states

PAIRS = [("laptop", "Dell notebook"), ("laptop", "garden hose"), ("hose", "garden hose 20 m")]


def moved(model: GradeModel, seed: int) -> dict[str, torch.Tensor]:
    """A state of the model as training might leave it: every trained weight changed."""
    generator = torch.Generator().manual_seed(seed)
    state = model.trainable_state()
    return {name: value + 0.05 * torch.randn(value.shape, generator=generator) for name, value in state.items()}


def logits(model: GradeModel, state: dict[str, torch.Tensor], checkpoint: Checkpoint) -> torch.Tensor:
    model.load_trainable(state)
    encoder = checkpoint.encoder()
    packed = pack([encoder.encode(query, [document]) for query, document in PAIRS])
    with torch.inference_mode():
        found: torch.Tensor = model.eval()(packed.last, **packed.inputs())
    return found


def difference(model: GradeModel, state: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """ΔW of one adapted weight in a state."""
    a, b = (state[f"{name}.lora_{letter}.default.weight"] for letter in "AB")
    scaling: float = model.lm.get_submodule(name.removeprefix("lm.")).scaling["default"]
    return scaling * (b @ a)


LAYER = "lm.base_model.model.model.layers.0.mlp.up_proj"


@pytest.mark.parametrize("weights", ["all", "lora"])
def test_the_ends_are_the_two_models(tiny_model: Path, weights: str) -> None:
    checkpoint = Checkpoint.load(tiny_model)
    model = load_grade_model(checkpoint, Trainable(weights))  # type: ignore[arg-type]
    start = model.trainable_state()
    end = moved(model, 0)
    for alpha, state in ((0.0, start), (1.0, end)):
        expected = logits(model, state, checkpoint)
        found = logits(model, interpolated(start, end, alpha), checkpoint)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_lora_is_scaled_as_a_whole(tiny_model: Path) -> None:
    model = load_grade_model(Checkpoint.load(tiny_model), Trainable("lora", rank=2))
    start, end = model.trainable_state(), moved(model, 0)
    half = interpolated(start, end, 0.5)
    torch.testing.assert_close(difference(model, half, LAYER), 0.5 * difference(model, end, LAYER))
    torch.testing.assert_close(half["head.weight"], (start["head.weight"] + end["head.weight"]) / 2)
    with pytest.raises(InputError, match="had one already"):
        interpolated(end, start, 0.5)


def test_a_soup_of_adapters_is_the_mean_of_their_differences(tiny_model: Path) -> None:
    checkpoint = Checkpoint.load(tiny_model)
    model = load_grade_model(checkpoint, Trainable("lora", rank=2, alpha=6))
    states = [moved(model, seed) for seed in range(3)]
    large = load_grade_model(checkpoint, Trainable("lora", rank=6, alpha=18))
    soup = average(states)
    expected = sum(difference(model, state, LAYER) for state in states) / 3
    torch.testing.assert_close(difference(large, soup, LAYER), expected, rtol=1e-4, atol=1e-6)
    large.load_trainable(soup)
    with pytest.raises(InputError, match="same weights"):
        average([states[0], {}])


def test_the_curve_chooses_the_best_and_of_equals_the_nearest_to_the_start() -> None:
    rng = np.random.default_rng(0)
    labels, queries = rng.integers(0, 3, 60), np.repeat(np.arange(12), 5)
    sets = {"ID dev": GradedSet(labels, queries), "OOD dev": GradedSet(labels[::-1].copy(), queries)}
    noise = {name: rng.normal(size=(60, 3)) for name in sets}
    gains = np.array([0.0, 1.0, 2.0])

    def logits_at(alpha: float) -> dict[str, np.ndarray]:
        good = 1 - abs(alpha - 0.6)
        return {name: noise[name] + 3 * good * np.eye(3)[members.labels] for name, members in sets.items()}

    for measure in ("ndcg@10", "qwk", "nll", "rps"):
        curve = alpha_curve(logits_at, sets, gains, choose_by=measure)
        assert abs(curve.chosen - 0.6) < 0.15
        assert len(curve.values["OOD dev"][measure]) == 11
        json.dumps(curve.to_dict())
    assert alpha_curve(lambda _: noise, sets, gains).chosen == 0
    with pytest.raises(InputError, match="chosen by one of"):
        alpha_curve(logits_at, sets, gains, choose_by="recall")
    with pytest.raises(InputError, match="within 0 and 1"):
        alpha_curve(logits_at, sets, gains, alphas=[0.5, 1.5])


def fully_tuned(tiny_model: Path, folder: Path, rank: int) -> Checkpoint:
    """A checkpoint whose linear weights differ from its base's by matrices of rank `rank`."""
    base = folder / "base"
    base.mkdir()
    for path in [*(tiny_model / "model").iterdir(), tiny_model / "tokenizer.json"]:
        (base / path.name).write_bytes(path.read_bytes())
    start = Checkpoint.from_base(base, Checkpoint.load(tiny_model).scale)
    model = load_grade_model(start, Trainable("all", layers=1))
    generator = torch.Generator().manual_seed(0)
    state = model.trainable_state()
    for name in [name for name in state if name.startswith("lm.")]:
        out, inside = state[name].shape
        b, a = (torch.randn(shape, generator=generator) for shape in ((out, rank), (rank, inside)))
        state[name] += 0.1 * b @ a
    model.load_trainable(state)
    return save_trained(model, start, folder / "full")


def test_a_full_fine_tune_as_an_adapter(tiny_model: Path, tmp_path: Path) -> None:
    full = fully_tuned(tiny_model, tmp_path, rank=3)
    small, cut = as_adapter(full, tmp_path / "adapter", rank=3)
    assert cut.kept == pytest.approx(1, abs=1e-5)
    assert small.model_folder is None
    assert all("layers.1." in module for module in cut.factors)
    before, after = (
        Reranker.from_pretrained(c.folder, engine="torch", device="cpu", precision="float32").score_pairs(PAIRS)
        for c in (full, small)
    )
    assert np.abs(before.logits - after.logits).max() < 5e-3
    _, coarse = as_adapter(full, tmp_path / "coarse", rank=1)
    assert 0.3 < coarse.kept < 0.95
    # The best of its rank: what is left is exactly the smaller singular values.
    base, tuned = load_causal_lm(full.base, torch.float32), load_body(full, torch.float32)
    name = "model.layers.1.mlp.up_proj"
    delta = tuned.layers[1].mlp.up_proj.weight.detach() - base.model.layers[1].mlp.up_proj.weight.detach()
    a, b = coarse.factors[name]
    assert float((delta - b @ a).norm()) == pytest.approx(float(torch.linalg.svdvals(delta)[1:].norm()), rel=1e-3)


def test_the_mean_of_adapters_is_that_of_their_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {"thin": (6, 2), "wide": (6, 9)}

    def adapter(rank: int) -> LowRank:
        return LowRank(
            {
                name: (torch.randn(rank, inside, generator=generator), torch.randn(outside, rank, generator=generator))
                for name, (outside, inside) in shapes.items()
            },
            rank, 1.0, (),
        )  # fmt: skip

    first, second = adapter(3), adapter(2)
    cut = mean_adapter([first, second])
    for name in shapes:
        wanted = sum(b @ a for a, b in (first.factors[name], second.factors[name])) / 2
        a, b = cut.factors[name]
        assert (a.shape[0], b.shape[1]) == (3, 3)
        # Two numbers wide, the mean has no more than rank 2; the other has 5 and is cut to the nearest of rank 3.
        u, s, v = torch.linalg.svd(wanted, full_matrices=False)
        torch.testing.assert_close(b @ a, (u[:, :3] * s[:3]) @ v[:3], atol=1e-5, rtol=1e-4)
    assert 0.5 < cut.kept < 1
    assert mean_adapter([first]).kept == pytest.approx(1)
    # What one of them lacks is the base model's there: half of the other's difference is left.
    a, b = mean_adapter([first, LowRank({"thin": first.factors["thin"]}, 3, 1.0, ())]).factors["wide"]
    torch.testing.assert_close(b @ a, first.factors["wide"][1] @ first.factors["wide"][0] / 2, atol=1e-5, rtol=1e-4)
    with pytest.raises(InputError, match="at least one adapter"):
        mean_adapter([])


def test_the_largest_rank_that_fits(tiny_model: Path, tmp_path: Path) -> None:
    full = fully_tuned(tiny_model, tmp_path, rank=2)
    base = load_causal_lm(full.base, torch.float32)
    limit = 15_000
    rank = largest_rank(base, 1, limit)
    saved, _ = as_adapter(full, tmp_path / "small", max_mib=limit / 2**20)
    assert saved.adapter_folder is not None
    path = saved.adapter_folder / "adapter_model.safetensors"
    assert path.stat().st_size <= limit
    with safe_open(path, "pt") as tensors:
        assert {min(tensors.get_tensor(key).shape) for key in tensors.keys()} == {rank}  # noqa: SIM118
    with pytest.raises(InputError, match="rank 1 takes"):
        largest_rank(base, 1, 100)
    with pytest.raises(InputError, match="at least 1"):
        low_rank_difference(base, base, 0)


def test_an_adapter_in_8_bits(tiny_model: Path, tmp_path: Path) -> None:
    full = fully_tuned(tiny_model, tmp_path, rank=3)
    fine, cut = as_adapter(full, tmp_path / "adapter", rank=4)
    even, c = balanced(cut.factors, LARGEST_FLOAT8)
    for name, (a, b) in cut.factors.items():
        torch.testing.assert_close(even[name][1] @ even[name][0] / c, b @ a, rtol=1e-4, atol=1e-6)
        assert max(float(factor.abs().max()) for factor in even[name]) <= LARGEST_FLOAT8 * 1.0001
    save_as_adapter(read_adapter(fine.adapter_folder), tmp_path / "eight", base_name="b", dtype=torch.float8_e4m3fn)  # type: ignore[arg-type]
    eight = fine.save(tmp_path / "coarse", adapter=tmp_path / "eight")
    sizes = [(c.adapter_folder / "adapter_model.safetensors").stat().st_size for c in (fine, eight)]  # type: ignore[operator]
    assert sizes[1] < 0.75 * sizes[0]
    # PEFT itself reads it; three bits of mantissa in two factors are about 4 % of the difference.
    for name, (a, b) in read_adapter(eight.adapter_folder).factors.items():  # type: ignore[arg-type]
        exact = cut.factors[name][1] @ cut.factors[name][0]
        assert float((b @ a - exact).norm()) < 0.06 * float(exact.norm())
    plain, whole = load_causal_lm(full.base, torch.float32), load_body(full, torch.float32)
    found = load_body(eight, torch.float32)
    name = "layers.1.mlp.up_proj.weight"
    delta = whole.state_dict()[name] - plain.model.state_dict()[name]
    assert float((found.state_dict()[name] - whole.state_dict()[name]).norm()) < 0.06 * float(delta.norm())


def test_training_on_an_adapter_moves_it_however_it_was_stored(tiny_model: Path, tmp_path: Path) -> None:
    full = fully_tuned(tiny_model, tmp_path, rank=3)
    fine, cut = as_adapter(full, tmp_path / "adapter", rank=3)
    save_as_adapter(cut, tmp_path / "eight", base_name="b", dtype=torch.float8_e4m3fn)
    eight = fine.save(tmp_path / "coarse", adapter=tmp_path / "eight")
    model = load_grade_model(eight, Trainable("lora"))
    state = {name: value for name, value in model.trainable_state().items() if ".lora_" in name}
    module = "lm.base_model.model.model.layers.1.mlp.up_proj"
    stored = read_adapter(eight.adapter_folder).factors["model.layers.1.mlp.up_proj"]  # type: ignore[arg-type]
    torch.testing.assert_close(difference(model, state, module), stored[1] @ stored[0], rtol=1e-4, atol=1e-6)
    # As stored, they are of a size of 224 and scaled by a millionth: a step of the learning rate would be nothing.
    assert max(float(value.abs().max()) for value in state.values()) < 2
    assert model.lm.get_submodule(module.removeprefix("lm.")).scaling["default"] == 1
    before = difference(model, state, module)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    encoder = eight.encoder()
    packed = pack([encoder.encode(query, [document]) for query, document in PAIRS])
    model(packed.last, **packed.inputs())[0, :, 0].sum().backward()
    optimizer.step()
    moved_by = float((difference(model, model.trainable_state(), module) - before).norm() / before.norm())
    assert moved_by > 0.01
    last = load_grade_model(eight, Trainable("lora", layers=1)).trainable_state()
    assert {name.split(".layers.")[1][0] for name in last if ".layers." in name} == {"1"}


def test_final_states_are_recovered_from_features_and_logits() -> None:
    rng = np.random.default_rng(0)
    states = rng.normal(size=(40, 16)).astype(np.float32) * rng.uniform(1, 9, (40, 1)).astype(np.float32)
    head = Head(rng.normal(size=(4, 16)).astype(np.float32), rng.normal(size=4).astype(np.float32))
    unit = states / np.linalg.norm(states, axis=1, keepdims=True)
    features = np.concatenate([rng.normal(size=(40, 32)), unit], axis=1).astype(np.float16)
    found = final_states(PairFeatures(features, states @ head.weight.T + head.bias), head)
    assert np.abs(found - states).max() < 0.02


def test_the_probe_learns_and_keeps_to_its_norm() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(8, 4))
    states = rng.normal(size=(800, 8)).astype(np.float32)
    targets = np.eye(4, dtype=np.float32)[(states @ truth).argmax(1)]
    queries = np.repeat(np.arange(80), 10)
    head = Head(rng.normal(size=(4, 8)).astype(np.float32) * 0.3, np.zeros(4, np.float32))
    held_out = (states[600:], targets[600:], queries[600:])
    for cap in (1.5, 4.0):
        outcome = fit_probe(
            head, states[:600], targets[:600], queries[:600], held_out, np.arange(4.0),
            settings=ProbeSettings(max_norm=cap, learning_rate=0.1), progress=False,
        )  # fmt: skip
        assert outcome.loss_after < 0.7 * outcome.loss_before
        assert outcome.norm <= cap + 1e-5
    with pytest.raises(InputError, match="max_norm: expected a number greater than 0, found 0"):
        ProbeSettings(max_norm=0)
