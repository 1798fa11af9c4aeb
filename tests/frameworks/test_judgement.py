"""What the adapters share."""

from __future__ import annotations

import json
from importlib import metadata, reload

import pytest
from darl_rerank.adapters import judgement as shared

from darl_rerank import Reranker
from darl_rerank.errors import MissingDependencyError, OutdatedDependencyError
from darl_rerank.results import RankedDocument

ADAPTERS = ["langchain", "llama_index", "haystack", "pyterrier", "lancedb", "mteb"]


def test_a_judgement_has_the_servers_names(tiny_reranker: Reranker, ranking: list[RankedDocument]) -> None:
    said = shared.judgement(ranking[0], tiny_reranker.scale)
    assert said["relevance_score"] == ranking[0].score / 3  # the largest gain of the scale trec4
    assert said["expected_gain"] == ranking[0].score
    assert (said["grade"], said["grade_name"]) == (ranking[0].grade, ranking[0].grade_name)
    assert said["probabilities"] == list(ranking[0].probabilities)
    assert {"novelty", "truncated", "judged", "reason"} <= said.keys()
    assert json.loads(json.dumps(said)) == said


def test_what_was_not_judged_has_no_relevance(tiny_reranker: Reranker) -> None:
    last = tiny_reranker.rerank("cats", ["a cat", ""])[-1]
    said = shared.judgement(last, tiny_reranker.scale)
    assert (said["relevance_score"], said["expected_gain"], said["judged"]) == (0.0, None, False)
    assert said["reason"] == "is empty"


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_older_framework_is_named_with_its_version(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = __import__(f"darl_rerank.adapters.{name}", fromlist=[name])
    extra = name.replace("_", "-")
    monkeypatch.setattr(shared, "version", lambda distribution: "0.0.7")
    with pytest.raises(
        OutdatedDependencyError, match=r" 0\.0\.7 is installed, but at least .*pip install -U"
    ) as caught:
        reload(module)
    assert f"'darl-rerank[{extra}]'" in str(caught.value)

    def missing(distribution: str) -> str:
        raise metadata.PackageNotFoundError(distribution)

    monkeypatch.setattr(shared, "version", missing)
    with pytest.raises(MissingDependencyError, match=f"but not installed: pip install .*{extra}"):
        reload(module)


@pytest.mark.parametrize(
    ("found", "at_least", "enough"),
    [("1.10.0", "1.9", True), ("1.9", "1.10.0", False), ("2.0.0rc1", "2.0.0", True), ("0.14.25", "0.14.25", True)],
)
def test_versions_are_compared_by_number(
    found: str, at_least: str, enough: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "version", lambda distribution: found)
    if enough:
        shared.require("anything", "any", at_least)
    else:
        with pytest.raises(OutdatedDependencyError):
            shared.require("anything", "any", at_least)
