"""Jobs on a Ray cluster of two CPUs: the bytes of one machine, whatever is killed, and one error for what is wrong."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.data
from click.testing import CliRunner, Result
from pydantic import ValidationError
from ray import serve

from darl_rerank import Checkpoint, InputError, Reranker
from darl_rerank.cli import cli
from darl_rerank.cli.texts import open_texts
from darl_rerank.distributed import Workers, rerank_dataset, rerank_on_ray
from darl_rerank.distributed.serving import Settings, app
from darl_rerank.distributed.signals import handlers_kept
from darl_rerank.trec.corpora import Document
from darl_rerank.trec.runs import write_run

QUERIES = {f"q{i}": text for i, text in enumerate(["toner cartridge", "power supply", "paper", "battery", "bag"] * 4)}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # The threads that the one machine has in these tests.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Other tests of this process may have started Java, or do so later.
    with handlers_kept():
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    with handlers_kept():
        ray.shutdown()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, products: list[Document], tiny_model: Path) -> Path:
    """A folder with a run, its topics, a corpus in Parquet, and in out.trec and out.jsonl what one machine writes."""
    folder = tmp_path_factory.mktemp("job")
    rows = {qid: products[7 * i : 7 * i + 5 + i % 3] for i, qid in enumerate(QUERIES)}
    write_run(folder / "run.trec", {q: [(d.docid, 20.0 - i) for i, d in enumerate(ds)] for q, ds in rows.items()}, "x")
    (folder / "topics.tsv").write_text("".join(f"{qid}\t{text}\n" for qid, text in QUERIES.items()), "utf-8")
    with (folder / "corpus.jsonl").open("w", encoding="utf-8") as stream:
        for product in reversed(products):
            stream.write(json.dumps({"id": product.docid, "title": product.title, "text": product.text}) + "\n")
    made = CliRunner().invoke(cli, ["corpus-to-parquet", str(folder / "corpus.jsonl"), str(folder / "corpus")])
    assert made.exit_code == 0, made.output
    (folder / "here").mkdir()
    result = call(folder, folder / "here", tiny_model)
    assert result.exit_code == 0, result.output
    return folder


def call(files: Path, out: Path, model: Path, *more: object) -> Result:
    words = [files / "run.trec", files / "topics.tsv", out / "out.trec", "--corpus", files / "corpus"]
    words += ["--details", out / "out.jsonl", "--model", model, "--precision", "float32", "--batch-tokens", 256, *more]
    return CliRunner().invoke(cli, ["rerank", *map(str, words)])


def outputs(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("out.trec", "out.jsonl")]


def test_the_bytes_are_those_of_one_machine(whole: Path, tmp_path: Path, tiny_model: Path) -> None:
    result = call(whole, tmp_path, tiny_model, "--ray", "--workers", 1, "--json")
    assert result.exit_code == 0, result.output
    assert outputs(tmp_path) == outputs(whole / "here")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "out.trec"]
    assert json.loads(result.stdout)["queries"] == len(QUERIES)
    waited = [line for line in result.stderr.splitlines() if line.startswith("waiting for")]
    assert [line.split()[3] for line in waited] == ["nodes", "worker", "workers"], result.stderr


def on_ray(files: Path, out: Path, model: Path, **options: Any) -> None:
    rerank_on_ray(
        files / "run.trec", files / "topics.tsv", out / "out.trec", model, details=out / "out.jsonl",
        open_documents=partial(open_texts, files / "corpus", None), documents=files / "corpus", part_documents=10,
        engine={"precision": "float32", "batch_tokens": 256}, **options,
    )  # fmt: skip


def test_a_killed_worker_and_a_killed_driver_cost_no_byte(whole: Path, tmp_path: Path, tiny_model: Path) -> None:
    seen: list[int] = []

    def kill(_what: str, done: int, _total: int | None) -> None:
        seen.append(done)
        if len(seen) == 2:
            os.kill(below_this_process(b"ray::MapWorker")[0], signal.SIGKILL)
        if len(seen) == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        on_ray(whole, tmp_path, tiny_model, progress=kill)
    assert len(seen) == 6
    assert list((tmp_path / "out.trec.parts").glob("part-*"))
    started: list[int] = []
    on_ray(
        whole, tmp_path, tiny_model, workers=Workers(1), progress=lambda _what, done, _total: started.append(done)
    )  # fmt: skip
    assert started[0] > 0, "what was finished is not judged again"
    assert outputs(tmp_path) == outputs(whole / "here")


def below_this_process(title: bytes) -> list[int]:
    """Ids of the processes that this one has started, themselves or through others, whose title begins so."""
    parents, names = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with contextlib.suppress(OSError):
                parents[int(folder.name)] = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
                names[int(folder.name)] = (folder / "cmdline").read_bytes()

    def below(process: int) -> bool:
        return process == os.getpid() or (process in parents and below(parents[process]))

    return [process for process, name in names.items() if name.startswith(title) and below(process)]


def test_what_is_wrong_is_said_in_one_line_and_nothing_is_left(
    whole: Path, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("darl_rerank.distributed.cluster.__version__", "9.9.9")
    result = call(whole, tmp_path, tiny_model, "--ray")
    assert (result.exit_code, "expected 9.9.9 as here" in result.output) == (3, True), result.output
    monkeypatch.undo()
    result = call(tmp_path, tmp_path, tiny_model, "--ray")
    assert (result.exit_code, "does not see it" in result.output) == (3, True), result.output
    result = call(whole, tmp_path, tiny_model, "--ray", "--gpus-per-worker", 8)
    assert (result.exit_code, "no node of the Ray cluster has" in result.output) == (3, True), result.output
    files = [whole / "run.trec", whole / "topics.tsv", tmp_path / "out.trec", "--corpus", whole / "corpus.jsonl"]
    result = CliRunner().invoke(cli, ["rerank", *map(str, files), "--ray"])
    assert (result.exit_code, "corpus-to-parquet" in result.output) == (3, True), result.output
    assert not list(tmp_path.iterdir())


def test_another_checkpoint_on_a_worker_is_an_error(
    whole: Path, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checkpoint, "fingerprint", "0123456789abcdef")
    with pytest.raises(InputError, match=r"finds another checkpoint at .*expected 0123456789ab"):
        on_ray(whole, tmp_path, tiny_model)
    assert not list(tmp_path.iterdir())


def test_a_step_of_a_pipeline(tiny_model: Path, tiny_reranker: Reranker) -> None:
    rows = [{"query": text, "documents": [f"{text} {i}" for i in range(n)], "n": n} for n, text in enumerate("abc")]
    made = rerank_dataset(
        ray.data.from_items(rows), tiny_model, engine={"precision": "float32"}, top_k=1
    ).take_all()  # fmt: skip
    expected = {row["n"]: tiny_reranker.rerank(row["query"], row["documents"], top_k=1) for row in rows}
    for row in made:
        assert [ranked["index"] for ranked in row["ranking"]] == [ranked.index for ranked in expected[row["n"]]]
        assert [ranked["score"] for ranked in row["ranking"]] == pytest.approx([r.score for r in expected[row["n"]]])


@pytest.fixture
def served(tiny_model: Path) -> Iterator[int]:
    """The port of an application with two replicas."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    settings = Settings(model=str(tiny_model), precision="float32", min_replicas=2, max_replicas=2, cpus=0.5)
    serve.run(app(settings), name="test")
    end = time.monotonic() + 60
    while call_http(port, "GET", "/ready")[0] != 200 and time.monotonic() < end:
        time.sleep(0.1)
    yield port
    serve.shutdown()


