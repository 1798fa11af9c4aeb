"""What a job on a cluster is made of, without a cluster: the plan, the folder of parts, the address."""

from __future__ import annotations

import io
import socket
from importlib import import_module
from pathlib import Path

import fsspec
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from darl_rerank import InputError
from darl_rerank.distributed.cluster import connected
from darl_rerank.distributed.plan import _queries
from darl_rerank.distributed.serving import Settings, app
from darl_rerank.distributed.storage import Parts, digest, local_copy, read_range, whole_output
from darl_rerank.trec.runs import read_run

DOCS = Path(__file__).resolve().parents[2] / "docs"
RUN = "q2 Q0 a 1 3.0 x\r\nq2 Q0 b 2 2.0 x\n\nq1 Q0 a 1 1.5 x\nq3 Q0 c 1 1 x\nq3 Q0 d 2 0.5 x"


def test_the_queries_of_a_run_are_found_by_their_bytes(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.write_bytes(b"\xef\xbb\xbf" + RUN.encode())
    data = path.read_bytes()
    found = list(_queries(io.BytesIO(data), str(path), lambda _: None))
    assert [(q.qid, q.documents) for q in found] == [(qid, len(entries)) for qid, entries in read_run(path).items()]
    assert b"".join(data[q.start : q.end] for q in found) == data
    assert read_range(str(path), found[1].start, found[1].end) == b"q1 Q0 a 1 1.5 x\n"


@pytest.mark.parametrize(
    ("run", "error"),
    [
        (RUN + "\nq2 Q0 e 1 1 x", ":7: query q2 stands in two places"),
        ("\x1f\x8bxyz", "run: is compressed"),
        ("q1 Q0 a 1 x\nq1 Q0 a 1 no x", ":1: expected 6 columns"),
    ],
)
def test_a_run_that_can_not_be_cut_is_an_error(run: str, error: str) -> None:
    with pytest.raises(InputError, match=error):
        list(_queries(io.BytesIO(run.encode("latin-1")), "run", lambda _: None))


@pytest.mark.parametrize("root", ["disk", "memory://bucket"])
def test_parts_are_kept_on_a_disk_and_in_a_store(tmp_path: Path, root: str) -> None:
    folder = f"{tmp_path / root if '://' not in root else root}/out.parts"
    parts = Parts(folder)
    assert parts.begin()
    assert parts.go_on({"depth": 3}) == set()
    parts.write(7, {"run": "é"})
    assert not parts.begin()
    assert Parts(folder).go_on({"depth": 3}) == {7}
    assert (parts.has(7), parts.has(8), parts.read(7)) == (True, False, {"run": "é"})
    with pytest.raises(InputError, match="journal of another job: depth was 3, now 4"):
        parts.go_on({"depth": 4})
    parts.remove()
    parts.remove()
    assert parts.begin()


def test_files_of_a_store(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), whole_output("memory://x/out.trec") as stream:
        stream.write("half")
        raise RuntimeError
    assert not fsspec.filesystem("memory").exists("/x/out.trec")
    with whole_output("memory://x/out.trec") as stream:
        stream.write("whole")
    before = digest("memory://x")
    with local_copy("memory://x/out.trec") as copy:
        assert copy.read_text() == "whole"
    with whole_output("memory://x/other") as stream:
        stream.write("whole")
    assert digest("memory://x") != before
    with pytest.raises(InputError, match="memory://x/none: no such file"), local_copy("memory://x/none"):
        pass


def test_an_address_without_a_cluster_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{free.getsockname()[1]}"
    for address, said in (
        (nobody, f"no Ray cluster at {nobody}"),
        ("nonsense", "expected host:port"),
        (f"ray://{nobody}", "ray job submit"),
    ):
        with pytest.raises(InputError, match=said), connected(address):
            pass
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(InputError, match=said), connected("auto"):
            pass


def test_it_says_that_it_waits_before_ray_starts(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def start(**_: object) -> None:
        assert caplog.messages == ["waiting for Ray to start on this machine"]
        raise ConnectionError("not today")

    monkeypatch.setattr("ray.init", start)
    with caplog.at_level("INFO", "darl_rerank"), pytest.raises(InputError, match="not today"), connected("local"):
        pass


def test_the_configuration_for_kubernetes_is_one_that_serve_and_the_application_take() -> None:
    service, policy = yaml.safe_load_all((DOCS / "ray-service.yaml").read_text("utf-8"))
    assert (service["kind"], policy["kind"]) == ("RayService", "NetworkPolicy")
    serve_config = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    (application,) = serve_config.applications
    module, name = application.import_path.split(":")
    assert getattr(import_module(module), name) is app
    assert Settings.model_validate(application.args).api_key_env == "DARL_API_KEYS"
