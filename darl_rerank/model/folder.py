"""The folder that holds a checkpoint: read, with all its faults listed, and written.

    checkpoint.json       the manifest: scale, prompt, base model, link, calibration, novelty settings, provenance,
                          sha256 of every file
    tokenizer.json
    head.safetensors      weight (K, hidden), bias (K,), float32; norm (hidden,) where it is not the base's final norm
    novelty.safetensors   statistics of the training set's features, if it was trained with them
    exits.safetensors     heads at earlier layers, if it has early exits; see `exits`
    adapter/              a PEFT adapter on the base model, or
    model/                the whole model's weights, merged; with neither, the base model itself is used
    README.md             model card

An exported folder (`darl_rerank.export`) adds its ONNX files beside these.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from ..errors import InputError
from .decisions import Decisions
from .digests import file_sha256
from .exits import Exits
from .faults import HEAD, TOKENIZER, file_faults, head_faults, layer_faults, novelty_faults
from .head import Head
from .hub import CARD
from .manifest import MANIFEST, manifest_values, read_manifest
from .novelty import NoveltyModel

if TYPE_CHECKING:
    from .checkpoint import Checkpoint

_NOVELTY = "novelty.safetensors"
_EXITS = "exits.safetensors"
# Files of those parts that have tensors beside their values in the manifest.
_TENSORS = {"novelty": _NOVELTY, "exits": _EXITS}
# What a person may edit in place without the checkpoint becoming another model.
_UNSEALED = {CARD, MANIFEST}


def read_folder(folder: Path) -> dict[str, Any]:
    """The fields of the `Checkpoint` in a folder, by name, once every file is there and is what was saved.

    Raises:
        InputError: see `Checkpoint.load`.
    """
    parts, faults = read_manifest(folder)
    faults += file_faults(folder, parts.get("files", {}))
    tensors: dict[str, dict[str, NDArray[Any]]] = {}
    of_parts = [name for part, name in _TENSORS.items() if parts.get(part) is not None]
    for name in (HEAD, *of_parts):
        try:
            tensors[name] = load_file(folder / name)
        except (SafetensorError, OSError) as error:
            # A missing file is named already.
            if (folder / name).is_file():
                faults.append(f"{name} could not be read: {error}")
    faults += _join(parts, tensors)
    if faults:
        raise InputError("; ".join(faults), path=folder)
    head = tensors[HEAD]
    return {
        "tokenizer_json": (folder / TOKENIZER).read_text("utf-8"),
        "head": Head(head["weight"], head["bias"], head.get("norm")),
        "sha256": parts.pop("files"),
        **parts,
    }


def _join(parts: dict[str, Any], tensors: Mapping[str, Mapping[str, NDArray[Any]]]) -> list[str]:
    """Make those parts of the manifest that need tensors or the scale, in place; returns what does not fit together."""
    faults: list[str] = []
    if HEAD in tensors:
        faults += head_faults(tensors[HEAD], parts)
    if _NOVELTY in tensors:
        try:
            parts["novelty"] = NoveltyModel.from_tensors(tensors[_NOVELTY], parts["novelty"])
            faults += novelty_faults(parts["novelty"], tensors.get(HEAD, {}))
        except InputError as error:
            faults.append(f"novelty: {error}")
    weight = tensors.get(HEAD, {}).get("weight")
    if _EXITS in tensors and "scale" in parts and weight is not None and weight.ndim == 2:
        try:
            parts["exits"] = Exits.from_tensors(tensors[_EXITS], parts["exits"], parts["scale"], int(weight.shape[1]))
        except InputError as error:
            faults.append(f"exits: {error}")
    faults += layer_faults(parts)
    if "scale" in parts and "decisions" in parts:
        try:
            parts["decisions"] = Decisions.from_dict(parts["decisions"], parts["scale"])
        except InputError as error:
            faults.append(f"decisions: {error}")
    return faults


def write_folder(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    adapter: Path | None = None,
    model: Path | None = None,
    card: str | None = None,
) -> None:
    """Write the files into an existing folder and seal whatever else already is there (an export's ONNX files).

    Args:
        checkpoint: what is written.
        folder: where to.
        adapter: a folder with a PEFT adapter, copied in.
        model: a folder with the whole model's weights, copied in.
        card: text of README.md; a short one if None.

    Raises:
        InputError: `adapter` or `model` has no weights as safetensors.
    """
    head = checkpoint.head
    (folder / TOKENIZER).write_text(checkpoint.tokenizer_json, "utf-8")
    norm = {} if head.norm is None else {"norm": head.norm}
    (folder / HEAD).write_bytes(save({"weight": head.weight, "bias": head.bias, **norm}))
    made: dict[str, tuple[Mapping[str, NDArray[Any]], Mapping[str, Any]]] = {}
    if checkpoint.novelty is not None:
        made["novelty"] = checkpoint.novelty.to_tensors()
    if checkpoint.exits is not None:
        made["exits"] = checkpoint.exits.to_tensors(checkpoint.scale)
    for part, name in _TENSORS.items():
        if part in made:
            (folder / name).write_bytes(save(dict(made[part][0])))
        else:
            (folder / name).unlink(missing_ok=True)
    settings = {part: values for part, (_, values) in made.items()}
    for name, source in (("adapter", adapter), ("model", model)):
        if source is not None:
            _copy_weights(source, folder / name)
    (folder / CARD).write_text(checkpoint.card() if card is None else card, "utf-8")
    files = {
        str(path.relative_to(folder)): file_sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and str(path.relative_to(folder)) not in _UNSEALED
    }
    values = manifest_values(checkpoint, settings, files)
    (folder / MANIFEST).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _copy_weights(source: Path, target: Path) -> None:
    """Copy configuration and safetensors, nothing else: no pickle travels."""
    target.mkdir()
    copied = [*sorted(source.glob("*.json")), *sorted(source.glob("*.safetensors"))]
    if not any(path.suffix == ".safetensors" for path in copied):
        raise InputError("expected weights as *.safetensors; pickled weights are not read", path=source)
    for path in copied:
        if path.name not in (TOKENIZER, "tokenizer_config.json"):
            (target / path.name).write_bytes(path.read_bytes())
