"""What the benchmarks of speed count and show: tokens, parts of a result that stand side by side, tables of a page."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import gpu  # noqa: E402
import throughput  # noqa: E402
from speed import contenders  # noqa: E402
from speed.ceiling import higher, linear_parameters, linear_shapes  # noqa: E402
from speed.pairs import grouped, read_pairs  # noqa: E402

from darl_rerank import Checkpoint, Reranker  # noqa: E402
from darl_rerank.errors import InputError  # noqa: E402

PAIRS = [("laptop", "a notebook"), ("laptop", "a garden hose " * 5), ("hose", "a hose")]


def test_a_part_replaces_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "RESULTS", tmp_path)
    parts = {"rows": {"rows": 1}, "latency": {"rows": 2}}
    (tmp_path / "throughput.json").write_text(json.dumps({"parts": parts}), "utf-8")
    found = throughput.merged("throughput", "latency", {"rows": 3})
    assert found["rows"] == {"rows": 1}
    assert found["latency"]["rows"] == 3
    assert "machine" in found["latency"]["provenance"]


def test_tokens_are_counted_with_and_without_a_shared_prefix(tiny_model: Path) -> None:
    checkpoint = Checkpoint.load(tiny_model)
    encoder = checkpoint.encoder()
    pairs = [("laptop", "x " * n) for n in range(1, 9)] + [("hose", "a hose")]
    groups = [encoder.encode(query, documents) for query, documents in grouped(pairs)]
    whole = [len(g.prefix) + len(s) for g in groups for s in g.suffixes]
    found = throughput.tokens_of(checkpoint, pairs)
    assert found["whole"] == sum(whole) / len(pairs)
    assert found["run"] == (sum(whole) - 7 * len(groups[0].prefix)) / len(pairs)
    assert found["run_padded"] > found["run"]


def test_operations_count_the_linear_layers_of_all_layers(tiny_model: Path) -> None:
    hidden, inner, head, key_heads, heads, layers = 32, 64, 8, 2, 4, 2
    attention = hidden * head * (2 * heads + 2 * key_heads)
    checkpoint = Checkpoint.load(tiny_model)
    assert linear_parameters(checkpoint) == layers * (attention + 3 * hidden * inner)
    assert set(linear_shapes(checkpoint)) == {(32, 32), (32, 16), (32, 64), (64, 32)}
    assert higher({"a": {"x": 1.0, "best": 2.0}}, {"a": {"x": 3.0, "best": 1.0}}) == {"a": {"x": 3.0, "best": 2.0}}


def test_other_libraries_compute_the_same_logits(tiny_model: Path, tmp_path: Path) -> None:
    """Otherwise their speed would be that of other work."""
    checkpoint = Checkpoint.load(tiny_model)
    folder = contenders.write_classifier(checkpoint, tmp_path / "classifier")
    ours = contenders.of_torch(checkpoint, "float32").load()(PAIRS)
    for contender in (
        contenders.of_transformers(folder, checkpoint, "float32"),
        contenders.of_cross_encoder(folder, checkpoint, "float32"),
    ):
        np.testing.assert_allclose(contender.load()(PAIRS), ours, atol=1e-4)
    reranker = Reranker.from_pretrained(tiny_model, engine="torch", device="cpu", precision="float32")
    np.testing.assert_allclose(reranker.score_pairs(PAIRS).logits, ours, atol=1e-5)


def test_a_contender_that_cant_be_loaded_says_why() -> None:
    def broken() -> Any:
        raise ImportError("no such backend\nsecond line")

    ((_, reason),) = contenders.loaded([contenders.Contender("x", "float32", False, broken)])
    assert reason == "ImportError: no such backend"


def test_pairs_of_the_catalogue_are_found_by_their_words() -> None:
    pairs = read_pairs(None, 30, 20)
    assert len(pairs) == 30
    assert [len(documents) for _, documents in grouped(pairs)] == [20, 10]
    for query, document in pairs[:3]:
        assert set(query.lower().split()) & set(document.lower().split())


def test_a_collection_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a run in runs/\*\.trec"):
        read_pairs(tmp_path, 10, 10)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("nothing should be written")

    monkeypatch.setattr(gpu, "write_result", never)
    done = CliRunner().invoke(gpu.main, [])
    assert done.exit_code == 0
    assert "not measured" in done.output


def test_the_gpu_script_saves_each_row_and_stops_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU and a tiny model: one contender runs, one fails, one comes when the time is over."""
    written: list[tuple[int, int]] = []
    saved: dict[str, Any] = {}

    def write(name: str, values: dict[str, Any]) -> Path:
        written.append((len(values["rows"]), len(values["skipped"])))
        saved.update(values)
        return tmp_path / f"{name}.json"

    def three(checkpoint: Checkpoint, device: str, cache: Path) -> Any:
        def broken(pairs: Any) -> Any:
            raise RuntimeError("no kernel")

        yield contenders.of_torch(checkpoint, "float32", device)
        yield contenders.Contender("broken", "float32", False, lambda: broken)
        monkeypatch.setattr(gpu.Clock, "left", lambda clock: 0.0)
        yield contenders.Contender("late", "float32", False, lambda: broken)

    monkeypatch.setattr(gpu, "write_result", write)
    monkeypatch.setattr(gpu, "contenders", three)
    done = CliRunner().invoke(gpu.main, ["--device", "cpu", "--sizes", "tiny", "--tokens", "64", "--repeats", "1"])
    assert done.exit_code == 0, done.output
    assert written == [(1, 0), (1, 1), (1, 2), (1, 2)]
    assert saved["rows"][0]["pairs_per_second"] > 0
    assert [skipped["reason"] for skipped in saved["skipped"]] == ["RuntimeError: no kernel", "no time left"]


@pytest.mark.parametrize("tokens", [60, 200])
def test_pairs_of_a_length_have_it(tiny_model: Path, tokens: int) -> None:
    encoder = Checkpoint.load(tiny_model).encoder()
    made = gpu.of_length([(q, "garden hose laptop printer " * 50) for q, _ in PAIRS], encoder, tokens, 5)
    lengths = [len(g.prefix) + len(g.suffixes[0]) for g in (encoder.encode(q, [d]) for q, d in made)]
    assert all(0.9 * tokens <= length <= 1.05 * tokens for length in lengths)
