"""What the README says that its example prints, the checkpoint that ships prints."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[2] / "README.md"


def test_the_first_example_prints_what_the_readme_says(tmp_path: Path) -> None:
    text = README.read_text("utf-8")
    found = re.search(r"```python\n(.*?)```\n\nprints\n\n```text\n(.*?)```", text, re.DOTALL)
    assert found is not None
    result = subprocess.run(
        [sys.executable, "-c", found[1]], cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    printed, said = (lines.splitlines() for lines in (result.stdout, found[2]))
    assert len(printed) == len(said) > 1
    for one, other in zip(printed, said, strict=True):
        score, grade, probability, document = one.split("  ")
        said_score, said_grade, said_probability, said_document = other.split("  ")
        assert (grade, document) == (said_grade, said_document)
        # The README's are from products in bfloat16; a machine without them computes in float32.
        assert float(score) == pytest.approx(float(said_score), abs=0.05)
        assert float(probability) == pytest.approx(float(said_probability), abs=0.03)
