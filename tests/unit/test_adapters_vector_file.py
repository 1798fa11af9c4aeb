"""The vectors that a killed indexing job leaves behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from darl_rerank.adapters.vector_file import VectorFile
from numpy.typing import NDArray

from darl_rerank.errors import InputError

CONTENT = {"encoder": "x", "documents": "abc"}
ROWS = np.random.default_rng(0).normal(size=(5000, 3)).astype(np.float32)


def read(file: VectorFile) -> NDArray[np.float32]:
    return np.concatenate(list(file))


def test_what_is_appended_is_read_back_and_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "v"
    with VectorFile(path, CONTENT) as file:
        assert len(file) == 0
        assert list(file) == []
        file.append(ROWS[:10])
        file.append(ROWS[10:11])
        assert len(file) == 11
    with VectorFile(path, CONTENT) as file:
        assert len(file) == 11
        file.append(ROWS[11:])
        assert np.array_equal(read(file), ROWS)
        file.remove()
    assert not path.exists()


@pytest.mark.parametrize("lost", [1, 11, 12, 13])
def test_a_torn_row_is_dropped(tmp_path: Path, lost: int) -> None:
    path = tmp_path / "v"
    with VectorFile(path, CONTENT) as file:
        file.append(ROWS[:4])
    path.write_bytes(path.read_bytes()[:-lost])
    with VectorFile(path, CONTENT) as file:
        kept = 3 if lost <= 12 else 2
        assert len(file) == kept
        file.append(ROWS[kept:6])
        assert np.array_equal(read(file), ROWS[:6])


@pytest.mark.parametrize("before", [b"", b"{", b'{"encoder": "x"}\n', b"[]\n", b"\xff\xfe\n", b'{"dimension": "?"}\n'])
def test_another_content_is_begun_anew(tmp_path: Path, before: bytes) -> None:
    path = tmp_path / "v"
    path.write_bytes(before)
    with VectorFile(path, CONTENT) as file:
        assert len(file) == 0
        file.append(ROWS[:2])
    with VectorFile(path, {**CONTENT, "documents": "other"}) as file:
        assert len(file) == 0
        file.append(ROWS[2:3])
        assert np.array_equal(read(file), ROWS[2:3])


def test_two_writers_and_two_dimensions_are_refused(tmp_path: Path) -> None:
    with VectorFile(tmp_path / "v", CONTENT) as file:
        file.append(ROWS[:2])
        with pytest.raises(InputError, match="another process is making this index"):
            VectorFile(tmp_path / "v", CONTENT)
        with pytest.raises(InputError, match="2 dimensions after 3"):
            file.append(ROWS[:2, :2])
