"""An exported folder opens with Optimum, in the environment of its own that `make test` sets up (.venv/optimum)."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from darl_rerank.export.folder import export

from darl_rerank import Checkpoint
from darl_rerank.engines.batching import MicroBatch
from darl_rerank.engines.onnx_engine import OnnxEngine

ENVIRONMENT = Path(__file__).resolve().parents[2] / ".venv"
PYTHON = ENVIRONMENT / "optimum" / "bin" / "python"
OPTIMUM = """
import json, sys, torch
from optimum.onnxruntime import ORTModelForSequenceClassification
model = ORTModelForSequenceClassification.from_pretrained(sys.argv[1])
ids = torch.tensor(json.loads(sys.argv[2]))
print(json.dumps(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.tolist()))
"""


def test_optimum_gives_the_same_logits(tiny_model: Path, tmp_path: Path) -> None:
    if not (ENVIRONMENT / "optimum.installed").is_file():  # made last: without it the environment may be half done
        pytest.skip("Optimum's own environment is not there: make .venv/optimum.installed")
    export(Checkpoint.load(tiny_model), tmp_path / "exported")
    sequences = (tuple(range(5, 25)), tuple(range(40, 60)))
    command = [str(PYTHON), "-c", OPTIMUM, str(tmp_path / "exported"), json.dumps(sequences)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    engine = OnnxEngine(Checkpoint.load(tmp_path / "exported"), device="cpu")
    expected = engine.grade(MicroBatch((), sequences, (0, 1)), None, features=False).logits
    np.testing.assert_allclose(np.array(json.loads(result.stdout.splitlines()[-1])), expected, atol=1e-5)
