"""`darl-rerank serve` as a process: every path, what it refuses, how it starts and how it ends."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from serving.abuse import check_raw_requests, check_requests
from serving.process import Served, darl_rerank, served

from darl_rerank import Reranker

ENGINE = ("--engine", "torch", "--device", "cpu", "--precision", "float32")
# Two threads of a model this small wait for each other more than they work.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
KEY = "s3cret-key"
QUERY = "laptop with 16 GB"
DOCUMENTS = ["Garden hose", "Dell XPS 13 notebook, 16 GB", "", "Laptop sleeve " * 400, "HP laptop 16 GB", "Garden hose"]
RERANK = {"query": QUERY, "documents": DOCUMENTS}


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[Served]:
    command = darl_rerank(tiny_model, *ENGINE, "--max-documents", "200", "--max-body-mib", "1", "--model-name", "tiny")
    with served(command, ONE_THREAD) as running:
        running.wait_until_ready()
        yield running


@pytest.fixture(scope="module")
def locked(tiny_model: Path) -> Iterator[Served]:
    """A server with API keys, queries in its log, and a small queue."""
    command = darl_rerank(
        tiny_model, *ENGINE, "--api-key-env", "DARL_KEYS", "--log-queries", "--max-queue-tokens", "500"
    )
    with served(command, {**ONE_THREAD, "DARL_KEYS": f"other,{KEY}"}) as running:
        running.wait_until_ready()
        yield running


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank", "/reranking", "/v1/reranking"])
def test_every_path_gives_what_the_library_gives(server: Served, tiny_reranker: Reranker, path: str) -> None:
    status, values = server.post(path, RERANK)
    assert status == 200, values
    expected = tiny_reranker.rerank(QUERY, DOCUMENTS)
    results = values["results"]
    assert [(r["index"], r["judged"], r["truncated"]) for r in results] == [
        (r.index, r.judged, r.truncated) for r in expected
    ]
    for result, ranked in zip(results, expected, strict=True):
        np.testing.assert_allclose(result["probabilities"], ranked.probabilities, atol=1e-4)
        np.testing.assert_allclose(result["relevance_score"], (ranked.score or 0) / 3, atol=1e-4)
        assert (result["grade"], result["grade_name"]) == (ranked.grade, ranked.grade_name)
    assert values["model"] == "tiny"
    assert results[-1]["reason"] == "is empty"


def test_tei_and_scores(server: Served, tiny_reranker: Reranker) -> None:
    expected = {r.index: (r.score or 0) / 3 for r in tiny_reranker.rerank(QUERY, DOCUMENTS)}
    status, values = server.post("/rerank", {"query": QUERY, "texts": DOCUMENTS})
    assert status == 200
    assert {v["index"] for v in values} == set(range(len(DOCUMENTS)))
    for path in ("/score", "/v1/score"):
        status, scores = server.post(path, {"text_1": QUERY, "text_2": DOCUMENTS})
        assert status == 200
        for value in (*values, *scores["data"]):
            assert value["score"] == pytest.approx(expected[value["index"]], abs=1e-4)
    status, scores = server.post(
        "/score", {"queries": [QUERY, "hose"], "documents": ["HP laptop 16 GB", "Garden hose"]}
    )
    alone = [tiny_reranker.rerank(q, [d])[0].score for q, d in ((QUERY, "HP laptop 16 GB"), ("hose", "Garden hose"))]
    assert [v["score"] for v in scores["data"]] == pytest.approx([(s or 0) / 3 for s in alone], abs=1e-4)


def test_rules_are_those_of_the_library(server: Served, tiny_reranker: Reranker) -> None:
    asked = {**RERANK, "documents": [{"text": text or " ", "score": -i} for i, text in enumerate(DOCUMENTS)]}
    middle = tiny_reranker.rerank(QUERY, DOCUMENTS)[2].grade
    for rules in (
        {"min_grade": middle},
        {"depth": 3},
        {"fuse": "auto"},
        {"min_grade": "relevant", "min_probability": 0.3},
    ):
        expected = tiny_reranker.rerank(QUERY, asked["documents"], **rules)
        status, values = server.post("/rerank", {**asked, **rules})
        assert status == 200, values
        assert [r["index"] for r in values["results"]] == [r.index for r in expected]
        assert values["meta"]["documents_cut"] == expected.cut
    for wrong in (
        {"min_grade": "superb"},
        {"fuse": "always"},
        {"cut": "recall 0.9 of relevant"},
        {"min_probability": 1},
    ):
        status, values = server.post("/rerank", {**asked, **wrong})
        assert status == 422, values


def test_answers_are_the_same_alone_and_together(server: Served) -> None:
    bodies: list[dict[str, Any]] = [
        {"query": f"{QUERY} {i}", "documents": [f"{document[:200]} {i}" for document in DOCUMENTS] * (1 + i % 4)}
        for i in range(12)
    ]
    alone = [server.post("/rerank", body)[1]["results"] for body in bodies]
    with ThreadPoolExecutor(12) as pool:
        together = [values["results"] for _, values in pool.map(lambda body: server.post("/rerank", body), bodies)]
    for one, other in zip(alone, together, strict=True):
        scores = [{r["index"]: r["relevance_score"] for r in results} for results in (one, other)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-4)


def test_state_and_description(server: Served, tiny_model: Path) -> None:
    assert server.call("GET", "/health")[::2] == (200, {"status": "ok"})
    assert server.call("GET", "/ping")[0] == 200
    assert server.call("GET", "/ready")[::2] == (200, {"status": "ready"})
    assert server.call("GET", "/v1/models")[2]["data"][0]["id"] == "tiny"
    info = server.call("GET", "/info")[2]
    assert (info["model_id"], info["engine"], info["model_dtype"], info["max_input_length"]) == (
        "tiny", "torch", "float32", 512
    )  # fmt: skip
    assert info["model_sha"] == json.loads((tiny_model / "checkpoint.json").read_text()).get(
        "fingerprint", info["model_sha"]
    )


def test_what_happened_is_counted(server: Served) -> None:
    before = {name: server.metric(name) for name in ("darl_documents_total", "darl_documents_unjudged_total")}
    _, headers, _ = server.call("POST", "/rerank", RERANK, {"X-Request-ID": "mine-1"})
    assert headers["x-request-id"] == "mine-1"
    assert int(headers["x-queue-time"]) >= 0
    assert int(headers["x-inference-time"]) >= 0
    assert server.metric("darl_documents_total") == before["darl_documents_total"] + len(DOCUMENTS)
    assert server.metric("darl_documents_unjudged_total") == before["darl_documents_unjudged_total"] + 1
    for name in ("darl_request_count_total", "darl_batch_next_tokens_count", "darl_documents_truncated_total"):
        assert server.metric(name) >= 1
    assert server.metric("darl_queue_tokens") == 0
    assert server.metric("darl_ready") == 1
    line = next(line for line in server.log_lines() if line.get("request_id") == "mine-1")
    assert (line["path"], line["status"], line["documents"], line["unjudged"]) == ("/rerank", 200, len(DOCUMENTS), 1)
    assert QUERY not in server.log.read_text("utf-8")


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "code"),
    [
        ("POST", "/rerank", b"{", {}, 400, "malformed_json"),
        ("POST", "/rerank", b"\x1f\x8b", {"Content-Encoding": "gzip"}, 415, "unsupported_encoding"),
        ("POST", "/rerank", {"query": "", "documents": ["a"]}, {}, 422, "invalid_request"),
        ("POST", "/rerank", {"query": "q", "documents": ["a"] * 201}, {}, 413, "too_many_documents"),
        ("POST", "/rerank", {"query": "q" * (2 << 20), "documents": ["a"]}, {}, 413, "body_too_large"),
        ("GET", "/rerank", None, {}, 405, "method_not_allowed"),
        ("GET", "/nothing", None, {}, 404, "not_found"),
        ("POST", "/search", {"query": "q"}, {}, 404, "not_found"),
        ("GET", "/rerank/", None, {}, 404, "not_found"),
    ],
)
def test_what_cannot_be_served_is_said(
    server: Served, method: str, path: str, body: Any, headers: dict[str, str], status: int, code: str
) -> None:
    answered, _, values = server.call(method, path, body, headers)
    assert (answered, values["error"]["code"]) == (status, code)
    assert values["message"] == values["detail"] == values["error"]["message"]


def test_half_an_emoji_costs_nothing(server: Served) -> None:
    body = (
        rb'{"query": "a \ud83d", "documents": ["b \udc00", {"title": "\ud83d", "text": "c"}], "return_documents": true}'
    )
    status, values = server.post("/rerank", body)
    assert status == 200
    assert {r["document"]["text"] for r in values["results"]} == {"b \ufffd", "\ufffd\nc"}
    status, values = server.post("/rerank", rb'{"query": "a", "documents": [{"\ud83d": "b"}]}')
    assert status == 200
    assert values["results"][0]["reason"].endswith("; found \ufffd")


@pytest.mark.parametrize(
    "request_text",
    [
        b"POST /rerank HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /rerank HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        b"POST /rerank HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n{}",
        b"POST /rerank HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
        b"POST /rerank HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n{}",
        b"POST /rerank HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}",
        b"GET /health HTTP/1.1\r\nHost: a\r\nBad Header: b\r\n\r\n",
        b"GET /health\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"A" * 70_000 + b"\r\n\r\n",
    ],
)
def test_http_that_servers_may_read_differently_is_refused_in_json(server: Served, request_text: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(request_text)
        connection.shutdown(socket.SHUT_WR) if request_text.startswith(b"\x16") else None
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.split()[1] in (b"400", b"501"), answer
    assert b"application/json" in head.lower()
    assert json.loads(body)["error"]["code"] in ("malformed_http", "ambiguous_length")
    assert server.call("GET", "/health")[0] == 200


def test_made_up_requests_get_json_and_never_a_500(server: Served) -> None:
    # 10,000 of them: benchmarks/serving/run.py --parts fuzz.
    assert sum(check_requests(server, 100).values()) == 100
    assert sum(check_raw_requests(server, 20).values()) == 20
    assert "Traceback" not in server.log.read_text("utf-8")
    assert server.post("/rerank", RERANK)[0] == 200


@pytest.mark.parametrize("authorization", [f"Bearer {KEY}", f"bearer {KEY}", KEY, "Bearer other"])
def test_a_key_opens(locked: Served, authorization: str) -> None:
    assert locked.post("/rerank", RERANK, {"Authorization": authorization})[0] == 200
    assert locked.call("GET", "/metrics", None, {"Authorization": authorization})[0] == 200


@pytest.mark.parametrize(
    "path", ["/rerank", "/v1/models", "/info", "/metrics", "/search", "/nothing", "//rerank", "/rerank?/health"]
)
@pytest.mark.parametrize("authorization", [None, "Bearer", f"Bearer {KEY}x", f"Basic {KEY}", "Bearer s3cret-key,other"])
def test_without_a_key_nothing_is_served(locked: Served, path: str, authorization: str | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    status, found, values = locked.call("POST", path, RERANK, headers)
    assert (status, values["error"]["code"], found["www-authenticate"]) == (401, "unauthorized", "Bearer")


def test_probes_and_page_need_no_key_and_no_key_is_logged(locked: Served) -> None:
    assert [locked.call("GET", path)[0] for path in ("/health", "/ping", "/ready", "/")] == [200] * 4
    locked.post("/rerank", RERANK, {"Authorization": f"Bearer {KEY}"})
    log = locked.log.read_text("utf-8")
    assert KEY not in log
    # --log-queries was given.
    assert QUERY in log


def test_a_client_that_hangs_up_frees_its_work(server: Served) -> None:
    body = json.dumps({"query": QUERY, "documents": [f"{i} " + "word " * 300 for i in range(200)]}).encode()
    head = f"POST /rerank HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(head + body)
            wait_for(lambda: server.metric("darl_queue_tokens") > 0)
        wait_for(lambda: server.metric("darl_queue_tokens") == 0)
    gone = [line for line in server.log_lines() if line.get("status") == 499]
    assert len(gone) >= 5


def wait_for(holds: Any) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end, "waited for a minute"
        time.sleep(0.005)


def test_a_full_queue_says_when_to_come_again(locked: Served) -> None:
    body = {"query": QUERY, "documents": [f"{i} " + "word " * 40 for i in range(40)]}
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: locked.call("POST", "/rerank", body, {"Authorization": KEY}), range(6)))
    assert {status for status, _, _ in answers} == {200, 429}
    for status, headers, values in answers:
        if status == 429:
            assert int(headers["retry-after"]) >= 1
            assert values["error"]["code"] == "queue_full"


def test_it_answers_probes_while_it_loads_and_all_that_it_accepted_when_it_ends(tiny_model: Path) -> None:
    with served(darl_rerank(tiny_model, *ENGINE), ONE_THREAD) as running:
        assert running.call("GET", "/health")[0] == 200
        status, headers, values = running.call("POST", "/rerank", RERANK)
        # It may be ready already, on a fast machine.
        assert (status, values.get("error", {}).get("code")) in ((503, "loading"), (200, None))
        assert status == 200 or int(headers["retry-after"]) >= 1
        running.wait_until_ready()
        loading = len([line for line in running.log_lines() if line.get("path") == "/rerank"])
        answers: list[tuple[int, int]] = []
        body = {"query": QUERY, "documents": [f"{i} " + "word " * 20 for i in range(20)]}

        def ask() -> None:
            while True:
                try:
                    status, values = running.post("/rerank", body)
                except OSError:  # it has ended
                    return
                answers.append((status, len(values.get("results", ()))))
                if status == 503:
                    return

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        wait_for(lambda: len(answers) >= 8)
        assert running.terminate() == 0
        for thread in threads:
            thread.join(60)
        ended = [line for line in running.log_lines() if line.get("path") == "/rerank"][loading:]
    assert {status for status, _ in answers} <= {200, 503}
    assert all(count == 20 for status, count in answers if status == 200)
    # Whatever the server took it answered, and every answer arrived.
    assert sum(line["status"] == 200 for line in ended) == sum(status == 200 for status, _ in answers)
    assert all(line["status"] in (200, 503) for line in ended)


def test_sigterm_while_it_loads_ends_it(tiny_model: Path) -> None:
    with served(darl_rerank(tiny_model, *ENGINE), ONE_THREAD) as running:
        assert running.terminate() == 0


@pytest.mark.parametrize(
    ("options", "status", "says"),
    [
        (["/nowhere/model"], 3, "expected a checkpoint folder"),
        (["--host", "256.1.1.1"], 1, "can't listen on 256.1.1.1"),
        (["--api-key-env", "NOT_SET_ANYWHERE"], 2, "NOT_SET_ANYWHERE is not set or empty"),
        (["--index", "/nowhere/index"], 3, "/nowhere/index"),
    ],
)
def test_what_keeps_it_from_serving_is_one_line(tiny_model: Path, options: list[str], status: int, says: str) -> None:
    model = options if options[0].startswith("/") else [str(tiny_model), *options]
    command = [sys.executable, "-m", "darl_rerank.cli", "serve", *model, "--port", "0"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, says in ended.stderr) == (status, True), ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_port_that_is_taken_is_said(server: Served, tiny_model: Path) -> None:
    command = [sys.executable, "-m", "darl_rerank.cli", "serve", str(tiny_model), "--port", str(server.port)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 1
    assert f"can't listen on 127.0.0.1 port {server.port}: Address already in use" in ended.stderr
