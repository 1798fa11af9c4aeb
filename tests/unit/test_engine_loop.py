"""The loop that drives an engine: memory that does not suffice, and sums that need no mask of the batch's size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from darl_rerank import Checkpoint, Reranker
from darl_rerank.engines.base import GradeOutput, OutOfMemoryError, grade_groups
from darl_rerank.engines.batching import MicroBatch
from darl_rerank.engines.torch_engine import TorchEngine, own_sums
from darl_rerank.errors import InputError
from darl_rerank.model.precisions import canonical_precision
from darl_rerank.model.prompt import PromptGroup


class Cramped:
    """An engine with memory for `room` sequences; the logits of a sequence are its first token and its length."""

    name, device, precision, batch_tokens = "test", "cuda", "float32", 1000
    exits = None

    def __init__(self, room: int) -> None:
        self._room = room
        self.sizes: list[int] = []

    def encode_prefix(self, prefix: tuple[int, ...]) -> Any:
        return prefix

    def grade(self, batch: MicroBatch, prefix: Any | None, *, features: bool) -> GradeOutput:
        self.sizes.append(len(batch.sequences))
        if len(batch.sequences) > self._room:
            raise OutOfMemoryError("no memory")
        logits = np.array([[s[0], len(s)] for s in batch.sequences], dtype=np.float32)
        return GradeOutput(logits, np.repeat(logits, 2, axis=1) if features else None)


def group(count: int) -> PromptGroup:
    suffixes = tuple((i, *range(i % 3)) for i in range(count))
    return PromptGroup((1, 2), suffixes, tuple(range(count)), (False,) * count)


def test_a_batch_too_large_is_run_in_two_halves_once_and_says_so() -> None:
    engine = Cramped(room=5)
    with pytest.warns(RuntimeWarning, match="no memory for a batch of 9 sequences .* two halves; with batch_tokens=13"):
        found = grade_groups(engine, [group(9)], grades=2, features=True)
    assert engine.sizes == [9, 5, 4]
    assert found.logits[:, 0].tolist() == list(range(9))
    assert found.features is not None
    assert found.features[:, 0].tolist() == list(range(9))


@pytest.mark.parametrize(("room", "count", "sizes"), [(3, 9, [9, 5]), (0, 1, [1])])
def test_what_does_not_fit_in_halves_either_is_an_error(room: int, count: int, sizes: list[int]) -> None:
    engine = Cramped(room)
    with pytest.raises(OutOfMemoryError), pytest.warns() if count > 1 else _nothing():
        grade_groups(engine, [group(count)], grades=2, share_prefix=count > 1)
    assert engine.sizes == sizes


def _nothing() -> Any:
    import contextlib

    return contextlib.nullcontext()


def test_torch_s_error_is_translated(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint.load(tiny_model)
    engine = TorchEngine(checkpoint, device="cpu", precision="float32")
    expected = Reranker(checkpoint, engine).score_pairs([("laptop", f"hose {i}") for i in range(6)])
    run, rows = engine.decoder.run, []

    def cramped(sequences: Any, *more: Any, **options: Any) -> Any:
        rows.append(len(sequences))
        if len(sequences) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(sequences, *more, **options)

    monkeypatch.setattr(engine.decoder, "run", cramped)
    with pytest.warns(RuntimeWarning, match="two halves"):
        found = Reranker(checkpoint, engine).score_pairs([("laptop", f"hose {i}") for i in range(6)])
    assert rows == [1, 6, 3, 3]
    np.testing.assert_allclose(found.logits, expected.logits, atol=1e-5)


@pytest.mark.parametrize("skipped", [0, 2])
def test_own_sums_are_those_of_each_sequence(skipped: int) -> None:
    torch.manual_seed(0)
    lengths = [3, 7, 4]
    states = torch.randn(sum(lengths), 5)
    expected = torch.stack([part[skipped:].sum(0) for part in states.split(lengths)])
    torch.testing.assert_close(own_sums(states, torch.tensor(lengths), skipped), expected)


def test_own_sums_make_no_mask_of_sequences_by_tokens() -> None:
    """At a GPU's budget, 65,536 tokens of short sequences, such a mask would be a hundred times the states here."""
    lengths, largest = torch.full((4096,), 16), 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            found = function(*args, **(kwargs or {}))
            if isinstance(found, torch.Tensor):
                largest = max(largest, found.numel())
            return found

    states = torch.ones(65536, 8)
    with Watch():
        own_sums(states, lengths, 2)
    assert largest <= states.numel()


@pytest.mark.parametrize(
    ("given", "full"), [("fp32", "float32"), ("BF16", "bfloat16"), ("fp16", "float16"), ("int8", "int8")]
)
def test_precisions_have_short_names(given: str, full: str) -> None:
    assert canonical_precision(given) == full


def test_an_unknown_precision_lists_those_that_there_are(tiny_model: Path) -> None:
    with pytest.raises(InputError, match="no precision 'int8'; known here: float32, bfloat16, float16"):
        TorchEngine(Checkpoint.load(tiny_model), device="cpu", precision="int8")
    assert TorchEngine(Checkpoint.load(tiny_model), device="cpu", precision="fp32").precision == "float32"
