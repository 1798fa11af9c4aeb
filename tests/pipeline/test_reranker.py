"""The public face on the tiny model: what comes back, and that a pair's result depends on the pair alone."""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from darl_rerank import Checkpoint, RankedDocument, Reranker
from darl_rerank.engines.base import GradeOutput
from darl_rerank.engines.batching import MicroBatch
from darl_rerank.engines.torch_engine import TorchEngine
from darl_rerank.errors import InputError

WORDS = [
    "laptop",
    "notebook",
    "garden",
    "hose",
    "printer",
    "toner",
    "battery",
    "quick",
    "fox",
    "house",
    "price",
    "rain",
]


def made_up(generator: random.Random, length: int) -> str:
    return " ".join(generator.choice(WORDS) for _ in range(length))


@pytest.fixture(scope="module")
def pairs() -> list[tuple[str, str]]:
    generator = random.Random(0)
    queries = [made_up(generator, 3) for _ in range(9)]
    # One long document and many short ones; some queries have many documents, some one.
    return [(queries[min(i % 13, 8)], made_up(generator, generator.choice([1, 5, 20, 60]))) for i in range(120)]


def test_a_ranking_is_in_order_and_whole(tiny_reranker: Reranker) -> None:
    documents = ["Dell XPS 13 notebook", "Laptop sleeve 13 inch", "Garden hose"]
    ranking = tiny_reranker.rerank("laptop", documents)
    assert [r.rank for r in ranking] == [1, 2, 3]
    assert sorted(r.index for r in ranking) == [0, 1, 2]
    assert all(r.document is documents[r.index] for r in ranking)
    assert all(a.score >= b.score for a, b in pairwise(ranking))
    for r in ranking:
        assert sum(r.probabilities) == pytest.approx(1)
        assert r.score == pytest.approx(np.dot(r.probabilities, tiny_reranker.scale.gains))
        assert r.grade == tiny_reranker.checkpoint.grade_cuts.grades(np.array(r.score))
        assert r.grade_name == tiny_reranker.scale.grades[r.grade].name
        assert RankedDocument.from_dict(r.to_dict(), document=r.document) == r
    assert tiny_reranker.rerank("laptop", documents, top_k=2) == ranking[:2]


def test_documents_come_in_many_kinds(tiny_reranker: Reranker) -> None:
    @dataclass
    class Hit:
        docid: str
        title: str
        text: str

    @dataclass
    class LangChainDocument:
        page_content: str
        metadata: dict[str, str]
        id: str | None = None

    documents = [
        "T\nbody",
        {"id": 1, "title": "T", "text": "body"},
        {"_id": "2", "contents": "T\nbody"},
        Hit("3", "T", "body"),
        {"docno": "4", "title": "T", "body": "body"},
        {"doc_id": "5", "title": "T", "content": "body", "text": ""},
        LangChainDocument("T\nbody", {"id": "6", "title": "another"}),
        {"page_content": "T\nbody", "metadata": {"_id": "7"}},
        SimpleNamespace(id=8, meta={}, content="T\nbody"),
    ]
    ranking = tiny_reranker.rerank("laptop", documents)
    # Equal scores keep the order they came in.
    assert [r.docid for r in ranking] == [None, "1", "2", "3", "4", "5", "6", "7", "8"]
    assert {r.text for r in ranking} == {"T\nbody"}
    assert len({r.score for r in ranking}) == 1


@pytest.mark.parametrize("batch_tokens", [1, 64, 500, 100_000])
@pytest.mark.parametrize("share_prefix", [True, False])
def test_a_result_does_not_depend_on_the_batch(
    tiny_reranker: Reranker, pairs: list[tuple[str, str]], batch_tokens: int, share_prefix: bool
) -> None:
    alone = [tiny_reranker.score_pairs([pair], features=True) for pair in pairs]
    other = Reranker(
        tiny_reranker.checkpoint, tiny_reranker.engine, batch_tokens=batch_tokens, share_prefix=share_prefix
    )
    order = list(range(len(pairs)))
    random.Random(1).shuffle(order)
    scores = other.score_pairs([pairs[i] for i in order], features=True)
    assert scores.features is not None
    for place, i in enumerate(order):
        np.testing.assert_allclose(scores.probabilities[place], alone[i].probabilities[0], atol=1e-5)
        np.testing.assert_allclose(scores.features[place], alone[i].features[0], atol=1e-5)  # type: ignore[index]


