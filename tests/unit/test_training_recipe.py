"""Recipes: what they mean, and all their faults at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from darl_rerank import Checkpoint
from darl_rerank.cli.train import with_bm25_runs
from darl_rerank.errors import InputError
from darl_rerank.training.recipe.read import read_recipe
from darl_rerank.training.recipe.settings import CalibrateStage, Recipe


@pytest.fixture
def write(tmp_path: Path) -> Path:
    (tmp_path / "pairs.jsonl").write_text('{"query": "q", "document": "d", "grade": 1}\n')
    return tmp_path / "recipe.toml"


def read(path: Path, text: str) -> Recipe:
    path.write_text(text, "utf-8")
    return read_recipe(path)


SOURCE = '[[source]]\nname = "s"\npairs = "pairs.jsonl"\n'


def test_defaults(write: Path) -> None:
    recipe = read(write, SOURCE)
    assert recipe.model.base == "smollm2"
    assert recipe.grades == 4
    assert recipe.sources[0].pairs == write.parent / "pairs.jsonl"
    assert (recipe.probe, recipe.select, recipe.interpolate) == (None, None, None)


def test_a_full_recipe(write: Path) -> None:
    recipe = read(
        write,
        'seed = 5\n[model]\nscale = "ternary"\nmax_length = 96\n'
        + SOURCE
        + "dev_queries = 3\ngrades = { bad = 0, ok = { 1 = 0.5, 2 = 0.5 } }\n"
        + "[source.negatives]\nbm25 = true\ntarget = { 0 = 0.9, 1 = 0.1 }\n"
        + SOURCE.replace('"s"', '"p"')
        + 'use = "pool"\n'
        + '[probe]\n[select]\nbudget = 9\nstrategy = "random"\nlabels = "pool"\nband = [10, 90]\n'
        + '[finetune]\nweights = "all"\nlayers = 2\nloss = "sord"\nreplay = 2\nseeds = [1, 2]\nocc = { rank = 0 }\n'
        + '[interpolate]\nalphas = [0, 0.5]\nchoose_by = "qwk"\n[calibrate]\nnovelty = false\n',
    )
    source = recipe.sources[0]
    assert source.grades == {"bad": 0, "ok": {1: 0.5, 2: 0.5}}
    assert source.negatives is not None
    assert source.negatives.target == {0: 0.9, 1: 0.1}
    assert recipe.select is not None
    assert (recipe.select.budget, recipe.select.settings.band, recipe.select.settings.seed) == (9, (10.0, 90.0), 5)
    assert (recipe.trainable.weights, recipe.trainable.layers) == ("all", 2)
    assert (recipe.finetune.loss, recipe.finetune.occ.rank, recipe.finetune.seed) == ("sord", 0, 5)
    assert (recipe.replay, recipe.seeds, recipe.calibrate) == (2, (1, 2), CalibrateStage(novelty=False))
    assert recipe.interpolate is not None
    assert recipe.interpolate.alphas == (0.0, 0.5)


def test_all_faults_are_reported_together(write: Path) -> None:
    with pytest.raises(InputError) as caught:
        read(
            write,
            'sed = 1\n[model]\nscale = "five"\n[[source]]\nname = "s"\npairs = "absent.jsonl"\nmax_documents = "many"\n'
            '[finetune]\nloss = "hinge"\n[select]\nbudget = 0\n',
        )
    message = str(caught.value)
    assert "6 faults" in message or "7 faults" in message
    for part in (
        "sed is not a key",
        "unknown relevance scale 'five'",
        "source 's': pairs: no such file",
        "source 's': max_documents: expected an integer, found 'many'",
        "finetune.loss: expected 'occ', 'ce', 'label_smoothing', 'sord', 'emd' or 'corn', found 'hinge'",
        "select.budget: expected a number greater than or equal to 1, found 0",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "at least one"),
        (SOURCE + SOURCE, "'s' is named twice"),
        (
            '[[source]]\nname = "s"\ntopics = "pairs.jsonl"\n',
            "expected pairs, or topics, corpus and qrels; found topics",
        ),
        (SOURCE + "grades = { 1 = { 9 = 1.0 } }\n", "grade 9 of the grade map is not on the scale"),
        (SOURCE + "grades = { 1 = { 2 = 0.4 } }\n", "sum to 1"),
        (SOURCE + "part = [0.5, 0.5]\n", "two rising numbers"),
        (SOURCE + "[select]\nbudget = 3\n", 'select needs a [[source]] with use = "pool"'),
        (SOURCE + "[probe]\n", "need held-out queries"),
        (SOURCE + 'use = "test"\ndev_queries = 2\n', "dev_queries can't be given with use = 'test'"),
        (SOURCE + 'use = "known"\njudged = false\n', "judged can't be given with use = 'known'"),
        (SOURCE + 'use = "pool"\njudged = false\n', "judged can't be given with use = 'pool'"),
        (SOURCE + "judged = 0\n", "judged: expected true or false, found 0"),
        (
            SOURCE + "[finetune]\nlearning_rate = 0\n",
            "finetune.learning_rate: expected a number greater than 0, found 0",
        ),
        (
            SOURCE + "[finetune]\nocc = { rps = -1 }\n",
            "finetune.occ.rps: expected a number greater than or equal to 0, found -1",
        ),
        (SOURCE + '[finetune]\nweights = "some"\n', "finetune.weights: expected 'lora', 'all' or 'head', found 'some'"),
        (SOURCE + "[finetune]\nseeds = 3\n", "finetune.seeds: expected a list, found 3"),
        (SOURCE + '[finetune]\nreplay = "all"\n', "finetune.replay: expected a number, found 'all'"),
        (SOURCE + "dev_queries = 2\njudged = false\n", "held-out queries that people judged"),
        (SOURCE + "[calibrate]\nnovelty = true\n", "held-out queries that people judged"),
        (SOURCE + "[calibrate]\nnovelty = 1\n", "calibrate.novelty: expected true or false, found 1"),
        (
            SOURCE + '[calibrate]\ncuts = ["recall 2 of relevant"]\n',
            "calibrate.cuts: a cut can promise a recall above 0",
        ),
        (SOURCE + "[calibrate]\nsoft = 0\n", "calibrate.soft: expected true or false, found 0"),
        ('[model]\nbase = "smollm2-darl"\n' + SOURCE, "smollm2-darl is a checkpoint, not a base model"),
        ("[model]\nkeep_if_better = true\n" + SOURCE, "no earlier model to keep"),
        (SOURCE + "x = [\n", "expected TOML"),
    ],
)
def test_one_fault(write: Path, text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read(write, text)
    assert message in str(caught.value)
    assert str(write) in str(caught.value)


def test_a_checkpoint_is_read_once(write: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_folders: list[object] = []
    load = Checkpoint.load
    monkeypatch.setattr(Checkpoint, "load", lambda folder: (read_folders.append(folder), load(folder))[1])
    recipe = read(write, f'[model]\ncheckpoint = "{tiny_model}"\n' + SOURCE)
    assert [recipe.grades for _ in range(3)] == [4, 4, 4]
    assert len(read_folders) == 1


def test_a_source_with_bm25_negatives_gets_its_run(write: Path) -> None:
    for name in ("topics.tsv", "corpus.jsonl", "qrels.txt"):
        (write.parent / name).write_text("")
    files = 'topics = "topics.tsv"\ncorpus = "corpus.jsonl"\nqrels = "qrels.txt"\n'
    recipe = read(write, f'[[source]]\nname = "s"\n{files}[source.negatives]\nbm25 = true\n')
    run = write.parent / "bm25" / "s.trec"
    run.parent.mkdir()
    run.write_text("")  # one that is there is kept
    negatives = with_bm25_runs(recipe, write.parent).sources[0].negatives
    assert negatives is not None
    assert (negatives.run, negatives.bm25) == (run, False)
