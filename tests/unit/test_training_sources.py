"""Training data: label maps, splits, negatives, exclusions, overlap."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from darl_rerank.errors import InputError
from darl_rerank.training.data.leaks import find_leaks, refuse_shared_queries
from darl_rerank.training.data.sources import Exclusions, load_source, spread
from darl_rerank.training.recipe.fields import target_probabilities
from darl_rerank.training.recipe.source import Negatives, Source
from darl_rerank.trec.graded_pairs import GradedPair

QUERIES, DOCUMENTS = 12, 40


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    """Twelve queries, two judged documents each, and a run of ten documents for every query."""
    rng = random.Random(0)
    (tmp_path / "topics.tsv").write_text("".join(f"q{i}\tquery number {i}\n" for i in range(QUERIES)))
    documents = [{"id": f"d{i}", "text": f"document {i} on {rng.random()}"} for i in range(DOCUMENTS)]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(d) + "\n" for d in documents))
    (tmp_path / "qrels.txt").write_text("".join(f"q{i} 0 d{2 * i} 1\nq{i} 0 d{2 * i + 1} 0\n" for i in range(QUERIES)))
    lines = [f"q{i} Q0 d{(2 * i + r) % DOCUMENTS} {r + 1} {20 - r} t\n" for i in range(QUERIES) for r in range(10)]
    (tmp_path / "run.trec").write_text("".join(lines))
    (tmp_path / "groups.tsv").write_text("".join(f"q{i}\t{'odd' if i % 2 else 'even'}\n" for i in range(QUERIES)))
    return tmp_path


def source(folder: Path, **changes: object) -> Source:
    files = {"topics": folder / "topics.tsv", "corpus": folder / "corpus.jsonl", "qrels": folder / "qrels.txt"}
    return Source(**{"name": "s", "grades": {"0": 0, "1": {2: 0.5, 3: 0.5}}, **files, **changes})  # type: ignore[arg-type]


def test_labels_come_onto_the_scale_hard_and_soft(collection: Path) -> None:
    pairs = load_source(source(collection), 4).train
    assert {(p.grade, p.probabilities) for p in pairs} == {(0, None), (None, (0.0, 0.0, 0.5, 0.5))}
    assert len(pairs) == 2 * QUERIES


def test_a_label_that_the_map_lacks_is_named_with_its_line(collection: Path) -> None:
    with pytest.raises(InputError, match=r"qrels\.txt:1: grade 1 is not in the grade map"):
        load_source(source(collection, grades={"0": 0}), 4)


def test_a_grade_off_the_scale_is_named_with_its_line(collection: Path) -> None:
    (collection / "qrels.txt").write_text("q0 0 d0 1\nq1 0 d1 7\n")
    with pytest.raises(InputError, match=r"qrels\.txt:2: grade 7 is outside of the scale 0\.\.3"):
        load_source(source(collection, grades=None), 4)


@pytest.mark.parametrize("target", [4, -1, {0: 0.5}, {0: 1.5, 1: -0.5}])
def test_targets_must_be_on_the_scale_and_sum_to_one(target: object) -> None:
    with pytest.raises(InputError):
        target_probabilities(target, 4)  # type: ignore[arg-type]


def test_held_out_queries_are_in_one_part_only(collection: Path) -> None:
    found = load_source(source(collection, dev_queries=4), 4)
    train, dev = ({p.qid for p in pairs} for pairs in (found.train, found.dev))
    assert len(dev) == 4
    assert not train & dev
    assert train | dev == {f"q{i}" for i in range(QUERIES)}
    assert load_source(source(collection, dev_queries=4), 4).dev == found.dev


def test_parts_have_no_query_in_common_and_nothing_is_lost(collection: Path) -> None:
    parts = [load_source(source(collection, part=part), 4).train for part in ((0.0, 0.5), (0.5, 1.0))]
    low, high = ({p.qid for p in pairs} for pairs in parts)
    assert low
    assert high
    assert not low & high
    assert len(low | high) == QUERIES


def test_groups_choose_queries_and_name_pairs(collection: Path) -> None:
    only = load_source(source(collection, groups_file=collection / "groups.tsv", only_groups=("odd",)), 4).train
    assert {p.group for p in only} == {"odd"}
    assert {p.qid for p in only} == {f"q{i}" for i in range(1, QUERIES, 2)}
    with pytest.raises(InputError, match="no query has group 'od'"):
        load_source(source(collection, groups_file=collection / "groups.tsv", only_groups=("od",)), 4)


def test_negatives_are_unjudged_beyond_the_first_and_within_depth(collection: Path) -> None:
    negatives = Negatives(run=collection / "run.trec", skip=2, depth=8, per_query=3)
    found = load_source(source(collection, negatives=negatives), 4)
    judged = {f"q{i}": {f"d{2 * i}", f"d{2 * i + 1}"} for i in range(QUERIES)}
    # Ranks 1 and 2 are the judged ones; of the unjudged at ranks 3 to 8 the first two are skipped.
    allowed = {f"q{i}": {f"d{(2 * i + r) % DOCUMENTS}" for r in range(4, 8)} for i in range(QUERIES)}
    added = [p for p in found.train if p.docid not in judged[p.qid]]
    assert len(added) == 3 * QUERIES == found.counts["negatives"]
    assert all(p.docid in allowed[p.qid] and p.grade == 0 for p in added)


def test_a_copy_of_a_judged_document_is_no_negative(collection: Path) -> None:
    lines = (collection / "corpus.jsonl").read_text().splitlines()
    first = json.loads(lines[0])["text"]
    lines[4:8] = [json.dumps({"id": f"d{i}", "text": first.upper()}) for i in range(4, 8)]
    (collection / "corpus.jsonl").write_text("\n".join(lines))
    negatives = Negatives(run=collection / "run.trec", skip=2, depth=8, per_query=4)
    found = load_source(source(collection, negatives=negatives), 4)
    assert [p for p in found.train if p.qid == "q0"] == [p for p in found.train if p.docid in ("d0", "d1")]


def test_random_negatives_are_unjudged(collection: Path) -> None:
    found = load_source(source(collection, negatives=Negatives(random=5)), 4)
    own = {f"q{i}": [f"d{2 * i}", f"d{2 * i + 1}"] for i in range(QUERIES)}
    for qid, judged in own.items():
        docids = [p.docid for p in found.train if p.qid == qid]
        assert len(set(docids)) == len(docids) > 2
        assert docids[:2] == judged


def test_excluded_queries_and_documents_are_left_out_and_counted(collection: Path, tmp_path: Path) -> None:
    (tmp_path / "test_topics.tsv").write_text("x\tQUERY  number 3\n")
    (tmp_path / "test_corpus.jsonl").write_text((collection / "corpus.jsonl").read_text().splitlines()[0] + "\n")
    excluded = Exclusions([tmp_path / "test_topics.tsv"], [tmp_path / "test_corpus.jsonl"])
    found = load_source(source(collection), 4, excluded=excluded)
    assert "q3" not in {p.qid for p in found.train}
    assert "d0" not in {p.docid for p in found.train}
    assert (found.counts["excluded queries"], found.counts["excluded documents"]) == (1, 1)


def test_judgements_of_documents_that_are_not_at_hand(collection: Path) -> None:
    lines = (collection / "corpus.jsonl").read_text().splitlines()
    (collection / "corpus.jsonl").write_text("\n".join(lines[:10]))
    with pytest.raises(InputError, match="document d10 is not in"):
        load_source(source(collection), 4)
    assert len(load_source(source(collection, partial=True), 4).train) == 10


def test_spread_takes_labels_in_turn() -> None:
    pairs = [GradedPair("q", f"d{i}", 3 if i == 0 else i % 2, None, "q") for i in range(20)]
    chosen = spread(pairs, 5, random.Random(0))
    grades = sorted(p.grade or 0 for p in chosen)
    assert grades == [0, 0, 1, 1, 3]


def test_documents_beyond_the_most_are_counted(collection: Path) -> None:
    found = load_source(source(collection, max_documents=1), 4)
    assert len(found.train) == QUERIES == found.counts["left out by max_documents"]
    assert "left out by max_documents" not in load_source(source(collection, max_documents=2), 4).counts


def test_near_duplicates_are_counted_and_shared_queries_refused() -> None:
    text = " ".join(f"word{i}" for i in range(40))
    train = [GradedPair("a", text, 1, None, "a"), GradedPair("b", "something else entirely here now", 0, None, "b")]
    test = [
        GradedPair("A ", text + " more", 1, None, "c"),
        GradedPair("d", " ".join(reversed(text.split())), 1, None, "d"),
        GradedPair("d", "Something else entirely  here now", 1, None, "d"),
    ]
    leaks = find_leaks(train, test)
    assert (leaks.queries, leaks.documents, leaks.near_duplicates) == (("a",), 1, 1)
    with pytest.raises(InputError, match="share 1 queries"):
        refuse_shared_queries("training set and test set", leaks)
    assert find_leaks(train[1:], test[1:2]).near_duplicates == 0


@pytest.mark.parametrize(("replaced", "near"), [(1, 1), (7, 1), (8, 0), (20, 0)])
def test_a_near_duplicate_shares_seven_tenths_of_its_runs_of_words(replaced: int, near: int) -> None:
    # 44 words have 40 runs of five. With the last r words new, 40 - r runs are shared of 40 + r in all: .702 for 7,
    # .667 for 8.
    words = [f"word{i}" for i in range(44)]
    changed = [*words[: 44 - replaced], *(f"new{i}" for i in range(replaced))]
    train = [GradedPair("a", " ".join(words), 1, None, "a")]
    assert find_leaks(train, [GradedPair("b", " ".join(changed), 1, None, "b")]).near_duplicates == near