def test_the_engine_gives_what_transformers_gives(tiny_model: Path, pairs: list[tuple[str, str]]) -> None:
    """Logits and features against a plain forward pass of one sequence, by their definition."""
    from transformers import LlamaForCausalLM

    checkpoint = Checkpoint.load(tiny_model)
    reranker = Reranker.from_pretrained(tiny_model, engine="torch", device="cpu", precision="float32")
    model = LlamaForCausalLM.from_pretrained(tiny_model / "model").eval()
    scores = reranker.score_pairs(pairs[:20], features=True)
    encoder = checkpoint.encoder()
    for i, (query, document) in enumerate(pairs[:20]):
        group = encoder.encode(query, [document])
        with torch.inference_mode():
            output = model(torch.tensor([[*group.prefix, *group.suffixes[0]]]), output_hidden_states=True)
        final = output.hidden_states[-1][0, -1]
        middle = output.hidden_states[checkpoint.feature_layer][0]
        logits = checkpoint.head.weight @ final.numpy() + checkpoint.head.bias
        np.testing.assert_allclose(scores.logits[i], logits, atol=1e-4)
        parts = [middle[encoder.instruction_length :].mean(0), middle[-1], final]
        expected = torch.cat([part / part.norm() for part in parts])
        np.testing.assert_allclose(scores.features[i], expected, atol=1e-5)  # type: ignore[index]


def test_head_logits_are_the_language_models_own(tiny_model: Path) -> None:
    """An untrained head reads the same logits as the whole vocabulary row would."""
    from transformers import LlamaForCausalLM

    reranker = Reranker.from_pretrained(tiny_model, engine="torch", device="cpu", precision="float32")
    encoder = reranker.checkpoint.encoder()
    group = encoder.encode("laptop", ["a hose"])
    model = LlamaForCausalLM.from_pretrained(tiny_model / "model").eval()
    with torch.inference_mode():
        row = model(torch.tensor([[*group.prefix, *group.suffixes[0]]])).logits[0, -1]
    words = [grade.words[0] for grade in reranker.scale.grades]
    expected = row[encoder.word_ids(words)].numpy()
    np.testing.assert_allclose(reranker.score_pairs([("laptop", "a hose")]).logits[0], expected, atol=1e-4)


def test_rerank_many_is_rerank_of_each(tiny_reranker: Reranker, pairs: list[tuple[str, str]]) -> None:
    queries = ["laptop", "hose", "fox"]
    lists = [[d for _, d in pairs[:7]], [], [d for _, d in pairs[7:9]]]
    together = tiny_reranker.rerank_many(queries, lists)
    for query, documents, ranking in zip(queries, lists, together, strict=True):
        alone = tiny_reranker.rerank(query, documents)
        assert [r.index for r in ranking] == [r.index for r in alone]
        np.testing.assert_allclose([r.score for r in ranking], [r.score for r in alone], atol=1e-5)


def test_windows_take_the_best_one(tiny_reranker: Reranker) -> None:
    windowed = Reranker(tiny_reranker.checkpoint, tiny_reranker.engine, long_documents="window")
    text = " ".join(WORDS * 60)
    encoder = tiny_reranker.checkpoint.encoder()
    group = encoder.encode("laptop", [text], "window")
    assert len(group.suffixes) > 2
    answer = len(encoder._answer)
    pieces = [encoder._plain.decode(list(s[:-answer])) for s in group.suffixes]
    best = max(r.score for r in tiny_reranker.rerank("laptop", pieces))
    result = windowed.rerank("laptop", [text, "short"])
    long = next(r for r in result if r.index == 0)
    assert long.score == pytest.approx(best, abs=0.02)  # pieces decode and encode again almost alike
    assert not long.truncated
    assert next(r for r in tiny_reranker.rerank("laptop", [text]) if r.index == 0).truncated


