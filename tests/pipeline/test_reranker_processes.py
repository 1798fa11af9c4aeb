"""A reranker that goes to other processes: pickled, copied, forked."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from darl_rerank import Reranker


def test_a_pickled_or_copied_reranker_gives_the_same(tiny_model: Path) -> None:
    reranker = Reranker.from_pretrained(tiny_model, engine="torch", precision="bf16", batch_tokens=77)
    again = pickle.loads(pickle.dumps(reranker))  # our own pickle: what joblib or Spark send to a worker
    for other in (again, copy.deepcopy(reranker)):
        assert (other.fingerprint, other.batch_tokens) == (reranker.fingerprint, 77)
        assert other.rerank("laptop", ["a notebook", "a hose"]) == reranker.rerank("laptop", ["a notebook", "a hose"])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_has_a_queue_of_its_own(tiny_model: Path) -> None:
    # In a process of its own: this one may have threads that a fork would cut off.
    code = """
import asyncio, os, sys
from darl_rerank import Reranker
reranker = Reranker.from_pretrained(sys.argv[1], engine="torch", precision="float32")
call = lambda: asyncio.run(asyncio.wait_for(reranker.rerank_async("laptop", ["a notebook"]), 30))
first = call()
child = os.fork()
if child == 0:
    try:
        os._exit(0 if call() == first else 1)
    finally:
        os._exit(2)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code, str(tiny_model)], env=environment, timeout=120, check=True)
