"""One pass of the base model over all pairs, kept: what lies below the trained layers is never computed again.

Fine-tuning changes the decoder's last layers only. The hidden states that enter the first of them are therefore the
same in every arm, and are written to disk once, a row a token. After that a model's "tokens" are row numbers: the
embedding becomes a look-up of rows (`StateTable`), the layers below are dropped, and an encoder gives row numbers for
texts (`RowEncoder`). The library's own fine-tuning and prediction then run unchanged, at a third of the cost of a
forward pass. The same pass gives novelty features, final states and zero-shot logits of every pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

from darl_rerank.errors import InputError
from darl_rerank.model.checkpoint import Checkpoint
from darl_rerank.model.prompt import LongDocuments, PromptEncoder, PromptGroup
from darl_rerank.model.scale import RelevanceScale
from darl_rerank.training.model.grade_model import GradeModel, load_grade_model, save_weights
from darl_rerank.training.model.packing import pack
from darl_rerank.training.model.predict import reduced_precision
from darl_rerank.training.recipe.settings import Trainable
from darl_rerank.trec.graded_pairs import GradedPair

# Queries a file: a kill costs at most so many.
_BLOCK = 24


@dataclass(frozen=True, slots=True)
class BaseStates:
    """What the base model sees in n pairs.

    Attributes:
        table: states entering the first trained layer, a row a token, shape (T, hidden).
        encoder: texts to row numbers of `table`.
        features: novelty features as the torch engine defines them, shape (n, 3 · hidden), float16.
        finals: final state of each pair's last token, shape (n, hidden), float32.
        truncated: how many documents were cut.
    """

    table: Tensor
    encoder: RowEncoder
    features: NDArray[np.float16]
    finals: NDArray[np.float32]
    truncated: int


class RowEncoder:
    """Stands in for the prompt's encoder: the same groups with rows of the table in the place of token ids."""

    def __init__(self) -> None:
        self._instruction: tuple[int, ...] = ()
        self._queries: dict[str, tuple[range, dict[str, range]]] = {}
        self._rows = 0

    def add(self, query: str, documents: Sequence[str], group: PromptGroup, instruction: int) -> None:
        """Note where a query group's states stand; groups are added in the order of the table's rows."""
        if not self._queries:
            self._instruction = tuple(range(instruction))
        # Each group's states begin with the instruction's own; the first group's serve all, so that they are shared.
        start = self._rows + instruction
        prefix = range(start, self._rows + len(group.prefix))
        place = prefix.stop
        found = {}
        for document, suffix in zip(documents, group.suffixes, strict=True):
            found[document] = range(place, place + len(suffix))
            place += len(suffix)
        self._queries[query] = (prefix, found)
        self._rows = place

    def encode(self, query: str, documents: Sequence[str], long_documents: LongDocuments = "truncate") -> PromptGroup:
        """As `PromptEncoder.encode`, for texts that were added.

        Raises:
            InputError: the pass did not see them.
        """
        try:
            prefix, rows = self._queries[query]
            suffixes = tuple(tuple(rows[document]) for document in documents)
        except KeyError as error:
            raise InputError(f"no states were kept of {error}") from None
        count = len(documents)
        return PromptGroup((*self._instruction, *prefix), suffixes, tuple(range(count)), (False,) * count)


@dataclass(frozen=True, slots=True)
class CachedCheckpoint:
    """The part of a checkpoint that `finetune` reads, with a `RowEncoder` in the place of its own encoder."""

    scale: RelevanceScale
    rows: RowEncoder

    def encoder(self) -> RowEncoder:
        return self.rows


