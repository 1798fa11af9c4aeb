"""Checkpoints on the hub, against a server on this machine that speaks its HTTP API."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants as hub_constants
import pytest
from click.testing import CliRunner
from huggingface_hub import ModelCard

from darl_rerank import Checkpoint, InputError, Reranker
from darl_rerank.cli import cli
from darl_rerank.errors import DarlRerankError
from darl_rerank.model.card import Figure, card_metadata
from darl_rerank.model.export_record import ExportRecord
from darl_rerank.model.hub import hub_reference

DOCUMENTS = ["Dell XPS 13 notebook", "Laptop sleeve 13 inch", "Garden hose"]


class Hub(ThreadingHTTPServer):
    """Repositories in memory: each commit's files, and which commit a branch is at."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}
        self.branches: dict[str, dict[str, str]] = {}
        self.large: dict[str, bytes] = {}  # uploaded as large files, by sha256
        self.requests: list[str] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def put(self, repository: str, branch: str, files: dict[str, bytes]) -> str:
        """Commit these files as all there are; the commit's id."""
        number = sum(map(len, self.commits.values()))
        commit = hashlib.sha1(f"{repository} {branch} {number}".encode()).hexdigest()
        self.commits.setdefault(repository, {})[commit] = files
        self.branches.setdefault(repository, {})[branch] = commit
        return commit

    def files(self, repository: str, revision: str = "main") -> dict[str, bytes]:
        return self.commits[repository][self.branches[repository].get(revision, revision)]


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        """Nothing on stderr."""

    def answer(self, status: int, body: Any = b"", **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_GET(self) -> None:
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        self.server.requests.append("/".join(parts))
        if parts == [""]:  # is anybody there?
            return self.answer(200)
        repository, revision, name = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
        if repository not in self.server.commits:
            return self.answer(404, X_Error_Code="RepoNotFound")
        commit = self.server.branches[repository].get(revision, revision)
        if commit not in self.server.commits[repository]:
            return self.answer(404, X_Error_Code="RevisionNotFound")
        content = self.server.commits[repository][commit].get(name)
        if content is None:
            return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        return self.answer(200, content, ETag=etag, X_Repo_Commit=commit)

    do_HEAD = do_GET  # noqa: N815

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        assert hashlib.sha256(content).hexdigest() == self.path.rsplit("/", 1)[1]
        self.server.large[self.path.rsplit("/", 1)[1]] = content
        self.answer(200)

    def do_POST(self) -> None:  # noqa: PLR0911
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = unquote(urlsplit(self.path).path).strip("/")
        if self.headers.get("Authorization") != "Bearer secret" and not path.startswith("api/validate-yaml"):
            return self.answer(401, {"error": "Invalid username or password."})
        if path == "api/repos/create":
            asked = json.loads(body)
            repository = f"{asked['organization']}/{asked['name']}"
            if repository in self.server.commits:
                return self.answer(409, {"url": f"{self.server.endpoint}/{repository}"})
            self.server.put(repository, "main", {})
            return self.answer(200, {"url": f"{self.server.endpoint}/{repository}"})
        if path == "api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if path.endswith("info/lfs/objects/batch"):
            objects = [
                {**o, "actions": {"upload": {"href": f"{self.server.endpoint}/large/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            return self.answer(200, {"transfer": "basic", "objects": objects})
        _, _, *name, what, revision = path.split("/")
        repository = "/".join(name)
        if what == "branch":
            self.server.branches[repository].setdefault(revision, self.server.branches[repository]["main"])
            return self.answer(200)
        if what == "preupload":
            asked = json.loads(body)["files"]
            modes = ["lfs" if file["path"].endswith(".safetensors") else "regular" for file in asked]
            files = [
                {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
                for file, mode in zip(asked, modes, strict=True)
            ]
            return self.answer(200, {"files": files})
        assert what == "commit"
        files = dict(self.server.files(repository, revision))
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
        commit = self.server.put(repository, revision, files)
        address = f"{self.server.endpoint}/{repository}/commit/{commit}"
        return self.answer(200, {"commitUrl": address, "commitOid": commit})


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    thread = Thread(target=server.serve_forever)
    thread.start()
    template = hub_constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(hub_constants.ENDPOINT, server.endpoint)
    monkeypatch.setattr(hub_constants, "ENDPOINT", server.endpoint)
    monkeypatch.setattr(hub_constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(hub_constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "secret")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def unplug(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the hub a port where nobody listens, and its client's waiting between tries an error."""
    for name in ("ENDPOINT", "HUGGINGFACE_CO_URL_TEMPLATE"):
        value = getattr(hub_constants, name).replace(hub.endpoint, "http://127.0.0.1:9")
        monkeypatch.setattr(hub_constants, name, value)

    def wait(seconds: float) -> None:
        raise AssertionError(f"waited {seconds} s for a hub that is not there")

    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", wait)


def pushed(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_pushed_checkpoint_comes_back_and_grades_the_same(
    hub: Hub, tiny_model: Path, tiny_reranker: Reranker
) -> None:
    address = Checkpoint.load(tiny_model).push_to_hub("shop/products", license="apache-2.0")
    assert address.startswith(f"{hub.endpoint}/shop/products/commit/")
    assert set(hub.files("shop/products")) == {"checkpoint.json", "README.md", *Checkpoint.load(tiny_model).sha256}
    assert hub.large.keys() == {hashlib.sha256(p.read_bytes()).hexdigest() for p in tiny_model.rglob("*.safetensors")}

    fetched = Reranker.from_pretrained("shop/products", engine="torch", device="cpu", precision="float32")
    assert fetched.checkpoint.fingerprint == tiny_reranker.checkpoint.fingerprint
    expected = [(r.index, r.score, r.probabilities) for r in tiny_reranker.rerank("laptop", DOCUMENTS)]
    assert [(r.index, r.score, r.probabilities) for r in fetched.rerank("laptop", DOCUMENTS)] == expected


def test_the_cache_serves_without_a_network(hub: Hub, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.put("shop/products", "main", pushed(tiny_model))
    first = Checkpoint.load("shop/products")
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.requests)
    again = Checkpoint.load("shop/products")
    assert (again.folder, again.fingerprint) == (first.folder, first.fingerprint)
    assert len(hub.requests) == asked
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", False)
    unplug(hub, monkeypatch)
    assert Checkpoint.load("shop/products").folder == first.folder


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub: Hub, tiny_model: Path) -> None:
    files = pushed(tiny_model)
    old = hub.put("shop/products", "main", files)
    manifest = json.loads(files["checkpoint.json"])
    hotter = json.dumps({**manifest, "calibration": {"temperature": 2.0, "novelty_slope": 0.0}}).encode()
    hub.put("shop/products", "main", {**files, "checkpoint.json": hotter})
    hub.put("shop/products", "v1", files)
    now = Checkpoint.load("shop/products")
    assert now.calibration.temperature == 2.0
    for revision in (old, "v1"):
        assert Checkpoint.load("shop/products", revision=revision).calibration.temperature == 1.0
    assert Checkpoint.load("shop/products@v1").calibration.temperature == 1.0
    assert Checkpoint.load(Path("shop/products")).fingerprint == now.fingerprint  # as the command line reads it
    with pytest.raises(InputError, match="names the revision v1, the argument main"):
        Checkpoint.load("shop/products@v1", revision="main")


def test_only_what_the_manifest_names_is_fetched(hub: Hub, tiny_model: Path) -> None:
    hub.put("shop/products", "main", {**pushed(tiny_model), "pytorch_model.bin": b"pickle", "run.py": b"code"})
    folder = Checkpoint.load("shop/products").folder
    assert folder is not None
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
        "checkpoint.json", *Checkpoint.load(tiny_model).sha256,
    }  # fmt: skip
    assert not any(request.endswith((".bin", ".py")) for request in hub.requests)


@pytest.mark.parametrize("name", ["../escape.json", "/etc/escape.json", "weights.bin", "a\\..\\b.json"])
def test_a_manifest_may_not_name_other_files(hub: Hub, tiny_model: Path, name: str) -> None:
    files = pushed(tiny_model)
    manifest = json.loads(files["checkpoint.json"])
    manifest["files"][name] = "0" * 64
    hub.put("shop/products", "main", {**files, "checkpoint.json": json.dumps(manifest).encode(), name: b""})
    with pytest.raises(InputError, match="a checkpoint has"):
        Checkpoint.load("shop/products")


def test_a_file_that_is_not_the_one_that_was_saved(hub: Hub, tiny_model: Path) -> None:
    files = pushed(tiny_model)
    hub.put("shop/products", "main", {**files, "head.safetensors": files["head.safetensors"] + b" "})
    with pytest.raises(InputError, match=r"head.safetensors is not the file that was saved"):
        Checkpoint.load("shop/products")


def test_what_is_not_there_is_said(hub: Hub, tiny_model: Path) -> None:
    hub.put("shop/llm", "main", {"config.json": b"{}"})
    hub.put("shop/products", "main", pushed(tiny_model))
    with pytest.raises(InputError, match="shop/nothing: neither a folder here, nor a model on the hub"):
        Checkpoint.load("shop/nothing")
    with pytest.raises(InputError, match="no such revision"):
        Checkpoint.load("shop/products", revision="v9")
    with pytest.raises(InputError, match="no checkpoint of darl-rerank"):
        Checkpoint.load("shop/llm")
    with pytest.raises(InputError, match=r"a revision \(v1\) is of a model on the hub"):
        Checkpoint.load(tiny_model, revision="v1")


def test_without_a_network(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DarlRerankError, match=r"nor in the hub's cache, .*offline mode"):
        Checkpoint.load("shop/products")
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", False)
    unplug(hub, monkeypatch)
    with pytest.raises(DarlRerankError, match=r"nor in the hub's cache, and the hub was not reached \(.*refused"):
        Checkpoint.load("shop/products")
    result = CliRunner().invoke(cli, ["init", "new", "--base", "shop/llm"])
    assert result.exit_code == 3
    assert "the tokenizer of shop/llm could not be loaded" in result.output
    result = CliRunner().invoke(cli, ["push", "shop/products", "shop/other"])
    assert result.exit_code == 1
    assert "the hub was not reached" in result.output
    assert result.output.count("\n") == 1


def test_push_on_the_command_line(hub: Hub, tiny_model: Path) -> None:
    arguments = ["push", str(tiny_model), "shop/products", "--license", "mit", "--revision", "next", "--private"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    commit = hub.branches["shop/products"]["next"]
    assert result.stdout.strip() == f"{hub.endpoint}/shop/products/commit/{commit}"
    assert hub.files("shop/products", "main") == {}
    data = ModelCard(hub.files("shop/products", "next")["README.md"].decode()).data
    assert (data.license, data.library_name, data.pipeline_tag) == ("mit", "darl-rerank", "text-ranking")


def test_what_may_not_be_pushed(hub: Hub, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint.load(tiny_model)
    with pytest.raises(InputError, match="was not saved"):
        checkpoint.replace(folder=None).push_to_hub("shop/products")
    copy = Path(shutil.copytree(tiny_model, tmp_path / "copy"))
    changed = Checkpoint.load(copy)
    (copy / "head.safetensors").write_bytes(b"changed")
    with pytest.raises(InputError, match=r"head.safetensors is not the file that was saved"):
        changed.push_to_hub("shop/products")
    monkeypatch.setenv("HF_TOKEN", "wrong")
    with pytest.raises(DarlRerankError, match=r"refused \(401\): Invalid username or password.*hf auth login"):
        checkpoint.push_to_hub("shop/products")
    assert hub.commits == {}


def test_a_base_model_of_this_machine_is_not_pushed(hub: Hub, tiny_model: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.load(tiny_model)
    folder = Path(shutil.copytree(tiny_model, tmp_path / "copy"))
    shutil.rmtree(folder / "model")
    base = checkpoint.replace(base=type(checkpoint.base)(str(tiny_model / "model")), folder=folder)
    kept = {name: digest for name, digest in checkpoint.sha256.items() if not name.startswith("model/")}
    with pytest.raises(InputError, match="a folder of this machine"):
        base.replace(sha256=kept).push_to_hub("shop/products")


def test_the_card_has_what_the_hub_reads(tiny_model: Path) -> None:
    checkpoint = Checkpoint.load(tiny_model)
    recipe = {"sources": [{"name": "clicks", "use": "train"}, {"name": "judged", "use": "test"}]}
    stages = {"evaluate": {"groups": {"judged": {"measures": {"qwk": {"value": 0.41}, "ece": {"value": None}}}}}}
    trained = checkpoint.replace(provenance={"recipe": recipe, "stages": stages})
    data = ModelCard(trained.card("# Products\n")).data
    assert (data.datasets, data.base_model, data.base_model_relation) == (["clicks"], "tiny-random-llama", "finetune")
    for precision, kind in (("float32", "finetune"), ("int4", "quantized")):
        exported = trained.replace(export=ExportRecord(precision))
        assert ModelCard(exported.card()).data.base_model_relation == kind
    assert ModelCard(Checkpoint.load("smollm2-darl").card("# Shipped\n")).data.base_model_relation == "adapter"
    assert [(r.dataset_name, r.metric_type, r.metric_value) for r in data.eval_results] == [("judged", "qwk", 0.41)]
    given = ModelCard(card_metadata(checkpoint, "finetune", figures=[Figure("trec-dl-2019", "ndcg_at_10", 0.66556)]))
    assert given.data.to_dict()["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.6656
    assert checkpoint.card("---\nlicense: mit\n---\n# Mine\n") == "---\nlicense: mit\n---\n# Mine\n"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("org/name", ("org/name", None)),
        ("org/name@v1.0", ("org/name", "v1.0")),
        ("name", None),
        ("./org/name", None),
        ("/org/name", None),
        ("a/b/c", None),
        ("org/na me", None),
    ],
)
def test_which_names_are_of_the_hub(name: str, expected: tuple[str, str | None] | None) -> None:
    assert hub_reference(name) == expected
