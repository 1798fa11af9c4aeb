from __future__ import annotations

import re
import shutil
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner
from huggingface_hub import ModelCard

from darl_rerank import Checkpoint, Reranker
from darl_rerank.cli import cli
from darl_rerank.errors import InputError
from darl_rerank.model.shipped import DEFAULT, SHIPPED, checkpoint_folder, shipped_names
from darl_rerank.training.recipe.read import read_recipe

RECIPE = """
[model]
checkpoint = "{name}"
[[source]]
name = "own"
pairs = "pairs.jsonl"
"""


def test_what_ships_is_whole_small_and_says_what_it_was_trained_on() -> None:
    assert DEFAULT in shipped_names()
    for name in shipped_names():
        checkpoint = Checkpoint.load(name)
        assert checkpoint.trained
        assert checkpoint.novelty is not None
        assert sum(path.stat().st_size for path in (SHIPPED / name).rglob("*")) < 16 * 2**20
        card = (SHIPPED / name / "README.md").read_text("utf-8")
        assert "licence" in card
        restricted = [line for line in card.splitlines() if "non-commercial" in line]
        # Such data may choose a temperature and be known to novelty, in this round or one before; it is not trained on.
        assert restricted
        assert all(re.search(r"\| ood_dev \||\((ood_dev|known)\)", line) for line in restricted)


def test_a_wheel_has_all_of_it() -> None:
    package = SHIPPED.parents[1]
    project = tomllib.loads((package.parent / "pyproject.toml").read_text("utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["darl_rerank"]
    packed = {path for pattern in patterns for path in package.glob(pattern)}
    assert {path for path in (package / "data").rglob("*") if path.is_file()} <= packed


def test_a_folder_goes_before_a_name(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert checkpoint_folder(DEFAULT) == SHIPPED / DEFAULT
    shutil.copytree(tiny_model, DEFAULT)
    assert checkpoint_folder(DEFAULT) == Path(DEFAULT)
    assert Checkpoint.load(DEFAULT).fingerprint == Checkpoint.load(tiny_model).fingerprint


def test_neither_folder_nor_name_says_which_names_there_are(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"nothing: expected a checkpoint folder, one .*{DEFAULT}"):
        Reranker.from_pretrained(tmp_path / "nothing")
    result = CliRunner().invoke(cli, ["export", "nothing", str(tmp_path / "out")])
    assert result.exit_code == 3
    assert DEFAULT in result.output
    assert not (tmp_path / "out").exists()


def test_a_recipe_goes_on_from_what_ships(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"query": "q", "document": "d", "label": 1}\n')
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.format(name=DEFAULT))
    assert read_recipe(recipe).model.checkpoint == SHIPPED / DEFAULT
    shutil.copytree(tiny_model, tmp_path / DEFAULT)
    assert read_recipe(recipe).model.checkpoint == tmp_path / DEFAULT
    recipe.write_text(RECIPE.format(name="nothing"))
    with pytest.raises(InputError, match=f"no such folder: .*nothing; checkpoints that ship: .*{DEFAULT}"):
        read_recipe(recipe)


@pytest.mark.parametrize("name", shipped_names())
def test_a_shipped_card_has_what_the_hub_reads(name: str) -> None:
    data = ModelCard((SHIPPED / name / "README.md").read_text("utf-8")).data
    assert (data.license, data.pipeline_tag, data.library_name) == ("apache-2.0", "text-ranking", "darl-rerank")
    assert {result.metric_type for result in data.eval_results} >= {"ndcg_at_10", "qwk", "ece"}
