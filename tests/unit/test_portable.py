"""The package without what only POSIX systems have, as Windows runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from darl_rerank.cache import cache_folder

# Modules and functions that Windows lacks are hidden before anything of ours is loaded.
_WITHOUT_POSIX = """
import os, sys
for name in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[name] = None
for name in ("fchmod", "fork", "getuid", "sched_getaffinity"):
    delattr(os, name)
import pkgutil
from importlib import import_module
from pathlib import Path
import darl_rerank
# Training, export and the engines need libraries that have their own say on where they run.
for name in ("torch", "transformers", "onnx", "onnxruntime", "ray"):
    sys.modules[name] = None
imported = 0
for module in pkgutil.walk_packages(darl_rerank.__path__, "darl_rerank.", onerror=lambda name: None):
    if module.name == "darl_rerank.cli.__main__":
        continue
    try:
        import_module(module.name)
        imported += 1
    except ImportError as error:
        # What an extra brings may be missing here.
        if (error.name or "darl_rerank").split(".")[0] in ("fcntl", "grp", "pwd", "resource", "termios", "darl_rerank"):
            raise
assert imported > 40, imported
from darl_rerank.adapters import document_store, lucene, vector_file
from darl_rerank.files import atomic_write
with atomic_write(Path(sys.argv[1]) / "out") as stream:
    stream.write("written")
"""


def test_nothing_needs_a_posix_system(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", _WITHOUT_POSIX, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out").read_text() == "written"


def test_the_cache_is_where_the_system_keeps_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DARL_RERANK_CACHE", "~/own")
    assert cache_folder() == Path.home() / "own"
    monkeypatch.delenv("DARL_RERANK_CACHE")
    if sys.platform == "linux":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert cache_folder() == tmp_path / "darl-rerank"
