"""`darl-rerank rerank` on a small run: outputs, bad input, and kills."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from darl_rerank import Checkpoint, Reranker
from darl_rerank.cli import cli
from darl_rerank.model.reach import Reach
from darl_rerank.trec.corpora import Document
from darl_rerank.trec.runs import read_run, write_run

QUERIES = {"q1": "toner cartridge", "q2": "power supply", "q3": "printing paper", "q4": "battery", "q5": "laptop bag"}
DEPTH = 12


@pytest.fixture
def job(tmp_path: Path, products: list[Document]) -> dict[str, Path]:
    """A run of five queries, their topics and a corpus that has more than the run needs."""
    paths = {name: tmp_path / name for name in ("run.trec", "topics.tsv", "corpus.jsonl.gz", "out.trec")}
    rows = {qid: products[10 * i : 10 * i + DEPTH] for i, qid in enumerate(QUERIES)}
    write_run(paths["run.trec"], {q: [(d.docid, 20.0 - i) for i, d in enumerate(ds)] for q, ds in rows.items()}, "x")
    paths["topics.tsv"].write_text("".join(f"{qid}\t{text}\n" for qid, text in QUERIES.items()), "utf-8")
    with gzip.open(paths["corpus.jsonl.gz"], "wt", encoding="utf-8") as stream:
        for product in products:
            stream.write(json.dumps({"id": product.docid, "title": product.title, "text": product.text}) + "\n")
    return paths


def words(job: dict[str, Path], tiny_model: Path, *more: object) -> list[str]:
    files = [job["run.trec"], job["topics.tsv"], job["out.trec"], "--corpus", job["corpus.jsonl.gz"]]
    return ["rerank", *map(str, (*files, "--model", tiny_model, "--precision", "float32", *more))]


def call(job: dict[str, Path], tiny_model: Path, *more: object) -> Result:
    return CliRunner().invoke(cli, words(job, tiny_model, *more))


def test_the_run_is_what_the_reranker_says(
    job: dict[str, Path], tiny_model: Path, tiny_reranker: Reranker, products: list[Document]
) -> None:
    details = job["out.trec"].with_suffix(".jsonl")
    result = call(job, tiny_model, "--details", details, "--tag", "mine", "--top-k", 7)
    assert result.exit_code == 0, result.output
    texts = {product.docid: product.full_text for product in products}
    before, after = read_run(job["run.trec"]), read_run(job["out.trec"])
    lines = [json.loads(line) for line in details.read_text("utf-8").splitlines()]
    assert {line.split()[-1] for line in job["out.trec"].read_text("utf-8").splitlines()} == {"mine"}
    assert list(after) == list(QUERIES)
    for qid, query in QUERIES.items():
        docids = [entry.docid for entry in before[qid]]
        expected = tiny_reranker.rerank(query, [texts[docid] for docid in docids], top_k=7)
        assert [entry.docid for entry in after[qid]] == [docids[ranked.index] for ranked in expected]
        own = [line for line in lines if line["qid"] == qid]
        assert [line["score"] for line in own] == pytest.approx([ranked.score for ranked in expected], abs=1e-6)
        assert [tuple(line["probabilities"]) for line in own] == [
            pytest.approx(ranked.probabilities, abs=1e-6) for ranked in expected
        ]
    assert not list(job["out.trec"].parent.glob("*.journal"))


def test_depth_leaves_the_rest_out(job: dict[str, Path], tiny_model: Path) -> None:
    assert call(job, tiny_model, "--depth", 4).exit_code == 0
    before, after = read_run(job["run.trec"]), read_run(job["out.trec"])
    for qid, entries in after.items():
        assert {entry.docid for entry in entries} == {entry.docid for entry in before[qid][:4]}


def test_what_is_not_judged_keeps_its_order_behind(job: dict[str, Path], tiny_model: Path, tmp_path: Path) -> None:
    Checkpoint.load(tiny_model).replace(reach=Reach(-9.0, 0.0, 0.5)).save(tmp_path / "model")
    assert call(job, tmp_path / "model", "--depth", 10, "--top-k", 5).exit_code == 0
    best = read_run(job["out.trec"])
    result = call(job, tmp_path / "model", "--depth", "auto", "--json")
    assert result.exit_code == 0, result.output
    before, after = read_run(job["run.trec"]), read_run(job["out.trec"])
    assert json.loads(result.stdout)["not_judged"] == sum(len(entries) - 10 for entries in before.values())
    for qid, entries in after.items():
        docids = [entry.docid for entry in entries]
        assert docids[:5] == [entry.docid for entry in best[qid]]
        assert docids[10:] == [entry.docid for entry in before[qid]][10:]


def test_a_budget_that_suffices_changes_nothing(job: dict[str, Path], tiny_model: Path) -> None:
    assert call(job, tiny_model).exit_code == 0
    plain = {qid: [entry.docid for entry in entries] for qid, entries in read_run(job["out.trec"]).items()}
    result = call(job, tiny_model, "--budget-ms", 1e6)
    assert result.exit_code == 0, result.output
    assert {qid: [e.docid for e in entries] for qid, entries in read_run(job["out.trec"]).items()} == plain


def test_both_orders_are_fused(job: dict[str, Path], tiny_model: Path) -> None:
    details = job["out.trec"].with_suffix(".jsonl")
    assert call(job, tiny_model, "--depth", 6).exit_code == 0
    first, second = read_run(job["run.trec"]), read_run(job["out.trec"])
    result = call(job, tiny_model, "--depth", 6, "--fuse", "--top-k", 4, "--details", details)
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in details.read_text("utf-8").splitlines()]
    changed = 0
    for qid, entries in read_run(job["out.trec"]).items():
        places = [[entry.docid for entry in run[qid]] for run in (first, second)]
        # The formula, not the library's: 1 / (60 + place) from each; sorting keeps the first stage's order in ties.
        scores = {docid: sum(1 / (61 + order.index(docid)) for order in places) for docid in places[1]}
        expected = sorted(places[0][:6], key=lambda docid: -round(scores[docid], 12))[:4]
        assert [entry.docid for entry in entries] == expected
        assert [entry.score for entry in entries] == pytest.approx([scores[docid] for docid in expected], abs=5e-6)
        own = [line for line in lines if line["qid"] == qid]
        assert [(line["docid"], line["rank"]) for line in own] == list(zip(expected, range(1, 5), strict=True))
        judged = {entry.docid: entry.score for entry in second[qid]}
        assert [line["score"] for line in own] == pytest.approx([judged[docid] for docid in expected], abs=2e-6)
        changed += expected not in (places[0][:4], places[1][:4])
    assert changed


def test_scores_are_fused_and_low_grades_left_out(
    job: dict[str, Path], tiny_model: Path, tiny_reranker: Reranker, products: list[Document]
) -> None:
    result = call(job, tiny_model, "--fuse", "auto", "--min-grade", "related", "--top-k", 3, "--json")
    assert result.exit_code == 0, result.output
    texts = {product.docid: product.full_text for product in products}
    cut = 0
    after = read_run(job["out.trec"])
    for qid, entries in read_run(job["run.trec"]).items():
        documents = [{"id": entry.docid, "text": texts[entry.docid], "score": entry.score} for entry in entries]
        expected = tiny_reranker.rerank(QUERIES[qid], documents, fuse="auto", min_grade="related")
        assert [entry.docid for entry in after.get(qid, [])] == [ranked.docid for ranked in expected[:3]]
        assert [entry.score for entry in after.get(qid, [])] == pytest.approx([r.fused for r in expected[:3]], abs=2e-5)
        cut += expected.cut
    assert json.loads(result.stdout)["cut"] == cut


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--cut", "recall 0.9 of relevant"], 3, "the checkpoint has no cut 'recall 0.9 of relevant'"),
        (["--min-grade", "superb"], 3, "no grade 'superb'"),
        (["--min-probability", "0.5"], 3, "give min_grade too"),
        (["--prevalence", "a,b"], 2, "expected numbers with commas"),
        (["--fuse", "sum"], 2, "'sum' is not one of 'auto', 'rrf'"),
    ],
)
def test_rules_that_are_none_are_refused(
    job: dict[str, Path], tiny_model: Path, options: list[str], code: int, said: str
) -> None:
    result = call(job, tiny_model, *options)
    assert result.exit_code == code
    assert said in " ".join(result.output.split())


@pytest.mark.parametrize("kill_at", [1, 2, 4])
def test_a_killed_job_ends_with_the_same_bytes(
    job: dict[str, Path], tiny_model: Path, products: list[Document], kill_at: int
) -> None:
    details = job["out.trec"].with_suffix(".jsonl")
    command = words(job, tiny_model, "--details", details)
    assert CliRunner().invoke(cli, command).exit_code == 0
    whole = job["out.trec"].read_bytes(), details.read_bytes()
    job["out.trec"].unlink()
    details.unlink()
    # The killed process stops for good after `kill_at` queries, at the moment when one is in the journal.
    script = (
        "import os, signal, sys\n"
        "from darl_rerank.trec.journal import Journal\n"
        "append = Journal.append\n"
        "def stop(self, qid, result):\n"
        "    append(self, qid, result)\n"
        f"    if len(self.finished) == {kill_at}: os.kill(os.getpid(), signal.SIGKILL)\n"
        "Journal.append = stop\n"
        "from darl_rerank.cli import main\n"
        "main()\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, *command], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert not job["out.trec"].exists()
    journal = job["out.trec"].with_name("out.trec.journal")
    # What a machine that loses power can leave: a torn last line.
    with journal.open("ab") as stream:
        stream.write(b'deadbeef {"qid": "q5", "res')
    resumed = CliRunner().invoke(cli, command)
    assert resumed.exit_code == 0, resumed.output
    assert (job["out.trec"].read_bytes(), details.read_bytes()) == whole
    assert not journal.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_says_so_and_keeps_the_journal(
    job: dict[str, Path], tiny_model: Path, number: signal.Signals
) -> None:
    main = "from darl_rerank.cli import main; main()"
    # A shell that runs tests in the background has its children ignore SIGINT.
    slow = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    slow += "import time; from darl_rerank.reranker import Reranker; old = Reranker.rerank\n"
    slow += "Reranker.rerank = lambda *a, **k: (time.sleep(0.5), old(*a, **k))[1]\n"
    process = subprocess.Popen(
        [sys.executable, "-c", slow + main, *words(job, tiny_model)], stderr=subprocess.PIPE, env=dict(os.environ)
    )
    journal = job["out.trec"].with_name("out.trec.journal")
    while process.poll() is None and not (journal.exists() and len(journal.read_bytes().splitlines()) >= 2):
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors.decode()
    assert b"Traceback" not in errors
    assert b"Interrupted" in errors
    assert journal.exists()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("run.trec", "q1 Q0 d1 1 2.0\n", "run.trec:1: expected 6 columns"),
        ("run.trec", "q1 Q0 1001500 1 nan x\n", "run.trec:1: expected a finite number as score, found 'nan'"),
        ("run.trec", "q1 Q0 a 1 2 x\nq1 Q0 a 2 1 x\n", "run.trec:2: document a is listed twice for query q1"),
        ("run.trec", "q9 Q0 1001500 1 2.0 x\n", "1 queries of the run have no topic: q9"),
        ("run.trec", "q1 Q0 nowhere 1 2.0 x\n", "1 documents of the run are not in the corpus or are empty there"),
        ("topics.tsv", "q1\t  \n", "topics.tsv:1: query q1 is empty"),
        ("topics.tsv", "q1 toner\n", "topics.tsv:1: expected a query id, a tab and the query"),
        ("corpus.jsonl.gz", "\x00\x01binary", "corpus.jsonl.gz:1: expected text, found binary data"),
        ("corpus.jsonl.gz", '{"id": "1"\n', "corpus.jsonl.gz:1: expected a JSON object"),
    ],
)
def test_bad_files_are_named_and_nothing_is_written(
    job: dict[str, Path], tiny_model: Path, name: str, text: str, message: str
) -> None:
    job[name].write_text(text, "utf-8")
    before = set(job["out.trec"].parent.iterdir())
    result = call(job, tiny_model)
    assert result.exit_code == 3, result.output
    assert message in result.stderr
    assert set(job["out.trec"].parent.iterdir()) == before


def test_a_truncated_gzip_is_named(job: dict[str, Path], tiny_model: Path) -> None:
    data = job["corpus.jsonl.gz"].read_bytes()
    # Cut where documents of the run are still to come.
    job["corpus.jsonl.gz"].write_bytes(data[: len(data) // 8])
    result = call(job, tiny_model)
    assert result.exit_code == 3
    assert "the gzip file is cut short or broken" in result.stderr


def test_missing_documents_can_be_skipped(job: dict[str, Path], tiny_model: Path) -> None:
    with job["run.trec"].open("a", encoding="utf-8") as stream:
        stream.write("q1 Q0 nowhere 99 0.5 x\n")
    result = call(job, tiny_model, "--missing", "skip")
    assert result.exit_code == 0
    assert "1 documents without text were left out" in result.stderr
    assert "nowhere" not in {entry.docid for entry in read_run(job["out.trec"])["q1"]}


def test_topics_without_documents_are_counted(job: dict[str, Path], tiny_model: Path) -> None:
    with job["topics.tsv"].open("a", encoding="utf-8") as stream:
        stream.write("q8\tunused\n")
    result = call(job, tiny_model)
    assert result.exit_code == 0
    assert "1 topics have no documents in the run" in result.stderr


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--precision", "int3"], "no precision 'int3'"),
        (["--device", "cuda:9"], "cuda:9"),
        (["--model", "nowhere"], "nowhere: expected a checkpoint folder"),
        (["--tag", "two words"], "tag 'two words' can't stand in a run"),
    ],
)
def test_bad_options(job: dict[str, Path], tiny_model: Path, more: list[str], message: str) -> None:
    result = call(job, tiny_model, *more)
    assert result.exit_code == 3, result.output
    assert message in result.stderr
    assert "reranking" not in result.stderr
    assert not list(job["out.trec"].parent.glob("out.trec*"))


@pytest.mark.parametrize("option", ["--top-k", "--depth"])
def test_a_number_out_of_its_range_is_bad_usage(job: dict[str, Path], tiny_model: Path, option: str) -> None:
    result = call(job, tiny_model, option, 0)
    assert result.exit_code == 2
    assert f"Invalid value for '{option}'" in result.output


def test_lines_of_the_corpus_that_are_no_documents_cost_nothing(job: dict[str, Path], tiny_model: Path) -> None:
    with gzip.open(job["corpus.jsonl.gz"], "rt", encoding="utf-8") as stream:
        lines = stream.read().splitlines()
    first = json.loads(lines[0])
    lines[0] = json.dumps({**first, "text": first["text"] + " \ud83d"})
    with gzip.open(job["corpus.jsonl.gz"], "wt", encoding="utf-8") as stream:
        stream.write("\n".join(["{broken", '{"id": "x", "text": 3}', *lines]))
    details = job["out.trec"].with_suffix(".jsonl")
    result = call(job, tiny_model, "--details", details, "--json")
    assert result.exit_code == 0, result.output
    assert "Warning: 2 lines of the corpus are no documents; the first: " in result.stderr
    assert "corpus.jsonl.gz:1: expected a JSON object" in result.stderr
    summary = json.loads(result.stdout)
    assert (summary["queries"], summary["documents"], summary["skipped"]) == (5, 5 * DEPTH, [])
    assert len(details.read_text("utf-8").splitlines()) == 5 * DEPTH


def test_fusion_needs_no_adapters(job: dict[str, Path], tiny_model: Path) -> None:
    # As a Python finds the package that starts in the repository's root and has a regular install: without adapters.
    script = "import sys; sys.modules['darl_rerank.adapters'] = None\nfrom darl_rerank.cli import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", script, *words(job, tiny_model, "--fuse")], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert len(read_run(job["out.trec"])) == len(QUERIES)


def test_a_journal_of_another_job_is_refused(job: dict[str, Path], tiny_model: Path) -> None:
    journal = job["out.trec"].with_name("out.trec.journal")
    script = (
        "from darl_rerank.trec.journal import Journal; import os; append = Journal.append\n"
        "Journal.append = lambda *a: (append(*a), os._exit(9))\n"
        "from darl_rerank.cli import main; main()\n"
    )
    subprocess.run([sys.executable, "-c", script, *words(job, tiny_model)], capture_output=True, check=False)
    assert journal.exists()
    result = call(job, tiny_model, "--top-k", 3)
    assert result.exit_code == 3
    assert "is the journal of another job: top_k was None, now 3" in result.stderr
    assert call(job, tiny_model, "--top-k", 3, "--restart").exit_code == 0
    assert not journal.exists()


def test_a_document_of_a_hundred_thousand_words(job: dict[str, Path], tiny_model: Path) -> None:
    first = read_run(job["run.trec"])["q1"][0].docid
    with gzip.open(job["corpus.jsonl.gz"], "rt", encoding="utf-8") as stream:
        lines = [json.loads(line) for line in stream]
    for values in lines:
        if values["id"] == first:
            values["text"] = "word " * 100_000
    with gzip.open(job["corpus.jsonl.gz"], "wt", encoding="utf-8") as stream:
        stream.writelines(json.dumps(values) + "\n" for values in lines)
    details = job["out.trec"].with_suffix(".jsonl")
    assert call(job, tiny_model, "--details", details).exit_code == 0
    cut = {v["docid"] for v in map(json.loads, details.read_text("utf-8").splitlines()) if v["truncated"]}
    assert cut == {first}


def test_a_full_disk_is_one_clear_error(job: dict[str, Path], tiny_model: Path) -> None:
    # RLIMIT_FSIZE makes every write past a few hundred bytes fail, as a disk without room does.
    script = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from darl_rerank.cli import main\n"
        "import darl_rerank.offline as offline\n"
        "lines = offline.Written.run_lines\n"
        "def full(*arguments):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))\n"
        "    return lines(*arguments)\n"
        "offline.Written.run_lines = full\n"
        "main()\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, *words(job, tiny_model)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1, result.stderr
    assert "could not be written" in result.stderr
    assert "Traceback" not in result.stderr
    assert not job["out.trec"].exists()
    # The work is not lost: with room again the same command has only to write.
    assert call(job, tiny_model).exit_code == 0


@pytest.mark.parametrize("which", ["output", "details"])
def test_a_folder_in_the_place_of_an_output_is_found_before_the_work(
    job: dict[str, Path], tiny_model: Path, tmp_path: Path, which: str
) -> None:
    (tmp_path / "folder").mkdir()
    if which == "output":
        job["out.trec"] = tmp_path / "folder"
    result = call(job, tiny_model, *(["--details", tmp_path / "folder"] if which == "details" else []))
    assert result.exit_code == 3
    assert "folder: is a folder, expected the name of a file to write" in result.stderr
    assert "reranking" not in result.stderr
    assert not list(tmp_path.glob("*.journal"))


@pytest.mark.parametrize("name", ["run.trec", "topics.tsv", "corpus.jsonl.gz"])
def test_no_input_is_overwritten(job: dict[str, Path], tiny_model: Path, name: str) -> None:
    before = job[name].read_bytes()
    for result in (call({**job, "out.trec": job[name]}, tiny_model), call(job, tiny_model, "--details", job[name])):
        assert result.exit_code == 3
        assert f"{name}: is read by this command, too" in result.output
        assert job[name].read_bytes() == before