def call_http(port: int, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, None if body is None else json.dumps(body))
        answer = connection.getresponse()
        text = answer.read().decode()
        return answer.status, text if path == "/metrics" else json.loads(text)
    finally:
        connection.close()


def test_the_server_answers_though_a_replica_is_killed(served: int, tiny_reranker: Reranker) -> None:
    documents = [f"toner cartridge number {i}" for i in range(20)]
    expected = {ranked.index: ranked.score for ranked in tiny_reranker.rerank("toner", documents)}
    assert call_http(served, "POST", "/rerank", {"query": "", "documents": documents})[0] == 422

    def ask(number: int) -> tuple[int, Any]:
        if number == 10:
            os.kill(below_this_process(b"ray::ServeReplica:test:Judging")[0], signal.SIGKILL)
        return call_http(served, "POST", "/v1/rerank", {"query": "toner", "documents": documents, "raw_scores": True})

    with ThreadPoolExecutor(8) as clients:
        for status, body in clients.map(ask, range(40)):
            assert status == 200, body
            assert {r["index"]: r["relevance_score"] for r in body["results"]} == pytest.approx(expected)
    metrics = call_http(served, "GET", "/metrics")[1]
    assert 'darl_request_count_total{path="/v1/rerank",replica="' in metrics
    assert "darl_replicas{" in metrics
    assert "darl_batch_next_tokens_count{" in metrics


def test_settings_of_the_server_are_checked(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError, match=r"max_replica\n.*Extra inputs"):
        Settings.model_validate({"max_replica": 3})
    monkeypatch.delenv("NO_KEYS", raising=False)
    with pytest.raises(InputError, match="NO_KEYS is not set or empty"):
        app(Settings(model=str(tiny_model), api_key_env="NO_KEYS"))
    with pytest.raises(InputError, match="nowhere"):
        app(Settings(model="nowhere"))
