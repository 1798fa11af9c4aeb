"""Export of the tiny checkpoint: the graphs grade as torch does, and what is written and refused."""

from __future__ import annotations

import importlib.util
import json
import re
import resource
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from darl_rerank.export import folder as export_folder

from darl_rerank import Checkpoint, Reranker
from darl_rerank.cli import cli
from darl_rerank.engines.batching import MicroBatch
from darl_rerank.errors import CheckFailedError, DarlRerankError, InputError
from darl_rerank.model.calibration import Calibration
from darl_rerank.model.checkpoint import GRAPH, PREFIX_GRAPH
from darl_rerank.model.export_record import ExportRecord
from darl_rerank.model.novelty import fit_novelty

GRAPHS = (GRAPH, PREFIX_GRAPH)
QUERY = "laptop"
DOCUMENTS = [
    "Dell XPS 13 notebook",
    "Laptop sleeve 13 inch",
    "Garden hose",
    "Mouse",
    "A notebook with a long text " * 9,
]
TEXTS = [(QUERY, document) for document in DOCUMENTS]
# What serving needs besides the package itself; the rest of the base install is for the command line.
SERVING = ("filelock", "numpy", "onnxruntime", "platformdirs", "safetensors", "tokenizers")
SERVE = """
import importlib.util, sys
from darl_rerank import Reranker
assert importlib.util.find_spec("torch") is None and importlib.util.find_spec("click") is None
print(Reranker.from_pretrained(sys.argv[1]).rerank("laptop", ["a notebook", "a hose"])[0].score)
"""


@pytest.fixture(scope="module")
def exported(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "fp32"
    export_folder.export(Checkpoint.load(tiny_model), out)
    return out


def test_engine_is_chosen_and_grades_as_torch(exported: Path, tiny_reranker: Reranker) -> None:
    reranker = Reranker.from_pretrained(exported)
    assert reranker.engine.name == "onnx"
    expected = tiny_reranker.score_pairs(TEXTS, features=True)
    found = reranker.score_pairs(TEXTS, features=True)
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-5)
    np.testing.assert_allclose(found.features, expected.features, atol=1e-5)
    assert expected.probabilities.std(axis=0).max() > 1e-3


def test_prefix_reuse_changes_nothing(exported: Path) -> None:
    reranker = Reranker.from_pretrained(exported)
    alone = Reranker(reranker.checkpoint, reranker.engine, share_prefix=False)
    shared, whole = (r.score_pairs(TEXTS, features=True) for r in (reranker, alone))
    np.testing.assert_allclose(shared.logits, whole.logits, atol=1e-5)
    np.testing.assert_allclose(shared.features, whole.features, atol=1e-5)


def test_the_graph_with_an_empty_prefix_is_the_plain_one_bit_for_bit(exported: Path) -> None:
    """So that one session suffices, and the weights are in memory once."""
    engine = Reranker.from_pretrained(exported).engine
    rng = np.random.default_rng(0)
    sequences = tuple(tuple(int(t) for t in rng.integers(3, 90, size=n)) for n in (40, 31, 30, 7))
    found = engine.grade(MicroBatch((), sequences, (0, 1, 2, 3)), None, features=True)
    ids, mask = np.zeros((4, 40), np.int64), np.zeros((4, 40), np.int64)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)], mask[row, : len(sequence)] = sequence, 1
    plain = onnxruntime.InferenceSession(str(exported / GRAPH), providers=["CPUExecutionProvider"])
    logits, features = plain.run(None, {"input_ids": ids, "attention_mask": mask})
    assert np.array_equal(found.logits, logits)
    assert np.array_equal(found.features, features)
    assert sum(isinstance(part, onnxruntime.InferenceSession) for part in vars(engine._graph).values()) == 1


@pytest.mark.parametrize("given", ["float32", "fp32", None])
def test_a_precision_may_be_named_in_short(exported: Path, given: str | None) -> None:
    assert Reranker.from_pretrained(exported, precision=given).engine.precision == "float32"
    with pytest.raises(InputError, match="exported as float32, not fp16"):
        Reranker.from_pretrained(exported, precision="fp16")


