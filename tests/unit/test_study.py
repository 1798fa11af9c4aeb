"""The study's harness: states that stand in for tokens, equal budgets, and a whole study at toy scale."""

from __future__ import annotations

import json
import random
import signal
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from darl_rerank import Checkpoint, Reranker
from darl_rerank.errors import InputError
from darl_rerank.evaluation.bootstrap import paired_difference
from darl_rerank.evaluation.pairs import measures_of
from darl_rerank.model.calibration import Calibration
from darl_rerank.model.decisions import Cut, Promise
from darl_rerank.model.exits import ExitHead, Exits
from darl_rerank.training.data.examples import query_examples
from darl_rerank.training.model import predict as predict_module
from darl_rerank.training.model.grade_model import load_grade_model
from darl_rerank.training.model.initial import initial_checkpoint
from darl_rerank.training.model.predict import predict_logits
from darl_rerank.training.recipe.settings import FinetuneSettings, ModelChoice, Trainable
from darl_rerank.training.recipe.source import Source
from darl_rerank.training.stages import finetune as finetune_module
from darl_rerank.training.stages.finetune import finetune

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import page as page_module
from provenance import provenance
from study import rare, rare_tuned, tables
from study import run as run_module
from study import study_run as study_run_module
from study.chosen import chosen_rows, prepare_pool
from study.collections_by_role import load_collections, seed_sets
from study.figures import figures, save
from study.measured import Run, difference, measure_run, read_run
from study.settings import ROLES, Study
from study.states import CachedCheckpoint, base_states, last_layers
from study.study_run import StudyRun
from study.tried import committee, pool_of
from study.tuned import ALL_THREE, ARMS, LPFT, PLAIN, SOUP, queue

WORDS = ["laptop", "garden", "hose", "red", "metal", "chair", "phone", "charger", "cable", "desk", "lamp", "steel"]


def write_pairs(path: Path, queries: int, documents: int, seed: int, group: str) -> Source:
    """Queries of two words; a document's grade is how many of them it has, or 3 for both at its start."""
    rng = random.Random(seed)
    with path.open("w", encoding="utf-8") as stream:
        for number in range(queries):
            query = rng.sample(WORDS, 2)
            for _ in range(documents):
                document = rng.sample(WORDS, 5)
                grade = sum(word in document for word in query)
                grade = 3 if document[:1] == query[:1] else grade
                line = {"query": f"{group} {number} {' '.join(query)}", "document": " ".join(document), "grade": grade}
                stream.write(json.dumps({**line, "group": group}) + "\n")
    return Source(name=path.stem, pairs=path)


