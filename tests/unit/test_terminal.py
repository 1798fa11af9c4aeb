"""What commands show: notes, warnings, tables and JSON, on a terminal and in a file."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from darl_rerank.cli import cli
from darl_rerank.cli.terminal import add_quiet, logging_on_stderr, print_json, print_table
from darl_rerank.errors import InputError
from darl_rerank.files import check_output_folder
from darl_rerank.progress import progress_bar


def leaves(group: click.Group) -> dict[str, click.Command]:
    found = {}
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        assert command is not None
        found.update(leaves(command) if isinstance(command, click.Group) else {name: command})
    return found


def test_every_command_has_json_and_quiet() -> None:
    commands = leaves(cli)
    assert len(commands) >= 12
    for name, command in commands.items():
        options = {option for parameter in command.params for option in parameter.opts}
        assert "--quiet" in options, name
        # A server's results are its answers.
        assert "--json" in options or name == "serve", name


def test_warnings_of_python_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with logging_on_stderr():
        warnings.warn("3 pairs are judged twice", stacklevel=1)
        logging.getLogger("darl_rerank.trec").info("a note")
        logging.getLogger("somebody.else").info("not ours")
    assert capsys.readouterr().err == "Warning: 3 pairs are judged twice\na note\n"
    before = len(logging.getLogger("darl_rerank").handlers)
    with logging_on_stderr():
        pass
    assert len(logging.getLogger("darl_rerank").handlers) == before


def test_a_library_that_sets_up_logging_makes_nothing_come_twice(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handler = logging.StreamHandler()
    root.addHandler(handler)
    try:
        with logging_on_stderr():
            logging.getLogger("darl_rerank.cli").error("nowhere: no such file")
    finally:
        root.removeHandler(handler)
    assert capsys.readouterr().err == "Error: nowhere: no such file\n"


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["rerank", "a", "b", "c", "--depth", "0"], "--depth"),
        (["select", "out", "--labelled", "x", "--pool", "y", "--budget", "0"], "--budget"),
        (["select", "out", "--labelled", "x", "--pool", "y", "--budget", "1", "--per-query", "-1"], "--per-query"),
        (["select", "out", "--labelled", "x", "--pool", "y", "--budget", "1", "--held-out", "1"], "--held-out"),
        (["select", "out", "--labelled", "x", "--pool", "y", "--budget", "1", "--band", "90", "80"], "--band"),
        (["train", "--pairs", "x", "--output", "y", "--epochs", "0"], "--epochs"),
        (["train", "--pairs", "x", "--output", "y", "--loss", "mse"], "--loss"),
    ],
)
def test_errors_name_options_as_they_are_typed(words: list[str], option: str) -> None:
    result = CliRunner().invoke(cli, words, standalone_mode=True)
    assert result.exit_code == 2
    assert f"Invalid value for {option}:" in result.output.replace("'", "")


def test_what_is_there_is_kept_unless_overwrite_is_typed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="already exists; choose another folder, or --overwrite"):
        check_output_folder(tmp_path, overwrite=False)


def test_evaluate_warns_without_a_source_line(tmp_path: Path) -> None:
    (tmp_path / "qrels").write_text("q 0 d 1\nq 0 d 2\n")
    (tmp_path / "run").write_text("q Q0 d 1 1.0 x\n")
    result = CliRunner().invoke(cli, ["evaluate", str(tmp_path / "qrels"), str(tmp_path / "run"), "-m", "nDCG@10"])
    assert result.exit_code == 0
    assert result.stderr == (
        f"Warning: {tmp_path}/qrels: 1 pairs are judged twice with different grades; the higher counts\n"
    )


def test_quiet_leaves_results_and_warnings() -> None:
    @click.command()
    def work() -> None:
        log = logging.getLogger("darl_rerank.work")
        log.info("a note")
        log.warning("a warning")
        with progress_bar("working", 1, unit="doc") as bar:
            bar.update()
        click.echo("a result")

    add_quiet(work)
    with logging_on_stderr():
        loud, quiet = CliRunner().invoke(work), CliRunner().invoke(work, ["--quiet"])
    assert "a note" in loud.stderr
    assert "working: 1 doc" in loud.stderr
    assert quiet.stderr == "Warning: a warning\n"
    assert quiet.stdout == loud.stdout == "a result\n"


HEADER = ["run", "nDCG@10", "RR@10", "AP", "R@100"]
ROWS = [["first.trec", "0.5123", "0.7001", "0.3456", "0.4567"], ["2nd", "0.6", "0.7", "0.3", "0.4"]]


def test_a_table_in_a_file_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(HEADER, ROWS)
    assert capsys.readouterr().out == (
        "run         nDCG@10   RR@10      AP   R@100\n"
        "first.trec   0.5123  0.7001  0.3456  0.4567\n"
        "2nd             0.6     0.7     0.3     0.4\n"
    )


def on_a_narrow_terminal(*arguments: object) -> list[str]:
    """The lines of `print_table` on a terminal of 30 columns."""
    import pty

    main, other = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "30", "NO_COLOR": "1"}
    script = f"from darl_rerank.cli.terminal import print_table; print_table(*{arguments[:2]}, left={arguments[2]})"
    subprocess.run([sys.executable, "-c", script], stdout=other, env=environment, check=True)
    os.close(other)
    lines = os.read(main, 65536).decode().replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines()
    os.close(main)
    return lines


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_terminal_that_is_too_narrow_gets_the_columns_in_two_tables() -> None:
    lines = on_a_narrow_terminal(HEADER, ROWS, (0,))
    assert [line.split() for line in lines] == [
        ["run", "nDCG@10", "RR@10"], ["first.trec", "0.5123", "0.7001"], ["2nd", "0.6", "0.7"], [],
        ["run", "AP", "R@100"], ["first.trec", "0.3456", "0.4567"], ["2nd", "0.3", "0.4"],
    ]  # fmt: skip
    assert max(map(len, lines)) <= 30


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_prose_in_a_narrow_table_goes_on_in_the_next_line() -> None:
    rows = [["novel", "above the labelled set's 80th percentile"], ["chosen", "of 10 queries"]]
    lines = on_a_narrow_terminal(["", "what it is"], rows, (0, 1))
    assert max(map(len, lines)) <= 30
    assert " ".join(" ".join(lines).split()) == (
        "what it is novel above the labelled set's 80th percentile chosen of 10 queries"
    )


def test_json_is_read_back_whatever_the_terminal_can_write(monkeypatch: pytest.MonkeyPatch) -> None:
    script = "from darl_rerank.cli.terminal import print_json; print_json({'text': 'Zürich … \\U0001f600'})"
    for encoding in ("utf-8", "ascii"):
        result = subprocess.run(
            [sys.executable, "-c", script], env={**os.environ, "PYTHONIOENCODING": encoding}, capture_output=True,
            check=True,
        )  # fmt: skip
        assert json.loads(result.stdout) == {"text": "Zürich … \U0001f600"}
    assert callable(print_json)


def test_a_character_that_the_terminal_lacks_costs_only_itself(tmp_path: Path) -> None:
    (tmp_path / "qrels").write_text("q 0 d 1\n")
    (tmp_path / "zürich.trec").write_text("q Q0 d 1 1.0 x\n")
    command = [sys.executable, "-m", "darl_rerank.cli", "evaluate", "qrels", "zürich.trec", "-m", "nDCG@10"]
    result = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[1].split() == ["z?rich.trec", "1.0000"]


@pytest.mark.parametrize(("shell", "words", "expected"), [
    ("bash", {"COMP_WORDS": "darl-rerank re", "COMP_CWORD": "1"}, "plain,rerank"),
    ("zsh", {"COMP_WORDS": "darl-rerank index l", "COMP_CWORD": "2"}, "lucene"),
    ("fish", {"COMP_WORDS": "darl-rerank rerank --fu", "COMP_CWORD": "--fu"}, "--fuse"),
    ("bash", {"COMP_WORDS": "darl-rerank rerank bm", "COMP_CWORD": "2"}, "file,bm"),
    ("bash", {"COMP_WORDS": "darl-rerank select --strategy unc", "COMP_CWORD": "3"}, "plain,uncertainty"),
])  # fmt: skip
def test_shells_complete_commands_and_options(shell: str, words: dict[str, str], expected: str) -> None:
    environment = {**os.environ, **words, "_DARL_RERANK_COMPLETE": f"{shell}_complete"}
    script = "import sys; sys.argv[0] = 'darl-rerank'; from darl_rerank.cli import main; main()"
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert expected in result.stdout


def test_a_message_can_not_command_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with logging_on_stderr():
        logging.getLogger("darl_rerank.test").warning("docid \x1b[2J\u202e and\nanother line")
    assert capsys.readouterr().err == "Warning: docid \ufffd[2J\ufffd and\nanother line\n"
