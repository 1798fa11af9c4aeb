"""int8 exports of the tiny checkpoint: what each token's product depends on, which products are taken finer."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from darl_rerank.export import folder as export_folder
from darl_rerank.export.agreement import Agreement
from darl_rerank.export.graph import GradeGraph
from darl_rerank.export.inputs import torch_grades
from darl_rerank.export.precision import convert
from darl_rerank.export.samples import bundled_sample, calibration_sample, halves
from darl_rerank.export.sensitivity import sensitive

from darl_rerank import Checkpoint, Reranker
from darl_rerank.model.checkpoint import GRAPH
from darl_rerank.trec.graded_pairs import GradedPair

TEXTS = [
    ("laptop", document)
    for document in ("Dell XPS 13 notebook", "Garden hose", "Mouse", "A notebook with a long text " * 9)
]


@pytest.mark.parametrize("left", [1.0, 0.0])  # of the error: no product takes the finer way, all of them
def test_int8_does_not_depend_on_the_batch(
    left: float, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_folder, "LEFT", (left,))
    monkeypatch.setitem(export_folder.BOUNDS, "int8", {"grade_agreement": 0.9})  # random weights round badly
    parity = export_folder.export(Checkpoint.load(tiny_model), tmp_path / "int8", precision="int8")
    assert parity.largest_difference > 1e-5  # something was quantised
    kinds = Counter(n.op_type for n in onnx.load(str(tmp_path / "int8" / GRAPH), load_external_data=False).graph.node)
    assert kinds["MatMulIntegerToFloat"] == (14 if left else 28)
    reranker = Reranker.from_pretrained(tmp_path / "int8")
    together = reranker.score_pairs(TEXTS)
    alone = [reranker.score_pairs([pair]).logits[0] for pair in TEXTS]
    np.testing.assert_allclose(together.logits, alone, atol=1e-5)


@pytest.mark.parametrize(
    ("refused", "finer", "exact"),
    [(0, [0], False), (1, range(1, 7), False), (len(export_folder.LEFT) - 1, [14], False), (1, [14], True)],
)
def test_int8_takes_more_products_finer_where_the_gate_asks_for_it(
    refused: int, finer: Collection[int], exact: bool, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gate refuses the first attempts, then judges: random weights are not reliably better in blocks."""
    if exact:
        monkeypatch.setattr(export_folder, "LEFT", (0.0,))
    faults, judge = [["too coarse"]] * refused, export_folder.violations
    monkeypatch.setitem(export_folder.BOUNDS, "int8", {"largest_difference": 0.1})
    monkeypatch.setattr(export_folder, "violations", lambda *found: faults.pop() if faults else judge(*found))
    parity = export_folder.export(Checkpoint.load(tiny_model), tmp_path / "int8", precision="int8")
    assert not faults
    assert parity.largest_difference <= 0.1
    made = Checkpoint.load(tmp_path / "int8").export
    assert made is not None
    assert len(made.finer_products) in finer
    assert made.float_activations == exact
    graph = onnx.load(str(tmp_path / "int8" / GRAPH), load_external_data=False).graph
    levels = {a.i for node in graph.node if node.op_type == "MatMulNBits" for a in node.attribute if "level" in a.name}
    assert levels == ({1} if exact else set())
    rests = [node for node in graph.node if node.op_type == "MatMulIntegerToFloat" and node.name.endswith(".rest")]
    assert len(rests) == (0 if exact else len(made.finer_products))


def test_products_that_were_found_before_come_first_and_the_search_after(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {"int8": ("layers.1.mlp.down_proj", "layers.99.mlp.down_proj")}
    checkpoint = Checkpoint.load(tiny_model).replace(finer_products=known).save(tmp_path / "checkpoint")
    attempts: list[tuple[str, ...]] = []

    def noted(model: Any, precision: str, finer: tuple[str, ...], *others: Any, **settings: Any) -> None:
        attempts.append(finer)
        convert(model, precision, finer, *others, **settings)

    monkeypatch.setattr(export_folder, "convert", noted)
    # Also of the gate's other bounds, asked before more pairs are counted.
    monkeypatch.setattr(export_folder, "violations", lambda *_: ["too coarse"] if len(attempts) == 1 else [])
    monkeypatch.setattr(Agreement, "settled", lambda *_: False)
    monkeypatch.setattr(export_folder, "further_samples", lambda: iter([own_sample(1), own_sample(2)]))
    parity = export_folder.export(checkpoint, tmp_path / "int8", precision="int8")
    assert attempts == [("layers.1.mlp.down_proj",), ()]
    assert parity.graded_pairs == 64 + 3 + 6
    measures = json.loads((tmp_path / "int8" / "parity.json").read_text())["measures"]
    low, high = measures["grade_agreement_interval"]
    assert low < measures["grade_agreement"] < high or high == 1


def test_the_traced_module_grades_as_torch(tiny_model: Path) -> None:
    reranker = Reranker.from_pretrained(tiny_model, device="cpu", precision="float32")
    sample = bundled_sample()[:24]
    graph = GradeGraph(reranker.checkpoint, "fused", rotated=True).eval()
    exact = reranker.score_pairs([(pair.query, pair.document) for pair in sample])
    assert len(set(exact.grade)) > 1
    np.testing.assert_array_equal(torch_grades(graph, reranker.checkpoint, sample), exact.grade)


def test_a_sample_of_ones_own_is_not_measured_on_what_was_fitted(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[GradedPair] = []

    def noted(checkpoint: Checkpoint, pairs: Sequence[GradedPair]) -> list[dict[str, Any]]:
        fitted.extend(pairs)
        return inputs(checkpoint, pairs)

    inputs = export_folder._calibration
    monkeypatch.setattr(export_folder, "_calibration", noted)
    monkeypatch.setitem(export_folder.BOUNDS, "int8", {})
    parity = export_folder.export(Checkpoint.load(tiny_model), tmp_path / "out", precision="int8", sample=own_sample(3))
    assert parity.pairs == 6
    assert {pair.qid for pair in fitted} == {"1"}


def test_a_single_query_is_measured() -> None:
    sample = own_sample(1)
    assert halves(sample) == (calibration_sample(), sample)


def own_sample(queries: int) -> list[GradedPair]:
    """Three documents a query."""
    return [GradedPair(f"query {i // 3}", f"document {i}", i % 4, None, str(i // 3)) for i in range(3 * queries)]


def test_the_most_sensitive_products_come_first() -> None:
    moved = {"a": 1.0, "b": 3.0, "c": 2.0, "d": 0.0}  # squares 1, 9, 4, 0
    assert sensitive(moved, 1.0) == []
    assert sensitive(moved, 5 / 14) == ["b"]
    assert sensitive(moved, 0.35) == ["b", "c"]
    assert sensitive(moved, 0.0) == ["a", "b", "c", "d"]
    assert sensitive(moved, 5 / 14, {"a": 1, "b": 9, "c": 3, "d": 1}) == ["a", "b", "c"]  # per number 1, 1, 4/3, 0
    assert sensitive({**moved, "unknown": np.inf}, 5 / 14) == ["b", "unknown"]
