"""The torch engine: a decoder, the last token's hidden state, K head rows in float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..model.checkpoint import Checkpoint
from ..model.head import grade_logits
from ..model.precisions import canonical_precision
from .base import GradeOutput, OutOfMemoryError
from .batching import MicroBatch
from .decoder import DecoderStates
from .decoder_loading import load_decoder
from .hardware import cpu_has_bfloat16
from .torch_exits import MicroBatchExits, TorchExits

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# The largest block whose release makes glibc keep more memory (its DEFAULT_MMAP_THRESHOLD_MAX).
_LARGEST_KEPT = 32 << 20


@dataclass(frozen=True, slots=True)
class PrefixState:
    """A prefix that was run once.

    Attributes:
        keys_values: of all layers, as the decoder keeps them.
        own_count: its tokens after the instruction.
        own_sum: sum of the middle layer's states over these, shape (hidden,), float32.
    """

    keys_values: Any
    own_count: int
    own_sum: Tensor


class TorchEngine:
    """Runs a checkpoint with torch.

    Args:
        checkpoint: what to run; an adapter is merged into the weights. Pairs leave early if it has exits with a rule.
        device: "cpu", "cuda", "cuda:1" …; the first GPU if there is one, else the CPU, if None.
        precision: "float32", "bfloat16" or "float16", or short ("bf16"); if None bfloat16 on a GPU and on CPUs that
            multiply it in hardware, float32 otherwise.
        fused: False to run every decoder by transformers' own forward pass, which is slower.
        model: the decoder, if it is loaded already: as `load_body` gives it, in this precision.

    Raises:
        InputError: unknown precision, or a device that is not there.

    Attributes:
        decoder: what runs the sequences.
    """

    name = "torch"

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str | None = None,
        precision: str | None = None,
        fused: bool = True,
        model: Any = None,
    ) -> None:
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            self._device = torch.device(self.device)
        except RuntimeError as error:
            raise InputError(f"unknown device {self.device!r}: expected cpu, cuda, cuda:1 …") from error
        if self._device.type == "cuda" and (self._device.index or 0) >= torch.cuda.device_count():
            raise InputError(f"device {self.device!r} is not there: torch sees {torch.cuda.device_count()} GPUs")
        on_gpu = self._device.type == "cuda"
        if precision is None:
            precision = "bfloat16" if on_gpu or cpu_has_bfloat16() else "float32"
        self.precision = canonical_precision(precision, _DTYPES)
        # On a CPU small batches keep their activations in cache: 512 to 1024 tokens ran fastest, 4096 half as fast.
        self.batch_tokens = 65536 if on_gpu else 1024
        self._link = checkpoint.link
        self._weight = torch.from_numpy(checkpoint.head.weight).to(self._device)
        self._bias = torch.from_numpy(checkpoint.head.bias).to(self._device)
        self._feature_layer = checkpoint.feature_layer
        # Without a rule nothing would leave.
        self.exits = None if checkpoint.exits is None or checkpoint.exits.rule is None else checkpoint.exits
        self._exits = None if self.exits is None else TorchExits(self.exits, self._link, self._device)
        self._instruction_length = checkpoint.encoder().instruction_length
        self.decoder = load_decoder(checkpoint, _DTYPES[self.precision], self._device, fused=fused, model=model)
        # Each layer's activations, some megabytes, come and go. Once so large a block has been let go of, glibc keeps
        # that much memory instead of giving it back and asking anew, a page fault for every four kilobytes.
        torch.empty(_LARGEST_KEPT - 4096, dtype=torch.uint8)

    @torch.inference_mode()
    def encode_prefix(self, prefix: tuple[int, ...]) -> PrefixState:
        states = self.decoder.run([prefix], keep=True)
        own = states.middle[self._instruction_length :]
        return PrefixState(states.keys_values, len(own), own.float().sum(0))

    @torch.inference_mode()
    def grade(self, batch: MicroBatch, prefix: PrefixState | None, *, features: bool) -> GradeOutput:
        try:
            return self._grade(batch, prefix, features)
        except torch.OutOfMemoryError as error:
            message = str(error)
        # Outside the handler: the traceback holds on to the tensors of the failed run.
        torch.cuda.empty_cache()
        raise OutOfMemoryError(message)

    def _grade(self, batch: MicroBatch, prefix: PrefixState | None, features: bool) -> GradeOutput:
        count = len(batch.sequences)
        exits = None if self._exits is None else MicroBatchExits(self._exits, count)
        states = self.decoder.run(batch.sequences, None if prefix is None else prefix.keys_values, exits=exits)
        final = states.final.float()
        outputs = torch.nn.functional.linear(final, self._weight, self._bias)
        logits = grade_logits(self._link, outputs.cpu().numpy())
        if exits is None:
            found = self._features(batch.sequences, states, prefix).cpu().numpy() if features else None
            return GradeOutput(logits, found)
        exits.logits[exits.present] = logits
        if not features:
            return GradeOutput(exits.logits, None, exits.left_at)
        reached = np.flatnonzero((exits.left_at == 0) | (exits.left_at >= self._feature_layer))
        # What a sequence left before is not known of it.
        final = torch.full((count, states.final.shape[1]), torch.nan, device=self._device)
        final[torch.from_numpy(exits.present).to(self._device)] = states.final.float()
        states = replace(states, final=final[torch.from_numpy(reached).to(self._device)])
        found = np.full((count, 3 * final.shape[1]), np.nan, dtype=np.float32)
        if len(reached):
            found[reached] = self._features([batch.sequences[i] for i in reached], states, prefix).cpu().numpy()
        return GradeOutput(exits.logits, found, exits.left_at)

    def _features(
        self, sequences: Sequence[Sequence[int]], states: DecoderStates, prefix: PrefixState | None
    ) -> Tensor:
        """Novelty features of sequences that have come to the middle layer, shape (n, 3 * hidden)."""
        lengths = torch.tensor([len(sequence) for sequence in sequences], device=self._device)
        last = lengths.cumsum(0) - 1
        # A whole sequence begins with the instruction, which no feature counts.
        skipped = 0 if prefix is not None else self._instruction_length
        total, count = own_sums(states.middle.float(), lengths, skipped), (lengths - skipped)[:, None]
        if prefix is not None:
            total, count = total + prefix.own_sum, count + prefix.own_count
        parts = (total / count, states.middle[last].float(), states.final.float())
        return torch.cat([torch.nn.functional.normalize(part, dim=-1) for part in parts], dim=-1)


def own_sums(states: Tensor, lengths: Tensor, skipped: int) -> Tensor:
    """Sum of each sequence's states from number `skipped` on.

    Args:
        states: of the sequences one after the other, shape (T, hidden), float32.
        lengths: of the sequences, shape (n,), on the same device, each above `skipped`.
        skipped: how many of each sequence's first states are left out.

    Returns:
        shape (n, hidden).
    """
    count, tokens = len(lengths), len(states)
    rows = torch.repeat_interleave(torch.arange(count, device=states.device), lengths, output_size=tokens)
    if skipped:
        inside = torch.arange(tokens, device=states.device) - (lengths.cumsum(0) - lengths)[rows]
        # What is left out goes to a row of its own: no size depends on values, which a GPU would have to be asked for.
        rows = rows.where(inside >= skipped, count)
    return states.new_zeros(count + 1, states.shape[1]).index_add_(0, rows, states)[:count]
