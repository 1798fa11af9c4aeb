"""Ray and Java in one process: each keeps its signal handlers."""

from __future__ import annotations

import json
import subprocess
import sys

# In a process of its own, since it ends with Ray's and Java's marks on it. `handlers` tells which library's code a
# fault would run.
PROGRAM = """
import ctypes, json, signal, sys
from darl_rerank.adapters.jvm import ensure_jvm
from darl_rerank.distributed.cluster import connected

def handlers():
    found = {}
    for name in ("SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL"):
        action = ctypes.create_string_buffer(1024)
        ctypes.CDLL(None).sigaction(int(getattr(signal, name)), None, action)
        found[name] = int.from_bytes(action[:8], "little")
    return found

bare = handlers()
ensure_jvm()
java = handlers()
mine = lambda *_: None
signal.signal(signal.SIGTERM, mine)
with connected("local"):
    inside = handlers()
    kept = signal.getsignal(signal.SIGTERM) is mine
print(json.dumps({"bare": bare, "java": java, "inside": inside, "after": handlers(), "kept": kept}))
"""


def test_java_keeps_its_signal_handlers() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert all(found["java"].values())
    assert found["java"] != found["bare"]
    assert found["inside"] == found["java"]
    assert found["after"] == found["java"]
    assert found["kept"]
