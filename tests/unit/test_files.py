from __future__ import annotations

import errno
from pathlib import Path

import pytest

from darl_rerank.errors import DarlRerankError, InputError
from darl_rerank.files import atomic_folder, atomic_write


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "out"
    with atomic_write(path) as stream:
        stream.write("one\n")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as stream:
        stream.write("half")
        raise KeyboardInterrupt
    assert path.read_text() == "one\n"
    assert [p.name for p in path.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("name", [".", "folder"])
def test_a_folder_is_not_the_name_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="is a folder, expected the name of a file"), atomic_write(name):
        pass


def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with pytest.raises(DarlRerankError, match=r"out: could not be written: No space left"), atomic_write(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_a_device_that_is_really_full(tmp_path: Path) -> None:
    # /dev/full fails every write as a full disk does; its folder can't be written, which is the same error.
    with pytest.raises(DarlRerankError, match="could not be written"), atomic_write("/dev/full/out") as stream:
        stream.write("x")


def test_a_folder_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "model"
    with atomic_folder(path) as folder:
        (folder / "a").write_text("1")
    with pytest.raises(InputError, match="already exists"), atomic_folder(path):
        pass
    with pytest.raises(RuntimeError), atomic_folder(path, overwrite=True) as folder:
        (folder / "b").write_text("2")
        raise RuntimeError
    assert [p.name for p in path.iterdir()] == ["a"]
    with atomic_folder(path, overwrite=True) as folder:
        (folder / "b").write_text("2")
    assert [p.name for p in path.iterdir()] == ["b"]
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
