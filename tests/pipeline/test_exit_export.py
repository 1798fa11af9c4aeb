"""Early exit in exports: segments of the graph give what torch gives, the whole graph what it gives without exits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from darl_rerank.export.folder import export

from darl_rerank import Checkpoint, Reranker
from darl_rerank.engines.torch_engine import TorchEngine
from darl_rerank.engines.torch_exits import TorchExits
from darl_rerank.model.calibration import Calibration
from darl_rerank.model.checkpoint import GRAPH, PREFIX_GRAPH, SEGMENT_GRAPH
from darl_rerank.model.decisions import Cut, Promise
from darl_rerank.model.exits import ExitHead, Exits
from darl_rerank.model.head import Head
from darl_rerank.trec.graded_pairs import GradedPair

QUERY = "laptop for the house"
DOCUMENTS = [
    "a notebook computer with a battery cable", "garden hose", "the quick brown fox jumps over the lazy dog again",
    "printer toner cartridge, price", "x", "which product is the best for the price? " * 9 + "this", "north of the sea",
    "what does it do in the house while it rains", "battery", "fox, dog and hose in the garden",
]  # fmt: skip
TEXTS = [(QUERY, document) for document in DOCUMENTS]


@pytest.fixture(scope="module")
def checkpoint(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Five random layers with exits behind the first and the third, behind which only last tokens are run."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(1)
    config = LlamaConfig.from_pretrained(tiny_model / "model")
    config.num_hidden_layers = 5
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "weights")
    tiny = Checkpoint.load(tiny_model)
    rng = np.random.default_rng(0)
    norm = rng.uniform(0.5, 1.5, 32).astype(np.float32)
    heads = tuple(
        ExitHead(layer, Head(tiny.head.weight, tiny.head.bias, norm), Calibration(2.0, bias=(0.0, 0.1, -0.1, 0.0)))
        for layer in (1, 3)
    )

    def ruled(threshold: float) -> Exits:
        return Exits(heads, Cut(Promise("recall", 0.9, 2), threshold))

    saved = tiny.replace(feature_layer=2, prefill_layers=3, exits=ruled(0.5)).save(
        folder / "checkpoint", model=folder / "weights"
    )
    engine = TorchEngine(saved, device="cpu", precision="float32")
    # A threshold that no pair is near, at which some leave behind each exit and some stay.
    for threshold in np.linspace(0.05, 0.95, 91):
        found = []
        for near in (threshold - 0.003, threshold, threshold + 0.003):
            engine._exits = TorchExits(ruled(float(near)), "softmax", torch.device("cpu"))
            found.append(Reranker(saved, engine).score_pairs(TEXTS).exit_layers.tolist())  # type: ignore[union-attr]
        if found[0] == found[1] == found[2] and min(found[1].count(layer) for layer in (0, 1, 3)) >= 2:
            return saved.replace(exits=ruled(float(threshold))).save(folder / "checkpoint", overwrite=True)
    raise AssertionError("no threshold at which pairs leave behind each exit")


def torch_scores(checkpoint: Checkpoint):  # type: ignore[no-untyped-def]
    engine = TorchEngine(checkpoint, device="cpu", precision="float32")
    return Reranker(checkpoint, engine).score_pairs(TEXTS, features=True)


SAMPLE = [GradedPair(QUERY, document, i % 4, None, "q", str(i)) for i, document in enumerate(DOCUMENTS)]


@pytest.fixture(scope="module")
def exported(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "fp32"
    parity = export(checkpoint, folder, sample=SAMPLE, progress=False)
    assert parity.exit_agreement == 1
    assert parity.wrong_exits == 0
    assert parity.exit_margin is not None
    assert parity.exit_margin < 1e-3
    return folder


def test_segments_give_what_torch_gives(exported: Path, checkpoint: Checkpoint) -> None:
    reranker = Reranker.from_pretrained(exported, device="cpu")
    assert reranker.engine.name == "onnx"
    expected = torch_scores(checkpoint)
    for options in ({}, {"batch_tokens": 60}, {"share_prefix": False}):
        one = Reranker(reranker.checkpoint, reranker.engine, **options)  # type: ignore[arg-type]
        found = one.score_pairs(TEXTS, features=True)
        np.testing.assert_array_equal(found.exit_layers, expected.exit_layers)
        np.testing.assert_allclose(found.logits, expected.logits, atol=1e-3)
        np.testing.assert_allclose(found.features, expected.features, atol=1e-4)
    alone = [reranker.score_pairs([pair]) for pair in TEXTS]
    np.testing.assert_allclose([one.score[0] for one in alone], found.score, atol=1e-5)


def test_off_the_graph_is_that_of_a_checkpoint_without_exits(
    exported: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    export(checkpoint.replace(exits=None), tmp_path / "plain", sample=SAMPLE, progress=False)
    off = Reranker.from_pretrained(exported, device="cpu", exit="off").score_pairs(TEXTS, features=True)
    plain = Reranker.from_pretrained(tmp_path / "plain", device="cpu").score_pairs(TEXTS, features=True)
    np.testing.assert_array_equal(off.logits, plain.logits)
    np.testing.assert_array_equal(off.features, plain.features)
    assert off.exit_layers is None
    assert not (tmp_path / "plain" / SEGMENT_GRAPH.format(0)).exists()
    for name in (GRAPH, PREFIX_GRAPH):
        kinds = [
            [node.op_type for node in onnx.load(str(folder / name), load_external_data=False).graph.node]
            for folder in (exported, tmp_path / "plain")
        ]
        assert kinds[0] == kinds[1]


def test_no_two_segments_need_the_same_product(exported: Path) -> None:
    seen: list[str] = []
    for i in range(3):
        graph = onnx.load(str(exported / SEGMENT_GRAPH.format(i)), load_external_data=False).graph
        seen += [
            tensor.name for tensor in graph.initializer if len(tensor.dims) == 2 and tensor.name.startswith("layers.")
        ]
    assert len(seen) == len(set(seen)) == 5 * 7
    # One file of weights.
    assert len(list(exported.glob("*data*"))) == 1


def test_int8_segments(checkpoint: Checkpoint, tmp_path: Path) -> None:
    # A random model scores two of them within .006 of where a grade ends: int8 may say either.
    scores = torch_scores(checkpoint.replace(exits=None)).score
    clear = np.abs(scores[:, None] - np.array(checkpoint.grade_cuts.points)).min(1) > 0.02
    assert clear.sum() == 8
    sample = [pair for pair, is_clear in zip(SAMPLE, clear, strict=True) if is_clear]
    parity = export(checkpoint, tmp_path / "int8", precision="int8", sample=sample, progress=False)
    assert parity.exit_agreement is not None
    early, off = (Reranker.from_pretrained(tmp_path / "int8", device="cpu", exit=way) for way in ("auto", "off"))
    found, whole = early.score_pairs(TEXTS), off.score_pairs(TEXTS)
    stayed = found.exit_layers == 0
    assert 0 < stayed.sum() < len(TEXTS)
    np.testing.assert_allclose(found.logits[stayed], whole.logits[stayed], atol=1e-4)
