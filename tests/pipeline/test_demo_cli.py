"""`darl-rerank demo` with the tiny model: lists shown, orders compared, a second call with nothing left to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from darl_rerank.cli import cli
from darl_rerank.cli.demo import LISTS
from darl_rerank.trec.runs import read_run


def call(*words: object) -> Result:
    return CliRunner().invoke(cli, ["demo", *map(str, words)])


@pytest.fixture(scope="module")
def demo(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("demo")
    result = call("--model", tiny_model, "--output", folder)
    assert result.exit_code == 0, result.output
    return folder, result.stdout


def test_a_list_of_each_is_shown_before_and_after(demo: tuple[Path, str]) -> None:
    for lists in LISTS:
        first = next(row for row in lists.rows() if row["query"] == lists.shown)["documents"][0]
        assert lists.about in demo[1]
        assert lists.shown in demo[1]
        assert " ".join(first["text"].split())[:40] in demo[1]


def test_three_orders_are_compared(demo: tuple[Path, str], tiny_model: Path) -> None:
    assert demo[1].count("nDCG@10 over 30 queries") == len(LISTS)
    again = call("--model", tiny_model, "--output", demo[0], "--json")
    assert again.exit_code == 0, again.output
    for found in json.loads(again.stdout)["lists"]:
        values = found["nDCG@10"]
        assert {"BM25", "model", "fuse auto"} == set(values)
        assert f"{values['fuse auto']['value']:.3f}" in demo[1]


def test_runs_hold_every_document(demo: tuple[Path, str]) -> None:
    for lists in LISTS:
        run = read_run(demo[0] / f"{lists.name}.trec")
        rows = {row["qid"]: row["documents"] for row in lists.rows()}
        assert {q: {e.docid for e in entries} for q, entries in run.items()} == {
            q: {d["id"] for d in documents} for q, documents in rows.items()
        }


def test_what_ships_are_lists_that_people_judged() -> None:
    for lists in LISTS:
        job, grades = lists.job()
        assert len(job.queries) == len(grades) == 30
        assert any(max(judged.values()) > 0 for judged in grades.values())
        assert all(len(job.candidates[qid]) == len(job.scores[qid]) for qid in job.queries)
