from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from darl_rerank.errors import DarlRerankError, InputError
from darl_rerank.files import (
    atomic_folder,
    atomic_write,
    check_output_file,
    check_output_folder,
    check_outputs_apart,
    temporary_folder,
)


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


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_device_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to(pipe)
    for path in (pipe, tmp_path / "link", Path(os.devnull)):
        with pytest.raises(InputError, match="is a device or a pipe, expected the name of a file"), atomic_write(path):
            pass
    assert pipe.is_fifo()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(InputError, match="out: can't be written: notes is a file, not a folder"):
        check_output_file(tmp_path / "notes" / "deep" / "out")


def test_an_output_is_neither_an_input_nor_another_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("run")
    check_outputs_apart(["out", None, "s3://b/x"], ["run", None, tmp_path / "topics", "s3://b/y"])
    for output, source in (("./run", tmp_path / "run"), ("link", "run"), ("s3://b/x", "s3://b/x")):
        with pytest.raises(InputError, match=r"is read by this command, too: name another file"):
            check_outputs_apart([output], [source])
    with pytest.raises(InputError, match=r"out: is written by this command, too"):
        check_outputs_apart(["out", tmp_path / "out"], ["run"])


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("there", "not yet there"):
        link, target = tmp_path / f"link to {name}", tmp_path / "folder" / name
        link.symlink_to(target)
        with atomic_write(link) as stream:
            stream.write("new")
        assert link.is_symlink()
        assert target.read_text() == "new"


def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with pytest.raises(DarlRerankError, match=r"out: could not be written: No space left"), atomic_write(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


# Fills the device under argv[1] (or runs into a limit on file sizes) in the middle of a file and of a folder.
_FILL = """
import sys
from pathlib import Path
from darl_rerank.errors import DarlRerankError
from darl_rerank.files import atomic_folder, atomic_write

place = Path(sys.argv[1])
file, folder = place / "file", place / "folder"
with atomic_write(file) as stream:
    stream.write("before")
with atomic_folder(folder) as made:
    (made / "before").write_text("before")
if len(sys.argv) > 2:
    import resource, signal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
for attempt in range(2):
    try:
        if attempt:
            with atomic_folder(folder, overwrite=True) as made:
                (made / "large").write_bytes(bytes(200_000))
        else:
            with atomic_write(file, "wb") as stream:
                stream.write(bytes(200_000))
        print("was written")
    except DarlRerankError as error:
        print(error)
print(file.read_text(), (folder / "before").read_text(), *sorted(path.name for path in place.rglob("*")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="uses Linux's way to mount a small device")
@pytest.mark.parametrize("how", ["a device of 64 KiB", "a limit on file sizes"])
def test_a_device_that_is_really_full(tmp_path: Path, how: str) -> None:
    command = [sys.executable, "-c", _FILL, str(tmp_path)]
    if how == "a device of 64 KiB":
        mount = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
        full = 'mount -t tmpfs -o size=64k none "$1" && shift && exec "$@"'
        if shutil.which("unshare") is None or subprocess.run([*mount, "mount -t tmpfs none /mnt"], check=False,
                                                             capture_output=True).returncode:  # fmt: skip
            pytest.skip("this system lets nobody mount a device")
        command, reason = [*mount, full, "sh", str(tmp_path), *command], "No space left on device"
    else:
        command, reason = [*command, "65536"], "File too large"
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    file, folder, kept = result.stdout.splitlines()
    assert file.startswith(f"{tmp_path}/file: could not be written: {reason}")
    assert folder.startswith(f"{tmp_path}/folder: could not be written: {reason}")
    assert kept == "before before before file folder", "what was there before, and nothing half made"


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


_KILLED = """
import os, signal, sys
from darl_rerank.files import atomic_folder, temporary_folder
with temporary_folder(sys.argv[1]), atomic_folder(sys.argv[1]) as folder:
    (folder / "half").write_text("1")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no such signal here")
def test_what_a_killed_process_left_goes_with_the_next_call_for_the_same_folder(tmp_path: Path) -> None:
    path, other = tmp_path / "model", tmp_path / "model.b"
    for killed in (path, other):
        subprocess.run([sys.executable, "-c", _KILLED, str(killed)], check=False)
    assert not path.exists()
    assert len(list(tmp_path.glob(".model.b.*.tmp"))) == 2
    assert len(list(tmp_path.glob(".model.*.tmp"))) == 4
    before = set(tmp_path.glob(".model.b.*"))
    (tmp_path / ".model.old").mkdir()  # somebody else's
    with temporary_folder(path) as held, atomic_folder(path) as folder:
        (held / "mine").write_text("1")
        (folder / "a").write_text("1")
        assert set(tmp_path.glob(".model.*.tmp")) - before == {held, folder}
        assert [found.name for found in held.iterdir()] == ["mine"]
    assert {found.name for found in set(tmp_path.iterdir()) - before} == {"model", ".model.old"}
    with atomic_folder(other):
        pass
    assert {found.name for found in tmp_path.iterdir()} == {"model", "model.b", ".model.old"}


def test_a_folder_is_made_where_files_can_not_be_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: Any, **__: Any) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(FileLock, "acquire", refuses)
    with atomic_folder(tmp_path / "model") as folder:
        (folder / "a").write_text("1")
    assert [found.name for found in tmp_path.iterdir()] == ["model"]