class StateTable(nn.Module):
    """Rows of the table as what the remaining layers take in; never trained, saved or copied."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, ids: Tensor) -> Tensor:
        if self.rows.device != ids.device:
            self.rows = self.rows.to(ids.device)
        return self.rows[ids].float()


def last_layers(checkpoint: Checkpoint, trainable: Trainable, table: Tensor, *, seed: int) -> GradeModel:
    """The model ready to train, on rows of `table` instead of tokens."""
    model = load_grade_model(checkpoint, trainable, seed=seed)
    body = model.body
    first = len(body.layers) - (trainable.layers or len(body.layers))
    body.layers = nn.ModuleList(list(body.layers)[first:])
    body.config.num_hidden_layers = len(body.layers)
    body.embed_tokens = StateTable(table)
    return model


def base_states(
    checkpoint: Checkpoint, layers: int, pairs: Sequence[GradedPair], folder: Path, *, progress: bool = True
) -> BaseStates:
    """The pass, from `folder` as far as it is there.

    Args:
        checkpoint: the base model.
        layers: how many last layers will be trained.
        pairs: those of a query one after the other, no pair of texts twice.
        folder: of these pairs and this model only; one file a block of queries.
        progress: show rate and time left on stderr.
    """
    encoder = checkpoint.encoder()
    queries: dict[str, list[str]] = {}
    for pair in pairs:
        queries.setdefault(pair.query, []).append(pair.document)
    names = list(queries)
    rows, groups = RowEncoder(), []
    for query in names:
        group = encoder.encode(query, queries[query])
        rows.add(query, queries[query], group, encoder.instruction_length)
        groups.append(group)
    blocks = [range(start, min(start + _BLOCK, len(names))) for start in range(0, len(names), _BLOCK)]
    paths = [folder / f"states-{block.start:06d}.safetensors" for block in blocks]
    missing = [i for i, path in enumerate(paths) if not path.is_file()]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        _compute(checkpoint, layers, groups, [(blocks[i], paths[i]) for i in missing], encoder, len(pairs), progress)
    parts = [load_file(path) for path in paths]
    return BaseStates(
        table=torch.cat([part["states"] for part in parts]),
        encoder=rows,
        features=torch.cat([part["features"] for part in parts]).numpy(),
        finals=torch.cat([part["finals"] for part in parts]).numpy(),
        truncated=sum(sum(group.truncated) for group in groups),
    )


def _compute(
    checkpoint: Checkpoint,
    layers: int,
    groups: Sequence[PromptGroup],
    work: Sequence[tuple[range, Path]],
    encoder: PromptEncoder,
    total: int,
    progress: bool,
) -> None:
    model = load_grade_model(checkpoint, Trainable(weights="head"))
    model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    todo = sum(len(groups[i].suffixes) for block, _ in work for i in block)
    with tqdm(total=total, initial=total - todo, unit="pair", desc="base states", disable=not progress) as bar:
        for block, path in work:
            found = []
            for i in block:
                found.append(
                    group_states(model, groups[i], checkpoint.feature_layer, layers, encoder.instruction_length)
                )
                bar.update(len(groups[i].suffixes))
            save_weights(path, {name: torch.cat([part[name] for part in found]) for name in found[0]})


@torch.inference_mode()
def group_states(
    model: GradeModel, group: PromptGroup, feature_layer: int, layers: int, instruction: int
) -> dict[str, Tensor]:
    """States, novelty features and final states of one query group, packed as in training; see `BaseStates`."""
    body = model.body
    packed = pack([group])
    device = next(model.parameters()).device
    kept: dict[str, Tensor] = {}

    def keep(name: str, layer: int) -> Any:
        hook = lambda _module, arguments: kept.__setitem__(name, arguments[0][0])  # noqa: E731
        return body.layers[layer].register_forward_pre_hook(hook)

    hooks = [keep("below", len(body.layers) - layers), keep("middle", feature_layer)]
    try:
        with reduced_precision(device):
            final = body(**_on(packed.inputs(), device), use_cache=False).last_hidden_state[0]
    finally:
        for hook in hooks:
            hook.remove()
    middle = kept["middle"].float()
    last = packed.last.to(device)
    own = middle[instruction : len(group.prefix)].sum(0)
    count = len(group.prefix) - instruction
    place, means = len(group.prefix), []
    for suffix in group.suffixes:
        means.append((own + middle[place : place + len(suffix)].sum(0)) / (count + len(suffix)))
        place += len(suffix)
    finals = final[last].float()
    parts = (torch.stack(means), middle[last], finals)
    features = torch.cat([nn.functional.normalize(part, dim=-1) for part in parts], dim=-1)
    # In float32, as the decoder hands them on: a few dimensions are a thousand times larger than the rest, and rounding
    # the states to bfloat16 moved SmolLM2's logits by up to 0.1.
    found = {"states": kept["below"][: packed.tokens].float(), "features": features.half(), "finals": finals}
    return {name: value.cpu().contiguous() for name, value in found.items()}


def _on(values: dict[str, Any], device: torch.device) -> dict[str, Any]:
    def moved(value: Any) -> Any:
        return value.to(device) if isinstance(value, Tensor) else tuple(moved(part) for part in value)

    return {name: moved(value) for name, value in values.items()}
