"""Early exits from training to the command line, on the tiny model, whose only exit is behind its first layer."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from darl_rerank import Checkpoint, Reranker
from darl_rerank.cli import cli
from darl_rerank.errors import InputError
from darl_rerank.model.exits import exit_logits
from darl_rerank.training.model.grade_model import load_grade_model, save_trained
from darl_rerank.training.model.packing import pack
from darl_rerank.training.model.predict import predict_logits
from darl_rerank.training.recipe.settings import Trainable
from darl_rerank.trec.graded_pairs import read_graded_pairs

WORDS = ["laptop", "notebook", "garden", "hose", "printer", "toner", "battery", "quick", "fox", "house", "rain"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = random.Random(0)
    lines = []
    for number in range(40):
        query = rng.sample(WORDS, 2)
        for grade in (0, 1, 2, 3):
            document = query[:grade] + rng.sample(WORDS, 3)
            lines.append({"query": f"{' '.join(query)} {number}", "document": " ".join(document), "grade": grade})
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def run(*words: object) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words])


def test_exits_for_a_checkpoint_that_has_none(tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    result = run("exits", tiny_model, pairs, "--layers", 1, "--share", 0.25, "--output", made, "--json", "-q")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["pairs"] == {"training": 64, "fitting": 32, "ruling": 64}
    assert facts["heads"]["1"]["loss_after"] <= facts["heads"]["1"]["loss_before"]
    checkpoint = Checkpoint.load(made)
    assert checkpoint.exits is not None
    assert checkpoint.exits.rule is not None
    assert checkpoint.exits.rule.promise.text(checkpoint.scale) == "recall 0.75 of relevant"
    assert facts["rule"]["facts"]["relevant_left"] <= 0.25 * facts["rule"]["facts"]["relevant"]
    early = Reranker.from_pretrained(made, device="cpu", precision="float32")
    graded = read_graded_pairs(pairs, grades=4)
    scores = early.score_pairs([(pair.query, pair.document) for pair in graded])
    assert scores.exit_layers is not None
    assert 0 < (scores.exit_layers == 1).sum() < len(graded)

    # Fitted again, heads stay and calibration and rule are new.
    again = tmp_path / "again"
    shown = run("exits", made, pairs, "--share", 0.4, "--grade", "related", "--output", again, "--end-at", 1)
    assert shown.exit_code == 0, shown.output
    assert "recall 0.6 of related, fitted on 20 queries" in shown.output
    assert "ends behind layer 1" in shown.output
    short = Checkpoint.load(again)
    assert (short.layers, short.exits) == (1, None)
    np.testing.assert_array_equal(short.head.weight, checkpoint.exits.at(1).head.weight)
    ended = Reranker(short, Reranker.from_pretrained(again, device="cpu", precision="float32").engine)
    np.testing.assert_allclose(
        ended.score_pairs([(p.query, p.document) for p in graded]).logits[scores.exit_layers == 1],
        scores.logits[scores.exit_layers == 1], atol=1e-4,
    )  # fmt: skip


def test_what_can_not_be_fitted(tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    output = ("--output", tmp_path / "made")
    none = run("exits", tiny_model, pairs, *output)
    assert (none.exit_code, "has no exits: say with --layers" in none.output) == (2, True)
    for words, message in (
        (("--layers", "one"), "expected layers with commas between"),
        (("--layers", "1", "--end-at", "2"), "--end-at 2 is not one of the exits: 1"),
        (("--layers", "2"), "an exit stands before the last layer, of which tiny-random-llama has 2; got 2"),
        (("--layers", "1", "--grade", "irrelevant"), "every document is 'irrelevant' or better"),
    ):
        result = run("exits", tiny_model, pairs, *words, *output)
        assert result.exit_code in (2, 3)
        assert message in result.output
    # Too few queries to promise it: the checkpoint is made, and says why nothing leaves.
    few = run("exits", tiny_model, pairs, "--layers", 1, "--share", 0.01, *output)
    assert few.exit_code == 0
    assert "nothing leaves early: 16 queries with a relevant document can't promise a recall of 0.99" in few.output
    assert Reranker.from_pretrained(tmp_path / "made", device="cpu").engine.exits is None


def test_a_rerank_job_with_exits_and_without(tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    assert run("exits", tiny_model, pairs, "--layers", 1, "--share", 0.25, "--output", made, "-q").exit_code == 0
    texts = list(read_graded_pairs(pairs, grades=4))[:40]
    (tmp_path / "topics.tsv").write_text(f"q1\t{texts[0].query}\n")
    (tmp_path / "corpus.jsonl").write_text(
        "".join(json.dumps({"_id": f"d{i}", "text": pair.document}) + "\n" for i, pair in enumerate(texts))
    )
    (tmp_path / "run.trec").write_text("".join(f"q1 Q0 d{i} {i + 1} {40 - i} x\n" for i in range(40)))
    files = (tmp_path / "run.trec", tmp_path / "topics.tsv")
    options = ("--corpus", tmp_path / "corpus.jsonl", "--device", "cpu", "--precision", "float32", "-q")
    for name, words in (("auto", (made,)), ("off", (made, "--exit", "off")), ("plain", (tiny_model,))):
        details = ("--details", tmp_path / f"{name}.jsonl")
        result = run("rerank", *files, tmp_path / name, *options, *details, "--model", *words)
        assert result.exit_code == 0, result.output
    assert (tmp_path / "off").read_bytes() == (tmp_path / "plain").read_bytes()
    details = [json.loads(line) for line in (tmp_path / "auto.jsonl").read_text().splitlines()]
    left = [entry.get("exit_layer") for entry in details]
    assert {*left} == {None, 1}
    assert left == sorted(left, key=lambda layer: layer is not None)


RECIPE = """
[model]
checkpoint = "{model}"
[[source]]
name = "home"
pairs = "{pairs}"
dev_queries = 16
[finetune]
batch = 32
rank = 4
learning_rate = 0.01
[exits]
layers = [1]
weight = {weight}
share = 0.4
"""


def test_a_training_with_exits(tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.format(model=tiny_model, pairs=pairs, weight=0.15))
    result = run("train", "--config", recipe, "--output", tmp_path / "model", "--device", "cpu")
    assert result.exit_code == 0, result.output
    checkpoint = Checkpoint.load(tmp_path / "model")
    assert checkpoint.exits is not None
    assert checkpoint.exits.rule is not None
    facts = checkpoint.provenance["stages"]["exits"]
    assert facts["pairs"] == {"training": 96, "fitting": 32, "ruling": 32}
    work = tmp_path / "model.work"
    steps = [json.loads(line) for line in (work / "finetune-0" / "log.jsonl").read_text().splitlines()]
    assert any("exits" in json.dumps(step) for step in steps)
    assert "Early exits behind layers 1" in (tmp_path / "model" / "README.md").read_text()
    assert Reranker.from_pretrained(tmp_path / "model", device="cpu").engine.exits is not None


def test_faults_of_the_table(tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    text = RECIPE.format(model=tiny_model, pairs=pairs, weight=-1).replace("[1]", "[1, 1]")
    recipe.write_text(text.replace("share = 0.4", 'share = 1.0\ngrade = "perfekt"'))
    result = run("train", "--config", recipe, "--output", tmp_path / "model")
    assert result.exit_code == 3
    for fault in ("exits.layers: expected layers that differ", "exits.weight", "exits.share"):
        assert fault in result.output


def test_supervised_layers_are_read_as_exits_are(tiny_model: Path) -> None:
    checkpoint = Checkpoint.load(tiny_model)
    model = load_grade_model(checkpoint, Trainable(rank=4), exits=(1,))
    group = checkpoint.encoder().encode("laptop", ["a quick fox", "garden hose"])
    packed = pack([group])
    model.train()
    found = model(packed.last, **packed.inputs())
    assert found.shape == (2, 2, 4)
    found[1].square().sum().backward()
    layers = {
        name.split(".layers.")[1][0]
        for name, p in model.named_parameters()
        if p.grad is not None and p.grad.abs().any() and ".layers." in name
    }
    assert layers == {"0"}
    made = model.exit_values()
    assert made is not None
    with torch.no_grad():
        ids = torch.tensor([group.prefix + group.suffixes[0]])
        states = load_body_states(checkpoint, ids)
    np.testing.assert_allclose(
        exit_logits(made.at(1).head, "softmax", states), found[1, :1].detach().numpy(), atol=1e-4
    )
    model.eval()
    assert model(packed.last, **packed.inputs()).shape == (1, 2, 4)


def load_body_states(checkpoint: Checkpoint, ids: torch.Tensor) -> np.ndarray:  # type: ignore[type-arg]
    from darl_rerank.model.base_weights import load_body

    body = load_body(checkpoint, torch.float32)
    return body(input_ids=ids, output_hidden_states=True).hidden_states[1][:, -1].numpy()  # type: ignore[no-any-return]


def test_a_model_that_ends_early_can_be_trained_on(tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    made = tmp_path / "short"
    assert run("exits", tiny_model, pairs, "--layers", 1, "--output", made, "--end-at", 1, "-q").exit_code == 0
    short = Checkpoint.load(made)
    graded = read_graded_pairs(pairs, grades=4)[:6]
    with pytest.raises(InputError, match="layers = 2, but"):
        load_grade_model(short, Trainable(layers=2))
    model = load_grade_model(short, Trainable(rank=4))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.1)
    saved = save_trained(model, short, tmp_path / "trained")
    assert saved.layers == 1
    assert saved.adapter_folder is not None
    reranker = Reranker.from_pretrained(tmp_path / "trained", device="cpu", precision="float32", engine="torch")
    expected = predict_logits(model, short.encoder(), graded, progress=False)
    found = reranker.score_pairs([(pair.query, pair.document) for pair in graded]).logits
    np.testing.assert_allclose(found, expected, atol=0.1)
    again = predict_logits(load_grade_model(saved, Trainable(rank=4)), short.encoder(), graded, progress=False)
    np.testing.assert_allclose(again, expected, atol=0.1)
