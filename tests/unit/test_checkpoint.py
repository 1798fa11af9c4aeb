from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from darl_rerank import Checkpoint, RelevanceScale
from darl_rerank.errors import DarlRerankError, InputError
from darl_rerank.model.base_model import BaseModel
from darl_rerank.model.calibration import Calibration
from darl_rerank.model.head import Head
from darl_rerank.model.novelty import fit_novelty
from darl_rerank.model.scale import Grade


@pytest.fixture
def copy(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "copy"))


def test_saved_and_loaded_it_is_the_same(tiny_model: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.load(tiny_model).replace(
        calibration=Calibration(1.7, 0.2), trained=True, provenance={"data": ["x"]}
    )
    again = checkpoint.save(tmp_path / "new")
    assert again.fingerprint == checkpoint.fingerprint
    assert again.provenance == {"data": ["x"]}
    assert again.trained
    assert again.model_folder == tmp_path / "new" / "model"
    np.testing.assert_array_equal(again.head.weight, checkpoint.head.weight)


def test_whatever_decides_a_result_changes_the_fingerprint(tiny_model: Path) -> None:
    checkpoint = Checkpoint.load(tiny_model)
    head = Head(checkpoint.head.weight, checkpoint.head.bias + 1)
    changed = [
        checkpoint.replace(head=head),
        checkpoint.replace(calibration=Calibration(2.0)),
        checkpoint.replace(base=BaseModel("other")),
        checkpoint.replace(sha256={**checkpoint.sha256, "model/model.safetensors": "0"}),
    ]
    assert len({c.fingerprint for c in [checkpoint, *changed]}) == 5
    assert checkpoint.replace(provenance={"note": "x"}).fingerprint == checkpoint.fingerprint


def test_novelty_statistics_travel(tiny_model: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    features = generator.normal(size=(300, 96)).astype(np.float32)
    model = fit_novelty(features[:200], features[200:])
    saved = Checkpoint.load(tiny_model).replace(novelty=model).save(tmp_path / "new")
    assert saved.novelty is not None
    np.testing.assert_array_equal(saved.novelty.score(features), model.score(features))


def test_layers_that_do_not_fit_prefill_layers_are_named(tiny_model: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.load(tiny_model)
    saved = checkpoint.replace(prefill_layers=1, feature_layer=1).save(tmp_path / "new")
    assert saved.prefill_layers == 1
    assert saved.fingerprint != checkpoint.replace(feature_layer=1).fingerprint
    assert json.loads((tmp_path / "new" / "checkpoint.json").read_text())["format"] == 4
    with pytest.raises(InputError) as caught:
        checkpoint.replace(prefill_layers=1, feature_layer=2, layers=1).save(tmp_path / "faulty")
    for message in ("not up to its feature_layer 2", "prefill_layers 1 is not below the 1 layers"):
        assert message in str(caught.value)


def test_a_missing_or_changed_file_is_named(copy: Path) -> None:
    weights = copy / "model" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    (copy / "tokenizer.json").unlink()
    with pytest.raises(InputError) as caught:
        Checkpoint.load(copy)
    assert "tokenizer.json is missing" in str(caught.value)
    assert "model/model.safetensors is not the file that was saved" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected JSON"),
        ("[]", "format 1, 2, 3, 4, found None"),
        ('{"format": 99}', "found 99; a newer darl-rerank reads it"),
        ('{"format": 1}', "lacks base"),
    ],
)
def test_faulty_manifests(copy: Path, text: str, message: str) -> None:
    (copy / "checkpoint.json").write_text(text)
    with pytest.raises(InputError, match=message):
        Checkpoint.load(copy)


def test_a_folder_that_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a checkpoint folder"):
        Checkpoint.load(tmp_path)


def test_an_existing_folder_is_not_overwritten_unasked(tiny_model: Path, copy: Path) -> None:
    before = (copy / "checkpoint.json").read_bytes()
    with pytest.raises(DarlRerankError, match="already exists"):
        Checkpoint.load(tiny_model).save(copy)
    assert (copy / "checkpoint.json").read_bytes() == before


def test_the_card_may_be_edited(copy: Path) -> None:
    (copy / "README.md").write_text("# mine\n")
    assert Checkpoint.load(copy).save(copy, overwrite=True).folder == copy
    assert (copy / "README.md").read_text() == "# mine\n"


@pytest.fixture
def base_folder(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model as an ordinary transformers folder."""
    folder = Path(shutil.copytree(tiny_model / "model", tmp_path / "base"))
    shutil.copy(tiny_model / "tokenizer.json", folder)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_a_head_row_is_the_mean_of_its_words_rows(base_folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    scale = RelevanceScale("two", (Grade("no", ("None", "Low"), 0.0), Grade("yes", ("Perfect",), 1.0)))
    checkpoint = Checkpoint.from_base(base_folder, scale)
    rows = AutoModelForCausalLM.from_pretrained(base_folder).lm_head.weight.detach().numpy()
    ids = checkpoint.encoder().word_ids(["None", "Low", "Perfect"])
    np.testing.assert_allclose(checkpoint.head.weight, [rows[ids[:2]].mean(0), rows[ids[2]]], rtol=1e-6)
    assert not checkpoint.trained


def test_grades_that_begin_alike_are_refused(base_folder: Path) -> None:
    scale = RelevanceScale("two", (Grade("no", ("Perfect",), 0.0), Grade("yes", ("Perfectly",), 1.0)))
    with pytest.raises(InputError, match="begin with the same token"):
        Checkpoint.from_base(base_folder, scale)


def test_a_changed_base_is_noticed(base_folder: Path, tmp_path: Path) -> None:
    saved = Checkpoint.from_base(base_folder, RelevanceScale.named("trec4")).save(tmp_path / "new")
    assert saved.base.resolve() == str(base_folder)
    weights = base_folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(InputError, match=r"weights of base model .* have changed"):
        saved.base.resolve()


def test_pickled_weights_are_refused(base_folder: Path) -> None:
    (base_folder / "model.safetensors").rename(base_folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="pickled weights are not read"):
        Checkpoint.from_base(base_folder, RelevanceScale.named("trec4"))


def test_a_base_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json"):
        Checkpoint.from_base(tmp_path / "nowhere", RelevanceScale.named("trec4"))
    with pytest.raises(InputError, match="could not be loaded"):
        Checkpoint.from_base("nobody/no-such-model", RelevanceScale.named("trec4"))


def _edit(folder: Path, **changes: object) -> None:
    path = folder / "checkpoint.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_all_faults_of_a_manifest_are_listed(copy: Path) -> None:
    _edit(
        copy,
        scale={"name": "x", "grades": [{"name": "a", "words": "None", "gain": 0}]},
        prompt={"instruction": 3, "separator": "", "answer": "", "max_length": 9},
        base={"name": None},
        feature_layer="one",
        calibration={"temperature": "warm"},
        trained="yes",
        finer_products={"int8": "all"},
        files={"../passwd": "0"},
    )
    with pytest.raises(InputError) as caught:
        Checkpoint.load(copy)
    for fault in (
        "scale: ", "words must be a list of strings", "prompt: expected instruction as str, got 3", "base: ",
        "feature_layer: expected a whole number", "calibration: ", "trained: expected true or false",
        "finer_products: expected a list of products for int8",
        "../passwd lies outside",
    ):  # fmt: skip
        assert fault in str(caught.value)


def test_parts_that_do_not_fit_together_are_refused(copy: Path) -> None:
    scale = RelevanceScale.named("ternary").to_dict()
    _edit(copy, scale=scale, calibration={"temperature": 1.0, "bias": [0.0, 1.0]})
    with pytest.raises(InputError) as caught:
        Checkpoint.load(copy)
    assert "the head has 4 rows but the scale 3 grades" in str(caught.value)
    assert "the calibration has 2 biases but the head 4 rows" in str(caught.value)


def test_a_head_that_is_not_finite_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.load(tiny_model)
    head = Head(checkpoint.head.weight, checkpoint.head.bias * np.float32("nan"))
    with pytest.raises(InputError, match="bias holds values that are not finite"):
        checkpoint.replace(head=head).save(tmp_path / "new")


def test_each_format_is_read(copy: Path, tmp_path: Path) -> None:
    first = Checkpoint.load(copy)
    assert json.loads((copy / "checkpoint.json").read_text())["format"] == 1
    assert first.link == "softmax"
    saved = first.replace(link="corn").save(tmp_path / "new")
    assert json.loads((tmp_path / "new" / "checkpoint.json").read_text())["format"] == 2
    assert saved.link == "corn"
    assert saved.fingerprint != first.fingerprint
    _edit(tmp_path / "new", link="probit")
    with pytest.raises(InputError, match="link: unknown link 'probit'; known: softmax, corn"):
        Checkpoint.load(tmp_path / "new")


def test_a_home_folder_is_found(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(copy.parent))
    assert Checkpoint.load("~/copy").folder == copy
    with pytest.raises(InputError, match="expected a checkpoint folder, one of those that ship"):
        Checkpoint.load("~nobody-of-this-name/copy")


def test_corn_logits_are_log_probabilities(tiny_model: Path) -> None:
    """The link against training's own CORN, through the engine."""
    import torch

    from darl_rerank import Reranker
    from darl_rerank.engines.torch_engine import TorchEngine
    from darl_rerank.training.losses.comparison import corn_log_probabilities

    plain = Checkpoint.load(tiny_model)
    scores = [
        Reranker(checkpoint, TorchEngine(checkpoint, device="cpu", precision="float32")).score_pairs(
            [("laptop", "a notebook"), ("laptop", "a hose"), ("fox", "rain")]
        )
        for checkpoint in (plain, plain.replace(link="corn"))
    ]
    expected = corn_log_probabilities(torch.from_numpy(scores[0].logits).double()).exp().numpy()
    np.testing.assert_allclose(scores[1].probabilities, expected, atol=1e-6)
    assert np.abs(scores[0].probabilities - expected).max() > 0.05