def test_threads_share_a_reranker(tiny_reranker: Reranker, pairs: list[tuple[str, str]]) -> None:
    expected = tiny_reranker.score_pairs(pairs, features=True)
    found: list[float] = []

    def work() -> None:
        for _ in range(3):
            scores = tiny_reranker.score_pairs(pairs, features=True)
            found.append(float(np.abs(scores.probabilities - expected.probabilities).max()))
            found.append(float(np.abs(scores.features - expected.features).max()))  # type: ignore[operator]

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 * 3 * 2
    assert max(found) < 1e-5


def test_bfloat16_stays_near_float32(tiny_model: Path, tiny_reranker: Reranker, pairs: list[tuple[str, str]]) -> None:
    rounded = Reranker.from_pretrained(tiny_model, engine="torch", device="cpu", precision="bfloat16")
    assert rounded.fingerprint != tiny_reranker.fingerprint
    difference = rounded.score_pairs(pairs).probabilities - tiny_reranker.score_pairs(pairs).probabilities
    assert 0 < np.abs(difference).max() < 0.1


def test_an_adapter_is_applied(tiny_model: Path, tmp_path: Path, pairs: list[tuple[str, str]]) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny_model / "model")
    torch.manual_seed(0)
    settings = LoraConfig(target_modules="all-linear", init_lora_weights=False, r=4, task_type="CAUSAL_LM")
    get_peft_model(base, settings).save_pretrained(tmp_path / "adapter")
    plain = Checkpoint.load(tiny_model)
    adapted = plain.save(tmp_path / "new", adapter=tmp_path / "adapter", model=plain.model_folder)
    assert adapted.fingerprint != plain.fingerprint
    reranker = Reranker(adapted, TorchEngine(adapted, device="cpu", precision="float32"))
    untouched = Reranker(plain, TorchEngine(plain, device="cpu", precision="float32"))
    changed = reranker.score_pairs(pairs[:5]).logits - untouched.score_pairs(pairs[:5]).logits
    assert np.abs(changed).max() > 0.1


def test_any_iterable_of_documents_is_taken(tiny_reranker: Reranker) -> None:
    documents = ["Dell XPS 13 notebook", "Garden hose"]
    expected = tiny_reranker.rerank("laptop", documents)
    assert tiny_reranker.rerank("laptop", (d for d in documents)) == expected
    assert tiny_reranker.rerank("laptop", dict.fromkeys(documents).keys()) == expected


class _Awkward:
    docid = "awkward"

    @property
    def text(self) -> str:
        raise RuntimeError("no text today")


def test_what_can_not_be_judged_costs_only_itself(tiny_reranker: Reranker) -> None:
    good = ["Dell XPS 13 notebook", "Garden hose"]
    bad = [None, "", {"id": "d7", "title": " "}, {"docno": 5, "text": 3}, {"id": "x", "summary": "y"}, 3, _Awkward()]
    ranking = tiny_reranker.rerank("laptop", [bad[0], good[0], *bad[1:], good[1]])
    assert [(r.document, r.score) for r in ranking[:2]] == [
        (r.document, r.score) for r in tiny_reranker.rerank("laptop", good)
    ]
    assert ranking.judged == 2
    assert [r.index for r in ranking[2:]] == [0, 2, 3, 4, 5, 6, 7]  # the input's order
    assert [r.docid for r in ranking[2:]] == [None, None, "d7", "5", "x", None, "awkward"]
    for r in ranking[2:]:
        assert (r.judged, r.score, r.grade, r.grade_name, r.probabilities) == (False, None, None, None, ())
        assert r.reason
        assert RankedDocument.from_dict(r.to_dict(), document=r.document) == r
    assert "found id, summary" in str(ranking[6].reason)
    assert "no text today" in str(ranking[8].reason)
    assert tiny_reranker.rerank("laptop", []) == []
    scores = tiny_reranker.score_pairs([("laptop", ""), ("laptop", good[0])], strict=False)
    assert scores.judged.tolist() == [False, True]
    assert np.isnan(scores.score[0])
    assert scores.grade[0] == -1


