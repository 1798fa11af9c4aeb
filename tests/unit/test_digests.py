"""Digests of large files are read once, and again when the file has changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from darl_rerank.model import digests
from darl_rerank.model.digests import file_sha256, noted_sha256


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are read, with a cache of the test's own in which every file counts as large."""
    files: list[Path] = []

    def counted(path: Path) -> str:
        files.append(path)
        return file_sha256(path)

    monkeypatch.setenv("DARL_RERANK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "_LARGE", 0)
    monkeypatch.setattr(digests, "file_sha256", counted)
    return files


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    return path


def test_a_file_is_read_once(file: Path, read: list[Path]) -> None:
    assert noted_sha256(file) == noted_sha256(file) == file_sha256(file)
    assert read == [file]


@pytest.mark.parametrize("change", ["content", "touched", "replaced"])
def test_a_changed_file_is_read_again(file: Path, read: list[Path], change: str) -> None:
    before = noted_sha256(file)
    times = file.stat()
    if change == "content":  # of the same length
        file.write_bytes(b"two")
    elif change == "touched":
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    else:
        other = file.with_name("other")
        other.write_bytes(b"two")
        os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
        other.replace(file)
    assert (noted_sha256(file) != before) is (change != "touched")
    assert read == [file, file]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"seal": 1}'])
def test_a_damaged_note_is_made_again(file: Path, read: list[Path], tmp_path: Path, content: str) -> None:
    noted_sha256(file)
    (note,) = (tmp_path / "cache" / "digests").iterdir()
    note.write_text(content, "utf-8")
    assert noted_sha256(file) == file_sha256(file)
    assert noted_sha256(file) == file_sha256(file)
    assert read == [file, file]


def test_a_cache_that_cant_be_written_is_no_fault(file: Path, read: list[Path], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file", "utf-8")
    assert noted_sha256(file) == noted_sha256(file) == file_sha256(file)
    assert read == [file, file]


def test_small_files_leave_no_notes(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARL_RERANK_CACHE", str(tmp_path / "cache"))
    noted_sha256(file)
    assert not (tmp_path / "cache").exists()
