"""Real clients, each in an environment of its own, ask a real server; each gets what `Reranker.rerank` gives.

`make test-clients` makes the environments; without them these tests are skipped.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from serving.process import Served, darl_rerank, served

from darl_rerank import Reranker

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = HERE.parents[1] / ".venv"
SHARED = (
    "cohere_v2", "cohere_v1", "langchain_cohere", "llama_index_cohere", "llama_index_jina", "llama_index_tei",
    "haystack_cohere", "voyage", "langchain_infinity", "infinity",
)  # fmt: skip
COHERE7 = ("cohere_v2", "cohere_v1", "haystack_jina")
# These two read an answer without looking at its status.
SILENT = {"llama_index_tei", "langchain_infinity", "infinity"}
CLIENTS = [*(("clients", name) for name in SHARED), *(("cohere7", name) for name in COHERE7)]
ASKED = {
    "query": "laptop with 16 GB",
    "documents": ["Garden hose", "Dell XPS 13 notebook", "Laptop sleeve " * 300, "HP laptop, 16 GB", "USB-C cable"],
}
EMPTY = {**ASKED, "query": " "}


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[Served]:
    command = darl_rerank(tiny_model, "--engine", "torch", "--device", "cpu", "--precision", "float32")
    with served(command, {"OMP_NUM_THREADS": "1"}) as running:
        running.wait_until_ready()
        yield running


@pytest.fixture(scope="module")
def asks(server: Served) -> Any:
    """What the clients of an environment make of a request; each asks once."""
    known: dict[tuple[str, str], Any] = {}

    def ask(environment: str, asked: dict[str, Any]) -> dict[str, Any]:
        if not (ENVIRONMENTS / f"{environment}.installed").is_file():  # made last
            pytest.skip(f"the clients' environment is not there: make .venv/{environment}.installed")
        key = environment, asked["query"]
        if key not in known:
            script = HERE / ("shared_environment.py" if environment == "clients" else "cohere7_environment.py")
            python = ENVIRONMENTS / environment / "bin" / "python"
            command = [str(python), "-W", "ignore", str(script), server.url, json.dumps(asked)]
            ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
            assert ended.returncode == 0, ended.stderr
            known[key] = json.loads(ended.stdout.splitlines()[-1])
        return known[key]

    return ask


@pytest.mark.parametrize(("environment", "client"), CLIENTS)
def test_a_client_gets_what_the_library_gives(
    asks: Any, tiny_reranker: Reranker, environment: str, client: str
) -> None:
    expected = tiny_reranker.rerank(ASKED["query"], ASKED["documents"], top_k=3)
    found = asks(environment, ASKED)[client]
    assert not isinstance(found, str), found
    assert [index for index, _ in found] == [ranked.index for ranked in expected]
    assert [score for _, score in found] == pytest.approx([(r.score or 0) / 3 for r in expected], abs=1e-4)


@pytest.mark.parametrize(("environment", "client"), [c for c in CLIENTS if c[1] not in SILENT])
def test_a_client_shows_the_message_of_an_error(asks: Any, environment: str, client: str) -> None:
    found = asks(environment, EMPTY)[client]
    assert isinstance(found, str)
    assert "the query is empty" in found