def test_a_query_that_is_too_long_is_cut_and_says_so(tiny_reranker: Reranker) -> None:
    documents = ["Dell XPS 13 notebook", "Garden hose"]
    ranking = tiny_reranker.rerank("laptop " * 5000, documents)
    assert all(r.judged and r.query_truncated for r in ranking)
    short, long = tiny_reranker.rerank_many(["laptop", "laptop " * 5000], [documents, documents])
    assert not any(r.query_truncated for r in short)
    assert [r.score for r in long] == pytest.approx([r.score for r in ranking])
    scores = tiny_reranker.score_pairs([("laptop", "x"), ("laptop " * 5000, "x")], strict=False)
    assert scores.query_truncated is not None
    assert scores.query_truncated.tolist() == [False, True]


def test_half_an_emoji_is_no_error(tiny_reranker: Reranker) -> None:
    (result,) = tiny_reranker.rerank("laptop \ud83d", ["a notebook \ud83d\ude00 \ud83d"])
    assert result.judged
    assert result.text == "a notebook \U0001f600 \ufffd"
    (unread,) = tiny_reranker.rerank("laptop", [{"\ud83d": "a notebook", **{f"field {i}": i for i in range(1000)}}])
    assert unread.reason is not None
    assert "found \ufffd, field 0" in unread.reason
    assert len(unread.reason) < 400


def test_logits_that_are_not_finite_are_one_clear_error(tiny_reranker: Reranker, tiny_model: Path) -> None:
    class Broken(TorchEngine):
        def grade(self, batch: MicroBatch, prefix: Any, *, features: bool) -> GradeOutput:
            output = super().grade(batch, prefix, features=features)
            output.logits[[len(sequence) > 100 for sequence in batch.sequences]] = np.nan
            return output

    broken = Reranker(tiny_reranker.checkpoint, Broken(tiny_reranker.checkpoint, device="cpu", precision="float32"))
    documents = ["a notebook", "a hose", "garden hose " * 60]
    with pytest.raises(InputError, match=r"query 'laptop', document 2: the model's logits are not finite"):
        broken.rerank_many(["toner", "laptop"], [["short"], documents])
    assert len(broken.rerank("laptop", documents[:2])) == 2


def test_representations_say_what_it_is(tiny_reranker: Reranker) -> None:
    assert repr(tiny_reranker) == "Reranker('tiny_model', engine='torch', device='cpu', precision='float32')"
    first, second, last = tiny_reranker.rerank("laptop", [{"id": "a", "text": "Garden\nhose " * 50}, "x", ""])
    shown = repr(first if first.docid else second)
    assert "docid='a'" in shown
    assert "Garden hose Garden" in shown
    assert shown.endswith("…')")
    assert len(shown) < 140
    assert "not judged, is empty" in repr(last)


def test_a_window_is_named_by_its_characters(tiny_reranker: Reranker) -> None:
    windowed = Reranker(tiny_reranker.checkpoint, tiny_reranker.engine, long_documents="window")
    text = " ".join(WORDS * 60) + " größe 日本語 " + " ".join(WORDS * 20)
    long, short = sorted(windowed.rerank("laptop", [{"title": "T", "text": text}, "short"]), key=lambda r: r.index)
    assert short.span == (0, len("short"))
    assert long.span is not None
    start, end = long.span
    assert long.text == f"T\n{text}"
    assert 0 < end - start < len(long.text)
    # What the window holds is judged as the window was.
    (alone,) = windowed.rerank("laptop", [long.text[start:end]])
    assert alone.score == pytest.approx(long.score, abs=0.02)  # a word at its start may be cut into other tokens
    assert RankedDocument.from_dict(long.to_dict(), document=long.document) == long
    assert all(r.span is None for r in tiny_reranker.rerank("laptop", [text]))
