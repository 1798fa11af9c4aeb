"""When an int8 export stands in for a checkpoint: which CPU, which model, what the caller asked for, and failures."""

from __future__ import annotations

import logging
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from darl_rerank import Checkpoint, Reranker
from darl_rerank.engines import fast_export as module
from darl_rerank.engines.fast_export import fast_export, int8_is_faster
from darl_rerank.errors import InputError
from darl_rerank.model.checkpoint import GRAPH, PREFIX_GRAPH

VNNI = frozenset({"avx2", "avx512_vnni"})


@pytest.fixture
def checkpoint(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    """The tiny checkpoint on a CPU with VNNI, without bfloat16 and without a GPU, as if it were large enough."""
    monkeypatch.setenv("DARL_RERANK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "cpu_flags", lambda: VNNI)
    monkeypatch.setattr(module, "cpu_has_bfloat16", lambda: False)
    monkeypatch.setattr(module, "_gpu", lambda: False)
    monkeypatch.setattr(module, "_SMALLEST", 1)
    return Checkpoint.load(tiny_model)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The command of each export, which writes a folder that looks like one."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> Any:
        commands.append(command)
        source, target = map(Path, command[4:6])
        shutil.copytree(source, target)
        for name in (GRAPH, PREFIX_GRAPH):
            (target / name).write_bytes(b"")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(module.subprocess, "run", run)
    return commands


def test_it_is_made_once(checkpoint: Checkpoint, made: list[list[str]], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = [fast_export(checkpoint, device=None, precision=None) for _ in range(2)]
    assert [one is not None and one.exported for one in found] == [True, True]
    assert len(made) == 1
    assert made[0][3:5] == ["export", str(checkpoint.folder)]
    assert made[0][-2:] == ["--precision", "int8"]
    assert len(caplog.messages) == 1
    assert "making an int8 export" in caplog.text


@pytest.mark.parametrize(
    ("device", "precision", "expected"),
    [(None, None, True), ("cpu", "int8", True), ("cuda", None, False), ("cpu", "fp32", False)],
)
def test_what_the_caller_asks_for_counts(
    checkpoint: Checkpoint, made: list[list[str]], device: str | None, precision: str | None, expected: bool
) -> None:
    assert (fast_export(checkpoint, device=device, precision=precision) is not None) is expected


@pytest.mark.parametrize(("precision", "expected"), [(None, False), ("int8", True), ("bf16", False)])
def test_with_bfloat16_it_has_to_be_asked_for(
    checkpoint: Checkpoint,
    made: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    precision: str | None,
    expected: bool,
) -> None:
    monkeypatch.setattr(module, "cpu_has_bfloat16", lambda: True)
    monkeypatch.setattr(module, "_SMALLEST", 256)
    assert (fast_export(checkpoint, device=None, precision=precision) is not None) is expected


@pytest.mark.parametrize(
    ("flags", "bfloat16", "expected"), [(VNNI, False, True), (VNNI, True, False), (frozenset({"avx2"}), False, False)]
)
def test_which_cpus(monkeypatch: pytest.MonkeyPatch, flags: frozenset[str], bfloat16: bool, expected: bool) -> None:
    monkeypatch.setattr(module, "cpu_flags", lambda: flags)
    monkeypatch.setattr(module, "cpu_has_bfloat16", lambda: bfloat16)
    assert int8_is_faster() is expected


def test_neither_small_models_nor_gpus(
    checkpoint: Checkpoint, made: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_gpu", lambda: True)
    assert fast_export(checkpoint, device=None, precision=None) is None
    monkeypatch.setattr(module, "_gpu", lambda: False)
    monkeypatch.setattr(module, "_SMALLEST", 256)
    assert fast_export(checkpoint, device=None, precision=None) is None
    assert made == []


@pytest.mark.parametrize(("code", "times", "reason"), [(5, 1, "it did not grade as torch does"), (1, 2, "exit code 1")])
def test_a_gate_that_refuses_is_remembered(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int, times: int,
    reason: str,
) -> None:  # fmt: skip
    """Another failure, a full disk for instance, is not."""
    tried: list[list[str]] = []

    def run(command: list[str], **_: Any) -> Any:
        tried.append(command)
        return subprocess.CompletedProcess(command, code)

    monkeypatch.setattr(module.subprocess, "run", run)
    with caplog.at_level(logging.WARNING):
        assert fast_export(checkpoint, device=None, precision=None) is None
        assert fast_export(checkpoint, device=None, precision=None) is None
    assert len(tried) == times
    assert caplog.messages[-1] == f"there is no int8 export, so torch is used: {reason}"


def test_a_damaged_one_is_said_and_left(
    checkpoint: Checkpoint, made: list[list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    found = fast_export(checkpoint, device=None, precision=None)
    assert found is not None
    assert found.folder is not None
    (found.folder / "tokenizer.json").write_text("{}", "utf-8")
    assert fast_export(checkpoint, device=None, precision=None) is None
    assert "in the cache is not used" in caplog.text


def test_one_word_asks_for_torch(
    checkpoint: Checkpoint, made: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert checkpoint.folder is not None
    reranker = Reranker.from_pretrained(checkpoint.folder, engine="torch", device="cpu")
    assert made == []
    assert "engine='torch'" in repr(reranker)
    # And without it the export is what runs: here it is empty, and onnxruntime says so.
    with pytest.raises(InputError, match="the graph can't be loaded"):
        Reranker.from_pretrained(checkpoint.folder)
    assert len(made) == 1


def test_a_real_one_grades_as_torch_and_says_what_runs(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from darl_rerank.export.folder import export

    def run(command: list[str], **_: Any) -> Any:
        export(checkpoint, command[5], precision="float32", progress=False)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(module.subprocess, "run", run)
    assert checkpoint.folder is not None
    reranker = Reranker.from_pretrained(checkpoint.folder)
    assert "engine='onnx', device='cpu', precision='float32'" in repr(reranker)
    torch = Reranker.from_pretrained(checkpoint.folder, engine="torch", device="cpu", precision="float32")
    pairs = [("laptop", "a notebook"), ("laptop", "a hose")]
    np.testing.assert_allclose(reranker.score_pairs(pairs).logits, torch.score_pairs(pairs).logits, atol=1e-4)