def test_only_what_was_made_here_is_overwritten(tmp_path: Path) -> None:
    mine = tmp_path / "documents"
    check_output_folder(mine, overwrite=True)
    mine.mkdir()
    check_output_folder(mine, overwrite=True)
    (mine / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match="is neither a checkpoint nor a corpus or an index of darl-rerank"):
        check_output_folder(mine, overwrite=True)
    with pytest.raises(InputError, match="is a file, expected the name of a folder"):
        check_output_folder(mine / "thesis.tex", overwrite=True)
    with pytest.raises(InputError, match="is a file"), atomic_folder(mine / "thesis.tex", overwrite=True):
        pass
    (mine / "checkpoint.json").write_text("{}")
    check_output_folder(mine, overwrite=True)


@pytest.mark.parametrize("failing", [2, 3])
def test_a_folder_stays_where_it_is_if_it_can_not_be_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    path = tmp_path / "model"
    with atomic_folder(path) as folder:
        (folder / "a").write_text("1")
    calls = 0
    rename = os.replace

    def fails_at(source: str, target: str) -> None:
        nonlocal calls
        calls += 1
        if calls in (2, failing):
            raise OSError(errno.EACCES, "Permission denied", str(source))
        rename(source, target)

    monkeypatch.setattr(os, "replace", fails_at)
    with pytest.raises(DarlRerankError) as caught, atomic_folder(path, overwrite=True) as folder:
        (folder / "b").write_text("2")
    monkeypatch.undo()
    message = str(caught.value)
    if failing == 2:
        assert "nothing was changed" in message
        assert [p.name for p in path.iterdir()] == ["a"]
        assert [p.name for p in tmp_path.iterdir()] == ["model"]
    else:
        # Even bringing it back failed: the error says where it is.
        assert "nothing was changed" not in message
        kept = Path(message.rsplit("it is whole in ", 1)[1])
        assert [p.name for p in kept.iterdir()] == ["a"]


@pytest.mark.parametrize("kind", [atomic_folder, atomic_write])
def test_an_input_that_can_not_be_read_is_not_called_an_output(tmp_path: Path, kind: Any) -> None:
    missing = tmp_path / "input"
    with pytest.raises(FileNotFoundError) as caught, kind(tmp_path / "out"):
        missing.read_text()
    assert caught.value.filename == str(missing)
    assert list(tmp_path.iterdir()) == []
