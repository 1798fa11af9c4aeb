from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from darl_rerank.errors import InputError
from darl_rerank.trec.journal import Journal

JOB = {"model": "abc", "depth": 10, "tag": "t"}
RESULT = [{"docid": "d1", "score": 0.1 + 0.2, "title": "ü"}]


def filled(path: Path) -> None:
    with Journal(path, JOB) as journal:
        journal.append("q1", RESULT)
        journal.append("q2", [])


def test_results_come_back_exactly(tmp_path: Path) -> None:
    filled(tmp_path / "j")
    with Journal(tmp_path / "j", JOB) as journal:
        assert journal.finished == {"q1": RESULT, "q2": []}
        journal.append("q3", RESULT)
    with Journal(tmp_path / "j", JOB) as journal:
        assert list(journal.finished) == ["q1", "q2", "q3"]


def test_results_are_read_from_the_file_and_not_held(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", JOB) as journal:
        journal.append("q1", ["x" * 100])
        assert journal.finished["q1"] is not journal.finished["q1"]
        journal.append("q2", "y")
        assert [journal.finished[qid] for qid in ("q2", "q1", "q2")] == ["y", ["x" * 100], "y"]
        journal.append("q3", "z")
        assert "q3" in journal.finished
        (tmp_path / "j").write_bytes((tmp_path / "j").read_bytes().replace(b"xx", b"yy"))
        with pytest.raises(InputError, match="the result of query q1 was changed by another program"):
            _ = journal.finished["q1"]


def test_cut_at_every_byte_it_keeps_the_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "j"
    filled(path)
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        with Journal(path, JOB) as journal:
            assert list(journal.finished) == ["q1", "q2"][: max(0, sum(end <= cut for end in ends) - 1)]
            journal.append("q9", 1)
        with Journal(path, JOB) as journal:
            assert journal.finished["q9"] == 1


def test_a_damaged_line_and_what_follows_is_done_again(tmp_path: Path) -> None:
    path = tmp_path / "j"
    filled(path)
    path.write_bytes(path.read_bytes().replace(b"d1", b"d2"))
    with Journal(path, JOB) as journal:
        assert journal.finished == {}


def test_another_job_is_refused_with_what_differs(tmp_path: Path) -> None:
    filled(tmp_path / "j")
    before = (tmp_path / "j").read_bytes()
    with pytest.raises(InputError, match=r"depth was 10, now 20.*--restart"):
        Journal(tmp_path / "j", {**JOB, "depth": 20})
    assert (tmp_path / "j").read_bytes() == before
    with Journal(tmp_path / "j", {**JOB, "depth": 20}, restart=True) as journal:
        assert journal.finished == {}


def test_where_nothing_is_finished_another_job_may_begin(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", JOB):
        pass
    with Journal(tmp_path / "j", {**JOB, "depth": 20}) as journal:
        journal.append("q1", RESULT)
    with pytest.raises(InputError, match=r"depth was 20, now 10"):
        Journal(tmp_path / "j", JOB)


def test_a_wrong_option_leaves_no_journal(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such grade"), Journal(tmp_path / "j", JOB):
        raise InputError("no such grade")
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_file_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "j"
    path.write_text("my notes\n")
    with pytest.raises(InputError, match="not a journal"):
        Journal(path, JOB)
    assert path.read_text() == "my notes\n"


def test_two_processes_can_not_share_a_journal(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", JOB), pytest.raises(InputError, match="another process"):
        Journal(tmp_path / "j", JOB)


# Writes into argv[1] until the limit on file sizes stops it, as a full disk would.
_FILL = """
import resource, signal, sys
from darl_rerank.errors import DarlRerankError
from darl_rerank.trec.journal import Journal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
try:
    with Journal(sys.argv[1], {}) as journal:
        for number in range(100):
            journal.append(f"q{number}", "x" * 100)
except DarlRerankError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on file sizes")
def test_a_full_disk_is_named_and_what_was_finished_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "j"
    done = subprocess.run([sys.executable, "-c", _FILL, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == f"{path}: could not be written: File too large; what was finished before is kept\n"
    with Journal(path, {}) as journal:
        assert len(journal.finished) > 20
        journal.append("q99", "y")
        assert journal.finished["q99"] == "y"