def test_the_manifest_says_how_it_was_exported(exported: Path, tmp_path: Path) -> None:
    manifest = json.loads((exported / "checkpoint.json").read_text())
    assert manifest["export"] == {"precision": "float32", "opset": 23, "finer_products": [], "float_activations": False}
    # As version 0.1 wrote it, in its format: in the provenance, under short names.
    old = tmp_path / "old"
    shutil.copytree(exported, old)
    del manifest["export"]
    manifest["format"] = 1
    manifest["provenance"] = {"export": {"precision": "fp16", "opset": 23, "finer products": ["a"]}}
    (old / "checkpoint.json").write_text(json.dumps(manifest))
    assert Checkpoint.load(old).export == ExportRecord("float16", 23, ("a",))
    assert Reranker.from_pretrained(old).engine.precision == "float16"
    manifest["provenance"] = {"export": {"precision": "fp7"}}
    (old / "checkpoint.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="no precision 'fp7'"):
        Checkpoint.load(old)


def test_torch_refuses_an_export_whose_weights_it_would_have_to_make_up(exported: Path) -> None:
    with pytest.raises(InputError, match=r"is an export, whose weights are in its ONNX graphs alone: engine='onnx'"):
        Reranker.from_pretrained(exported, engine="torch")


def test_an_export_saved_again_keeps_its_graphs(exported: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.load(exported)
    again = checkpoint.replace(calibration=Calibration(2.0)).save(tmp_path / "new")
    pair = [(QUERY, DOCUMENTS[0])]
    old, new = (Reranker.from_pretrained(each.folder).score_pairs(pair) for each in (checkpoint, again))
    assert (new.logits == old.logits).all()
    assert (new.probabilities != old.probabilities).any()


def test_padding_on_either_side_changes_nothing(exported: Path) -> None:
    session = onnxruntime.InferenceSession(str(exported / GRAPH))
    ids = np.arange(5, 25, dtype=np.int64)
    alone = session.run(None, {"input_ids": ids[None], "attention_mask": np.ones((1, 20), np.int64)})
    padded, mask = np.full((3, 32), 7, np.int64), np.zeros((3, 32), np.int64)
    for row, start in enumerate((0, 12, 5)):
        padded[row, start : start + 20], mask[row, start : start + 20] = ids, 1
    found = session.run(None, {"input_ids": padded, "attention_mask": mask})
    for a, b in zip(alone, found, strict=True):
        np.testing.assert_allclose(b, np.repeat(a, 3, axis=0), atol=1e-5)


def test_serves_in_an_environment_without_anything_else(exported: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "bare", with_pip=False)
    packages = next((tmp_path / "bare" / "lib").glob("python*/site-packages"))
    for name in (*SERVING, "darl_rerank"):
        specification = importlib.util.find_spec(name)
        assert specification is not None
        assert specification.origin is not None
        folder = Path(specification.origin).parent
        (packages / name).symlink_to(folder)
        libraries = folder.with_name(f"{name}.libs")
        if libraries.is_dir():
            (packages / libraries.name).symlink_to(libraries)
    command = [str(tmp_path / "bare" / "bin" / "python"), "-I", "-c", SERVE, str(exported)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    expected = Reranker.from_pretrained(exported).rerank("laptop", ["a notebook", "a hose"])[0].score
    assert float(result.stdout) == pytest.approx(expected, abs=1e-6)


def test_weights_are_written_once(exported: Path) -> None:
    names = [
        tensor
        for name in GRAPHS
        for tensor in onnx.load(str(exported / name), load_external_data=False).graph.initializer
    ]
    outside = [{e.key: e.value for e in tensor.external_data} for tensor in names if tensor.external_data]
    places = [(entry["location"], entry["offset"]) for entry in outside]
    assert {location for location, _ in places} == {"model.onnx_data"}
    assert len(places) == 2 * len(set(places)) > 0
    assert json.loads((exported / "parity.json").read_text())["measures"]["largest_difference"] < 1e-4


def test_all_that_is_temporary_has_the_name_of_the_output(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the next export to the same folder removes what one that was killed left."""
    seen: list[str] = []

    def ends(*_: Any) -> None:
        seen.extend(path.name for path in tmp_path.iterdir())
        raise KeyboardInterrupt

    monkeypatch.setattr(export_folder, "load_body", ends)
    with pytest.raises(KeyboardInterrupt):
        export_folder.export(Checkpoint.load(tiny_model), tmp_path / "out")
    assert len(seen) == 4
    assert all(re.fullmatch(r"\.out\.[0-9a-f]{8}\.tmp(\.lock)?", name) for name in seen)
    assert not list(tmp_path.iterdir())


def test_half_precision(tiny_model: Path, tmp_path: Path) -> None:
    parity = export_folder.export(Checkpoint.load(tiny_model), tmp_path / "fp16", precision="fp16")
    assert 0 < parity.largest_difference < 5e-3
    assert Reranker.from_pretrained(tmp_path / "fp16").engine.precision == "float16"


@pytest.mark.parametrize("bound", [export_folder.NOVELTY_BOUND, 0.0])
def test_novelty_is_left_out_where_it_is_not_that_of_torch(
    bound: float, tiny_reranker: Reranker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [(f"query {i} {i % 3}", f"document {i % 7} {i % 5} {i}") for i in range(40)]
    features = tiny_reranker.score_pairs(pairs, features=True).features
    assert features is not None
    checkpoint = tiny_reranker.checkpoint.replace(
        novelty=fit_novelty(features[:20], features[20:], k=3), calibration=Calibration(1.5, 0.8)
    )
    monkeypatch.setattr(export_folder, "NOVELTY_BOUND", bound)
    parity = export_folder.export(checkpoint, tmp_path / "fp16", precision="fp16")
    found = Checkpoint.load(tmp_path / "fp16")
    if bound:
        assert parity.novelty_mean_difference is not None
        assert found.calibration == checkpoint.calibration
        assert found.novelty is not None
    else:
        assert parity.novelty_mean_difference is None
        assert found.calibration == Calibration(1.5 * np.exp(0.4))
        assert found.novelty is None
        assert not (tmp_path / "fp16" / "novelty.safetensors").exists()
        assert "left out" in json.loads((tmp_path / "fp16" / "parity.json").read_text())["novelty"]
        assert "Novelty left out" in (tmp_path / "fp16" / "README.md").read_text()


def test_beyond_the_bounds_names_layers_and_writes_nothing(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(export_folder.BOUNDS, "int8", {"largest_difference": 1e-7})
    with pytest.raises(CheckFailedError, match=r"expected at most 1e-07.*Layers that differ most"):
        export_folder.export(Checkpoint.load(tiny_model), tmp_path / "int8", precision="int8")
    assert list(tmp_path.iterdir()) == []


def test_bad_input(exported: Path, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="exported already"):
        export_folder.export(Checkpoint.load(exported), tmp_path / "again")
    with pytest.raises(DarlRerankError, match="already exists"):
        export_folder.export(Checkpoint.load(tiny_model), exported)
    with pytest.raises(InputError, match="unknown device 'tensorrt'"):
        Reranker.from_pretrained(exported, device="tensorrt")
    with pytest.raises(InputError, match="expected an exported checkpoint"):
        Reranker.from_pretrained(tiny_model, engine="onnx")
    assert list(tmp_path.iterdir()) == []


def test_weights_cut_short(exported: Path, tmp_path: Path) -> None:
    for file in exported.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    data = tmp_path / "model.onnx_data"
    data.write_bytes(data.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"model\.onnx_data is not the file that was saved"):
        Reranker.from_pretrained(tmp_path)


def test_command_refuses_an_existing_folder(tiny_model: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["export", str(tiny_model), str(tmp_path)])
    assert result.exit_code == 3
    assert "already exists" in result.output


@pytest.mark.parametrize("limit", [20_000, 160_000])  # bytes a file may have: too few for the first graph, the second
def test_a_disk_that_fills_up_leaves_nothing(limit: int, tiny_model: Path, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "darl_rerank.cli", "export", str(tiny_model), str(tmp_path / "out")],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 1, result.stderr
    assert "File too large" in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_corn_head_is_read_alike_by_torch_and_by_the_graph(tiny_model: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.load(tiny_model).replace(link="corn")
    export_folder.export(checkpoint, tmp_path / "corn")  # it compares the two itself
    exported = Reranker.from_pretrained(tmp_path / "corn")
    plain = Reranker.from_pretrained(tiny_model, engine="torch", device="cpu", precision="float32")
    found = exported.score_pairs(TEXTS).logits
    assert exported.checkpoint.link == "corn"
    # Log-probabilities, and not the head's own outputs.
    np.testing.assert_allclose(np.exp(found).sum(axis=1), 1, atol=1e-5)
    assert np.abs(found - plain.score_pairs(TEXTS).logits).max() > 0.05
