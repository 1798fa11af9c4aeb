"""The pages whose tables are made from results."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import budget_tables
import capacity_tables
import early_exit_tables
import export_tables
import first_stages_tables
import other_models_tables
import page
import performance_tables
import ray_tables
import reliability_tables
import scores_tables
import serving_tables
from bundled import tables as bundled_tables
from study import conclusions, rare_page
from study import tables as study_tables

PAGES = (
    budget_tables, capacity_tables, early_exit_tables, performance_tables, export_tables, first_stages_tables,
    other_models_tables, ray_tables, scores_tables, conclusions, reliability_tables, study_tables, rare_page,
    bundled_tables, serving_tables,
)  # fmt: skip


@pytest.mark.parametrize("script", PAGES)
def test_pages_are_up_to_date(script: Any) -> None:
    text = script.PAGE.read_text("utf-8")
    assert set(re.findall(r"<!-- table: (\w+) -->", text)) == {make.__name__ for make in script.TABLES}
    assert page.filled(text, script.TABLES) == text


def test_a_table_is_filled_and_a_missing_result_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    file = tmp_path / "page.md"
    file.write_text("a\n<!-- table: threads -->\nold\n<!-- end -->\nb\n", "utf-8")
    fill = page.command(file, performance_tables.TABLES)
    assert CliRunner().invoke(fill, ["--check"]).exit_code == 5
    assert CliRunner().invoke(fill, []).exit_code == 0
    assert file.read_text("utf-8") == "a\n<!-- table: threads -->\n\nNot measured.\n\n<!-- end -->\nb\n"
    rows = [{"engine": "torch, bfloat16", "cores": 1, "pairs_per_second": 9.87}]
    (tmp_path / "throughput.json").write_text(json.dumps({"parts": {"threads": {"rows": rows}}}), "utf-8")
    CliRunner().invoke(fill, [])
    assert "| torch, bfloat16 | 1 | 9.9 |" in file.read_text("utf-8")
    assert CliRunner().invoke(fill, ["--check"]).exit_code == 0