@pytest.fixture(scope="module")
def study(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("pairs")
    sizes = {"home": 14, "home_dev": 6, "home_test": 6, "pool": 12, "away_dev": 5, "away_test": 6}
    roles = {
        role: (write_pairs(folder / f"{role}.jsonl", sizes[role], 4, i, "away" if "away" in role else role),)
        for i, role in enumerate(ROLES)
    }
    return Study(
        name="toy", title="Toy", roles=roles, model=ModelChoice(checkpoint=tiny_model, max_length=96), layers=1,
        home_pairs=24, pool_home=8, budgets=(12,), per_query=3, band=(60.0, 99.5), head_seeds=2, seeds=1,
        finetune=FinetuneSettings(batch=8, epochs=1, save_minutes=1), alphas=(0.0, 0.5, 1.0), resamples=40,
    )  # fmt: skip


@pytest.fixture
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (predict_module, finetune_module):
        monkeypatch.setattr(module, "cpu_has_bfloat16", lambda: False)


@pytest.fixture(scope="module")
def run(study: Study, tmp_path_factory: pytest.TempPathFactory) -> StudyRun:
    return StudyRun(study, tmp_path_factory.mktemp("work"), ["run.py", "toy"])


def test_one_pass_gives_the_engines_features(
    study: Study, tiny_reranker: Reranker, tmp_path: Path, float32: None
) -> None:
    checkpoint = initial_checkpoint(study.model)
    data = load_collections(study, checkpoint.encoder(), 4)
    found = base_states(checkpoint, 1, data.pairs, tmp_path / "states", progress=False)
    expected = tiny_reranker.score_pairs([(p.query, p.document) for p in data.pairs], features=True)
    assert expected.features is not None
    np.testing.assert_allclose(found.features.astype(np.float32), expected.features, atol=1e-3)
    head = checkpoint.head
    np.testing.assert_allclose(found.finals @ head.weight.T + head.bias, expected.logits, atol=1e-4)
    again = base_states(checkpoint, 1, data.pairs, tmp_path / "states", progress=False)
    assert torch.equal(again.table, found.table)


@pytest.mark.parametrize("loss", ["ce", "occ"])
def test_training_on_kept_states_is_training_on_tokens(study: Study, tmp_path: Path, float32: None, loss: str) -> None:
    checkpoint = initial_checkpoint(study.model)
    data = load_collections(study, checkpoint.encoder(), 4)
    states = base_states(checkpoint, 1, data.pairs, tmp_path / "states", progress=False)
    pairs = data.of(data.roles["home"])
    settings = FinetuneSettings(loss=loss, batch=8, seed=3, learning_rate=3e-3)
    whole = load_grade_model(checkpoint, Trainable(layers=1), seed=3)
    short = last_layers(checkpoint, Trainable(layers=1), states.table, seed=3)
    stand_in: Any = CachedCheckpoint(checkpoint.scale, states.encoder)
    encoder: Any = states.encoder
    before = predict_logits(short, encoder, pairs, progress=False)
    for name, model, at in (("whole", whole, checkpoint), ("short", short, stand_in)):
        finetune(model, at, query_examples(pairs, 4), settings, tmp_path / name, device="cpu", progress=False)
    expected = predict_logits(whole, checkpoint.encoder(), pairs, progress=False)
    found = predict_logits(short, encoder, pairs, progress=False)
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert np.abs(expected - before).max() > 0.05


def test_unknown_text_has_no_states(run: StudyRun) -> None:
    with pytest.raises(InputError, match="no states were kept"):
        run.states.encoder.encode("never seen", ["nor this"])


def test_roles_must_not_share_queries(study: Study) -> None:
    checkpoint = initial_checkpoint(study.model)
    shared = replace(study, roles={**study.roles, "home_test": study.roles["home"]})
    with pytest.raises(InputError, match="share the query"):
        load_collections(shared, checkpoint.encoder(), 4)


def test_documents_of_tests_that_stand_elsewhere_are_counted(run: StudyRun) -> None:
    pairs, roles = list(run.data.pairs), run.data.roles
    clean = run.data.table()["away_test"]["documents_elsewhere"]
    first, other = int(roles["away_test"][0]), int(roles["home"][0])
    pairs[first] = replace(pairs[first], document="a text that no other pair has")
    pairs[other] = replace(pairs[other], document="A text that no  other pair has")
    assert replace(run.data, pairs=pairs).table()["away_test"]["documents_elsewhere"] == clean + 1


def test_seed_sets_are_whole_queries_apart_from_tests(run: StudyRun, study: Study) -> None:
    first, second = (seed_sets(run.data, study, seed) for seed in (0, 1))
    for sets in (first, second):
        assert not set(run.data.queries[sets.train]) & set(run.data.queries[sets.pool])
        assert study.home_pairs <= len(sets.train) < study.home_pairs + 4
        for role in ("home_dev", "home_test", "away_dev", "away_test"):
            assert not set(run.data.roles[role]) & set(sets.train.tolist() + sets.pool.tolist())
    assert set(first.train.tolist()) != set(second.train.tolist())


@pytest.mark.parametrize("strategy", ["random", "dasa", "kcenter", "dasa-without-coverage"])
@pytest.mark.parametrize("band", [(60.0, 99.5), (99.9, 100.0)])
def test_every_strategy_spends_the_same_budget(
    run: StudyRun, study: Study, strategy: str, band: tuple[float, float]
) -> None:
    seed = run.seed(0)
    rows, account = chosen_rows(seed, replace(study, band=band), strategy, 12, run.data.roles["home"])
    assert len(set(rows.tolist())) == 12
    assert set(rows.tolist()) <= set(seed.sets.pool.tolist())
    assert max(Counter(run.data.queries[rows].tolist()).values()) <= study.per_query
    if band[0] > 99 and strategy.startswith("dasa"):
        assert account["filled_at_random"] > 0


def test_differences_are_those_of_a_paired_bootstrap(run: StudyRun, tmp_path: Path) -> None:
    """Draws that were kept apart compare two arms as `paired_difference` does on their predictions."""
    rng = np.random.default_rng(0)
    gains, tests = np.arange(4.0), run.tests
    runs, measures = [], []
    for name in ("first", "second"):
        logits = {role: rng.normal(size=(len(rows), 4)) for role, rows in run.data.roles.items()}
        runs.append(measure_run(tmp_path / name, logits, run.data, tests, gains, {}, 60))
        scaled = Calibration(runs[-1].facts["temperature"]).probabilities(
            np.concatenate([logits["home_test"], logits["away_test"]])
        )
        mask = tests.groups["OOD"]
        measures.append(measures_of(tests.labels[mask], scaled[mask], gains, tests.queries[mask]))
    kept = [read_run(tmp_path / name) for name in ("first", "second")]
    for measure in ("rps", "qwk", "ndcg@10"):
        expected = paired_difference(
            *(lambda w, m=m[measure]: m(w[:, mask]) for m in measures), tests.queries, resamples=60
        )
        found, p_value, each = difference([kept[1]], [kept[0]], f"OOD/{measure}")
        np.testing.assert_allclose(
            [found.value, found.low, found.high],
            [expected.interval.value, expected.interval.low, expected.interval.high], atol=1e-6,
        )  # fmt: skip
        assert p_value == expected.p_value
        assert each == [pytest.approx(expected.interval.value)]


def test_the_decisive_arms_come_first(study: Study) -> None:
    order = queue(replace(study, seeds=2, budgets=(12, 24)))
    assert [arm.name for arm, *_ in order[:4]] == ["plain", "all three", "all three, not interpolated", "OCC"]
    assert {seed for _, _, seed in order[: len(ARMS)]} == {0}
    assert order[2 * len(ARMS)] == (SOUP, 12, 0)
    assert (PLAIN.strategy, LPFT.strategy, ALL_THREE.strategy) == ("random", "random", "dasa")


def test_a_whole_study(run: StudyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: dict[str, dict[str, Any]] = {}
    monkeypatch.setattr(
        study_run_module,
        "write_result",
        lambda name, values, argv: written.__setitem__(name, json.loads(json.dumps(values))),
    )
    run.heads()
    run.tune(run.study.budgets)
    run.write_tuned()
    heads, tuned = written["study_toy_head"], written["study_toy"]
    assert heads["seeds"] == [0, 1]
    assert set(tuned["claims"]["12"]) == {"a", "b", "c", "d"}
    assert all(claim["seeds"] == [0] for claim in tuned["claims"]["12"].values())
    assert tuned["missing"] == []
    by_name = {arm["arm"]: arm for arm in tuned["arms"]}
    assert {arm.name for arm in (*ARMS, SOUP)} == set(by_name)
    # Equal budgets, and one training where arms differ in the interpolation only.
    assert len({arm["runs"][0]["pairs"] for arm in by_name.values()}) == 1
    plain, whole = by_name["all three, not interpolated"], by_name["all three"]
    assert whole["runs"][0]["training"] == plain["runs"][0]["training"]
    assert whole["runs"][0]["curve"]["alphas"] == [0.0, 0.5, 1.0]
    assert set(tuned["novelty"]["groups"]) == {"ID", "OOD", "away"}
    pool = tuned["novelty"]["pool"]
    assert sum(group["pairs"] for group in pool.values()) == len(run.seed(0).sets.pool)
    assert all(group["below"] + group["above"] <= group["pairs"] for group in pool.values())
    assert 0 < sum(group["chosen of 12"] for group in pool.values()) <= 12
    assert_page_says_what_json_says(written, tmp_path / "figures", monkeypatch)
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        f"study_toy_{kind}.svg" for kind in ("alpha", "novelty", "reliability")
    }
    # Everything is found again, nothing is trained twice.
    monkeypatch.setattr(study_run_module.Tuner, "_trained", lambda *_: pytest.fail("trained again"))
    run.tune(run.study.budgets)


def test_it_stops_when_the_minutes_are_over_and_goes_on(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written: list[str] = []
    monkeypatch.setattr(study_run_module, "write_result", lambda name, values, argv: written.append(name))
    monkeypatch.setitem(run_module.STUDIES, "toy", lambda data: study)
    command = ["run.py", "toy", "nowhere", str(tmp_path), "--level", "head", "--head-seeds", "1"]
    monkeypatch.setattr(sys, "argv", [*command, "--minutes", "60"])
    with monkeypatch.context() as ringing:  # the clock's signal, but at the first arm however fast the machine is
        ringing.setattr(study_run_module, "run_head_arm", lambda *_: signal.raise_signal(signal.SIGALRM))
        run_module.main()
    assert "the same command goes on from here" in capsys.readouterr().err
    assert not written
    monkeypatch.setattr(sys, "argv", command)
    run_module.main()
    assert written == ["study_toy_head"]


def assert_page_says_what_json_says(
    written: dict[str, dict[str, Any]], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each claim stands in the page with the JSON's verdict, and each figure that it names can be drawn."""
    made = {"provenance": provenance(["run.py"])}
    results = {name: {**made, **values} for name, values in written.items()}
    monkeypatch.setattr(page_module, "result", results.get)
    page = tables.study_section("toy")
    assert page is not None
    for claim in written["study_toy"]["claims"]["12"].values():
        assert f"{claim['claim']} | 12 | 1 | **{claim['verdict']}** |" in page
        for part in claim["parts"]:
            assert f"{part['value']:+.3f} [{part['low']:+.3f}, {part['high']:+.3f}]" in page
    for figure in figures("toy", results["study_toy"]):
        save(figure, folder)
        assert f"![{figure.caption}](figures/{figure.file})" in page
        assert (folder / figure.file).read_text("utf-8").startswith("<?xml")
    assert tables.forum() is None
    listed = "\n".join(tables.refuted_section({"toy": written["study_toy"]}, ["toy, head only"]))
    assert "- toy, head only: nothing of it" in listed
    parts = [part for claim in written["study_toy"]["claims"]["12"].values() for part in claim["parts"]]
    refuted = sum(part["verdict"] == "refuted" for part in parts)
    assert listed.partition("### Not shown")[0].count("\n- ") == refuted


def test_a_pool_where_shift_is_rare_and_what_each_strategy_chooses_of_it(
    run: StudyRun, study: Study, tmp_path: Path
) -> None:
    data, states, checkpoint = run.data, run.states, run.checkpoint
    away = data.roles["pool"]
    for share in (0.1, 0.5):
        sets = rare.pool_with(data, study, 0, share, size=30)
        assert (len(sets.pool), int(np.isin(sets.pool, away).sum())) == (30, round(30 * share))
        assert not np.isin(sets.pool, sets.train).any()
    fewer = rare.pool_with(data, study, 0, 0.05, size=60).pool
    assert 30 < len(fewer) < 60
    assert int(np.isin(fewer, away).sum()) == round(0.05 * len(fewer))
    seed = prepare_pool(sets, data, study, states, checkpoint, 0)

    def measure(kept: Path, logits: Any, facts: dict[str, Any]) -> Run:
        return measure_run(kept, logits, data, run.tests, checkpoint.scale.gains, facts, 20, rare.MEASURES)

    pool = pool_of(seed, data, states, committee(data, states, checkpoint, sets.train, 0))
    about = rare.described_pool(pool, 0.5)
    assert 0 <= about["estimated"] <= 1
    runs, orders = {}, {}
    for strategy in ("random", *rare.STRATEGIES):
        job = (strategy, 8, 0.5, 0)
        found = rare.run_arm(job, pool, orders, study, data, states, checkpoint, measure, tmp_path)
        assert found.facts["pairs"] == 8
        runs[strategy, 8, 0.5] = {0: found}
    assert runs["oracle", 8, 0.5][0].facts["chosen_ood"] == 1
    assert all(sorted(order.tolist()) == list(range(30)) for order in orders.values())
    row = rare.comparison(runs, "dasa", 8, 0.5)
    assert row["verdict"].endswith("1 seed only")
    assert row["against_random"]["OOD/qwk"]["value"] == pytest.approx(
        runs["dasa", 8, 0.5][0].facts["values"]["OOD/qwk"] - runs["random", 8, 0.5][0].facts["values"]["OOD/qwk"]
    )


def test_the_model_that_ships_runs_every_pair_to_its_end(
    run: StudyRun, study: Study, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = Checkpoint.load(tiny_model)
    exit_head = ExitHead(1, replace(tiny.head, norm=np.ones(tiny.head.weight.shape[1], np.float32)))
    # No pair reaches a probability of 2, so the rule lets all of them leave behind the first layer.
    leaving = Exits((exit_head,), Cut(Promise("recall", 0.9, 2), 2.0))
    ships = tiny.replace(exits=leaving).save(tmp_path / "ships", model=tiny_model / "model")
    few = replace(run.data, pairs=run.data.pairs[:5])
    early = Reranker.from_pretrained(ships.folder, engine="torch", device="cpu")
    left = early.score_pairs([(pair.query, pair.document) for pair in few.pairs], features=True)
    assert np.isnan(left.features).any()
    monkeypatch.setattr(rare, "DEFAULT", ships.folder)
    states = rare.states_of("shipped", study, few, tmp_path / "work")
    assert np.isfinite(states.features).all()
    assert np.isfinite(states.finals).all()


def test_fine_tuned_arms_where_shift_is_rare(run: StudyRun, study: Study, tmp_path: Path) -> None:
    tuner = rare_tuned.RareTuner(study, run.data, run.tests, run.states, run.checkpoint, tmp_path, run.seed)
    runs = {name: {0: tuner.run(rare_tuned.arm_of(name), 8, 0)} for name in ("random", "oracle")}
    first, oracle = rare_tuned.compared(runs, 8)
    assert oracle["chosen_ood"] == [1.0]
    assert first["verdict"] is None
    assert oracle["verdict"].endswith("1 seed only")
    assert oracle["against_random"]["OOD/qwk"]["value"] == pytest.approx(
        oracle["values"]["OOD/qwk"] - first["values"]["OOD/qwk"]
    )
