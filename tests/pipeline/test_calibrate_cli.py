"""`darl-rerank calibrate`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from darl_rerank import Checkpoint, Reranker
from darl_rerank.cli import cli
from darl_rerank.model.calibration import softmax


def call(*words: object) -> Result:
    return CliRunner().invoke(cli, ["calibrate", *map(str, words)])


@pytest.fixture
def pairs(tiny_reranker: Reranker, tmp_path: Path) -> Path:
    """Pairs with grades drawn from what the model makes of them at temperature 3."""
    rng = np.random.default_rng(1)
    texts = [(f"query {i % 9}", f"document {rng.random()}") for i in range(240)]
    likely = softmax(tiny_reranker.score_pairs(texts).logits.astype(np.float64) / 3)
    lines = [
        {"query": query, "document": document, "grade": int(rng.choice(4, p=p))}
        for (query, document), p in zip(texts, likely, strict=True)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_refitted_temperature_fits_better_and_leaves_the_rest(tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    result = call(tiny_model, pairs, "--output", tmp_path / "new", "--device", "cpu")
    assert result.exit_code == 0, result.output
    before, after = Checkpoint.load(tiny_model), Checkpoint.load(tmp_path / "new")
    assert after.calibration.temperature != before.calibration.temperature
    assert np.array_equal(before.head.weight, after.head.weight)
    old, new = (
        Reranker.from_pretrained(f, engine="torch", device="cpu", precision="float32")
        for f in (tiny_model, tmp_path / "new")
    )
    read = [(v["query"], v["document"], v["grade"]) for v in map(json.loads, pairs.read_text().splitlines())]
    grades = [grade for *_, grade in read]
    nll = [
        -np.log(r.score_pairs([(q, d) for q, d, _ in read]).probabilities[range(240), grades]).mean()
        for r in (old, new)
    ]
    assert nll[1] < nll[0]


def test_biases_bring_the_grades_as_often_as_the_pairs_have_them(tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    read = [json.loads(line) for line in pairs.read_text().splitlines()]
    rare = [{**value, "grade": 0 if i % 2 else value["grade"]} for i, value in enumerate(read)]
    pairs.write_text("".join(json.dumps(value) + "\n" for value in rare))
    result = call(tiny_model, pairs, "--output", tmp_path / "new", "--bias", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "biases +0.00" in result.output
    reranker = Reranker.from_pretrained(tmp_path / "new", engine="torch", device="cpu", precision="float32")
    assert len(reranker.checkpoint.calibration.bias) == 4
    found = reranker.score_pairs([(value["query"], value["document"]) for value in rare]).probabilities.mean(axis=0)
    assert np.allclose(found, np.bincount([value["grade"] for value in rare], minlength=4) / len(rare), atol=0.01)


def test_a_model_without_novelty_gets_it(tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    result = call(tiny_model, pairs, "--output", tmp_path / "new", "--novelty", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert Checkpoint.load(tiny_model).novelty is None
    reranker = Reranker.from_pretrained(tmp_path / "new", engine="torch", device="cpu", precision="float32")
    assert reranker.checkpoint.novelty is not None
    read = [json.loads(line) for line in pairs.read_text().splitlines()]
    known = int(reranker.checkpoint.novelty.settings["training_pairs"])
    assert f"on {len(read) - known} pairs" in result.output
    seen = reranker.score_pairs([(value["query"], value["document"]) for value in read]).novelty
    strange = reranker.score_pairs([("zebra?", "0 1 0 1 0 1 " * 20)] * 3).novelty
    assert seen is not None
    assert strange is not None
    assert strange.min() > np.median(seen)


def test_novelty_needs_more_than_a_few_queries(tiny_model: Path, tmp_path: Path) -> None:
    few = tmp_path / "few.jsonl"
    few.write_text("".join(json.dumps({"query": "a", "document": f"d{i}", "grade": i % 4}) + "\n" for i in range(20)))
    result = call(tiny_model, few, "--output", tmp_path / "new", "--novelty", "--device", "cpu")
    assert result.exit_code == 3
    assert "1 are too few" in result.output


def test_bad_input(tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    one = tmp_path / "one.jsonl"
    one.write_text('{"query": "a", "document": "b", "grade": 1}\n{"query": "a", "document": "c", "grade": 1}\n')
    result = call(tiny_model, one, "--output", new)
    assert result.exit_code == 3
    assert "all 2 pairs have grade related" in result.output
    one.write_text('{"query": "a", "document": "b", "grade": 9}\n')
    assert "outside of the scale 0..3" in call(tiny_model, one, "--output", new).output
    assert not new.exists()
    new.mkdir()
    assert call(tiny_model, pairs, "--output", new).exit_code == 3


def test_a_calibration_that_the_pairs_do_not_determine_is_refused(
    tiny_model: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("darl_rerank.training.model.temperature.TEMPERATURE_BOUNDS", (0.001, 0.01))
    result = call(tiny_model, pairs, "--output", tmp_path / "new", "--device", "cpu")
    assert result.exit_code == 5
    assert "240 pairs do not determine a calibration: the temperature ended at the end of its range" in result.output
    assert not (tmp_path / "new").exists()


def test_cuts_and_grades_are_fitted_stored_and_used(tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    result = call(tiny_model, pairs, "--output", new, "--device", "cpu", "--cut", "recall 0.8 of related", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)["decisions"]
    checkpoint = Checkpoint.load(new)
    (cut,) = checkpoint.decisions.cuts
    assert told["cuts"][0]["promise"] == "recall 0.8 of related"
    assert cut.facts["queries"] == 9
    assert cut.facts["alpha"] == pytest.approx(0.2)
    assert told["grades"]["points"] == list(checkpoint.grade_cuts.points)
    reranker = Reranker.from_pretrained(new, engine="torch", device="cpu", precision="float32")
    documents = [json.loads(line)["document"] for line in pairs.read_text().splitlines()][:30]
    ranking = reranker.rerank("query 3", documents, cut="recall 0.8 of related")
    assert ranking.cut == 30 - len(ranking)
    assert all(sum(r.probabilities[1:]) >= cut.threshold for r in ranking)
    # The shares of what was calibrated on are kept, and calibrating again fits new cuts.
    assert sum(checkpoint.calibration.prevalence) == pytest.approx(1)
    again = call(new, pairs, "--output", tmp_path / "again", "--device", "cpu", "--prevalence", "0.1,0.2,0.3,0.4")
    assert again.exit_code == 0, again.output
    assert Checkpoint.load(tmp_path / "again").decisions.cuts == ()
    assert Checkpoint.load(tmp_path / "again").calibration.prevalence == (0.1, 0.2, 0.3, 0.4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--cut", "recall 0.95 of related"], "9 queries with a relevant document can't promise a recall of 0.95"),
        (["--cut", "precision 0.9 of related"], "it takes 22"),
        (["--cut", "recall 1 of related"], "above 0 and below 1"),
        (["--cut", "recall 0.8 of superb"], "no grade 'superb'"),
        (["--prevalence", "0.5,0.5"], "share of each of the 4 grades"),
        (["--cost", "missing.json"], "can't be read"),
    ],
)  # fmt: skip
def test_decisions_that_cannot_be_fitted_say_why(
    tiny_model: Path, pairs: Path, tmp_path: Path, options: list[str], said: str
) -> None:
    result = call(tiny_model, pairs, "--output", tmp_path / "new", "--device", "cpu", *options)
    assert result.exit_code == 3
    assert said in " ".join(result.output.split())
    assert not (tmp_path / "new").exists()


def test_cuts_of_other_traffic_are_a_contradiction(tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    words = [tiny_model, pairs, "--output", tmp_path / "new", "--cut", "recall 0.8 of related"]
    assert call(*words, "--prevalence", "0.1,0.2,0.3,0.4").exit_code == 2
    assert call(*words, "--traffic", pairs).exit_code == 2
