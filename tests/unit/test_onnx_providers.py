"""Devices of the ONNX engine, without a GPU: what is chosen, what a failure says, how many threads."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from onnx import TensorProto, helper

from darl_rerank.engines import providers
from darl_rerank.errors import InputError

BOTH = ["CUDAExecutionProvider", "CPUExecutionProvider"]


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(providers._SMALLEST_GRAPH)
    return path


@pytest.fixture
def gpu_build(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """onnxruntime as onnxruntime-gpu is: CUDA is among its providers. Returns the providers of each session opened."""
    opened: list[list[str]] = []
    real = onnxruntime.InferenceSession

    def session(model: Any, options: Any, *, providers: list[Any], **_: Any) -> Any:
        names = [p[0] if isinstance(p, tuple) else p for p in providers]
        opened.append(names)
        found = real(model, options, providers=["CPUExecutionProvider"])
        monkeypatch.setattr(found, "get_providers", lambda: names)
        return found

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: BOTH)
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    providers.cuda_fault.cache_clear()
    return opened


@pytest.fixture(autouse=True)
def forget() -> Any:
    yield
    providers.cuda_fault.cache_clear()


def test_the_smallest_graph_is_what_onnx_makes() -> None:
    names = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy"]
    made = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", names[:1], names[1:])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert model.SerializeToString() == providers._SMALLEST_GRAPH


def test_cuda_is_taken_where_it_starts(graph: Path, gpu_build: list[list[str]]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, device = providers.open_session(graph, None, "float16")
    assert device == "cuda"
    assert gpu_build[-1] == BOTH


def test_int8_runs_on_the_cpu_unless_told_otherwise(graph: Path, gpu_build: list[list[str]]) -> None:
    """Its products have no CUDA kernel."""
    assert providers.open_session(graph, None, "int8")[1] == "cpu"
    assert gpu_build == [["CPUExecutionProvider"]]
    assert providers.open_session(graph, "cuda:0", "int8")[1] == "cuda:0"


@pytest.mark.parametrize("raises", [True, False])
def test_without_cuda_libraries_the_cpu_is_used_and_a_warning_says_why(
    graph: Path, gpu_build: list[list[str]], monkeypatch: pytest.MonkeyPatch, raises: bool
) -> None:
    """onnxruntime raises, or logs and opens a session without the provider: both have been seen."""
    working = onnxruntime.InferenceSession

    def session(model: Any, options: Any, *, providers: list[Any], **more: Any) -> Any:
        if providers == ["CPUExecutionProvider"]:
            return working(model, options, providers=providers, **more)
        if raises:
            raise RuntimeError("libcublasLt.so.13: cannot open shared object file")
        return working(model, options, providers=["CPUExecutionProvider"], **more)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    with pytest.warns(RuntimeWarning, match="the CPU is used: .*(libcublasLt|can't be loaded).*doctor"):
        assert providers.open_session(graph, None, "float32")[1] == "cpu"
    with pytest.raises(InputError, match="'cuda' could not be started"):
        providers.open_session(graph, "cuda", "float32")


def test_libraries_in_wheels_are_loaded_first(
    gpu_build: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called: list[int] = []

    def preload() -> None:
        assert not gpu_build
        called.append(1)
        sys.stdout.write("Failed to load libcudnn.so.9")

    monkeypatch.setattr(onnxruntime, "preload_dlls", preload)
    assert providers.cuda_fault() is None
    assert called == [1]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("device", ["tensorrt", "cuda:", "cuda:x", "cpu:1", "gpu", ""])
def test_devices_that_are_none(device: str) -> None:
    with pytest.raises(InputError, match="expected cpu, cuda, cuda:1"):
        providers.require_provider(device)


def test_a_build_without_cuda_says_so() -> None:
    with pytest.raises(InputError, match=r"'cuda:1' is not there.*CPUExecutionProvider"):
        providers.require_provider("cuda:1")


@pytest.mark.parametrize(
    ("given", "expected"), [("1", 1), ("1,4", 1), ("999", None), ("", None), ("0", None), ("many", None)]
)
def test_threads_follow_omp_num_threads(monkeypatch: pytest.MonkeyPatch, given: str, expected: int | None) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert providers.thread_count() == (expected or cores)


def test_a_session_gets_that_many_threads(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    session, _ = providers.open_session(graph, "cpu", "float32")
    assert session.get_session_options().intra_op_num_threads == 1


def test_the_doctor_says_that_cuda_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    from darl_rerank.cli import doctor

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: BOTH)
    monkeypatch.setattr(doctor.shutil, "which", lambda _: "nvidia-smi")
    monkeypatch.setattr(providers, "cuda_fault", lambda: "libcublasLt.so.13: cannot open shared object file")
    finding = doctor._onnxruntime()
    assert finding.state == "problem"
    assert "CUDA does not start: libcublasLt" in finding.found
    assert "darl-rerank[gpu]" in finding.advice
