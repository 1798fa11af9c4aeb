"""The manifest of a checkpoint, checkpoint.json: read with all its faults listed, one reader for each format
number, and written.

Format 1 has no `link`: its heads are read by softmax. Format 2 says how the head's outputs are read. Format 3 has
`layers`: the model ends behind one of the base's layers. Format 4 has `prefill_layers`: behind it only the last token
goes on. Each is written for such a model alone; versions that would run it otherwise refuse it so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .base_model import BaseModel
from .calibration import Calibration
from .export_record import ExportRecord
from .head import check_link
from .precisions import canonical_precision
from .prompt import Prompt
from .reach import Reach
from .scale import RelevanceScale

if TYPE_CHECKING:
    from .checkpoint import Checkpoint

FORMAT = 4
MANIFEST = "checkpoint.json"


def read_manifest(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The parts of a checkpoint that its manifest holds, and everything that is wrong with it.

    Args:
        folder: the checkpoint's.

    Returns:
        the parts by name, without those at fault, and the faults, each a sentence.

    Raises:
        InputError: no manifest, not JSON, or a format that this version does not read.
    """
    path = folder / MANIFEST
    if not path.is_file():
        hint = ""
        if (folder / "config.json").is_file():
            hint = "; `darl-rerank init` makes one of a model, with --base, or of a reranker, with --from"
        raise InputError(f"expected a checkpoint folder (no {MANIFEST} there){hint}", path=folder)
    try:
        values = json.loads(path.read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"expected JSON: {error}", path=path) from error
    known = ", ".join(map(str, _READERS))
    found = values.get("format") if isinstance(values, dict) else None
    if not isinstance(found, int) or found not in _READERS:
        newer = "; a newer darl-rerank reads it" if isinstance(found, int) and found > FORMAT else ""
        raise InputError(f"expected checkpoint format {known}, found {found!r}{newer}", path=path)
    return _READERS[found](values)


def manifest_values(
    checkpoint: Checkpoint, settings: Mapping[str, Mapping[str, Any]], files: Mapping[str, str]
) -> dict[str, Any]:
    """What the manifest of a checkpoint holds, in JSON types.

    Args:
        checkpoint: what is written.
        settings: of the parts that have tensors beside, by the part's name.
        files: digests by relative path.
    """
    return {
        "format": _format(checkpoint),
        "scale": checkpoint.scale.to_dict(),
        "prompt": checkpoint.prompt.to_dict(),
        "base": checkpoint.base.to_dict(),
        "feature_layer": checkpoint.feature_layer,
        **({} if checkpoint.layers is None else {"layers": checkpoint.layers}),
        **({} if checkpoint.prefill_layers is None else {"prefill_layers": checkpoint.prefill_layers}),
        "link": checkpoint.link,
        "calibration": checkpoint.calibration.to_dict(),
        "novelty": settings.get("novelty"),
        **({"exits": settings["exits"]} if "exits" in settings else {}),
        **({"decisions": decisions} if (decisions := checkpoint.decisions.to_dict(checkpoint.scale)) else {}),
        **({} if checkpoint.reach is None else {"reach": checkpoint.reach.to_dict()}),
        **({"finer_products": found} if (found := {k: list(v) for k, v in checkpoint.finer_products.items()}) else {}),
        "trained": checkpoint.trained,
        "provenance": dict(checkpoint.provenance),
        **({} if checkpoint.export is None else {"export": checkpoint.export.to_dict()}),
        "files": files,
    }


def _format(checkpoint: Checkpoint) -> int:
    """The lowest that such a manifest can have, so that older versions read what they can run."""
    if checkpoint.prefill_layers is not None:
        return 4
    return 2 if checkpoint.layers is None else 3


def _read_1(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    changes: dict[str, Any] = {"link": "softmax"}
    provenance = values.get("provenance")
    # Version 0.1 kept the record of an export there.
    if "export" not in values and isinstance(provenance, dict) and isinstance(found := provenance.get("export"), dict):
        precision = found.get("precision", "float32")
        changes["export"] = {
            "precision": precision,
            "opset": found.get("opset"),
            "finer_products": found.get("finer products", []),
        }
    return _read_2({**values, **changes})


def _read_2(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    parts: dict[str, Any] = {}
    faults: list[str] = []
    if missing := sorted(_PARTS.keys() - _OPTIONAL.keys() - values.keys()):
        faults.append(f"lacks {', '.join(missing)}")
    for name, read in _PARTS.items():
        if name not in values:
            if name in _OPTIONAL:
                parts[name] = _OPTIONAL[name]
            continue
        try:
            parts[name] = read(values[name])
        except InputError as error:
            faults.append(f"{name}: {error}")
    return parts, faults


_READERS: dict[int, Callable[[Mapping[str, Any]], tuple[dict[str, Any], list[str]]]] = {
    1: _read_1,
    2: _read_2,
    3: _read_2,
    4: _read_2,
}


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"expected an object, found {_shown(value)}")
    return value


def _link(value: Any) -> str:
    check_link(value)
    return str(value)


def _layer(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"expected a whole number of at least 1, found {_shown(value)}")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"expected true or false, found {_shown(value)}")
    return value


def _mapping_or_none(value: Any) -> Mapping[str, Any] | None:
    return None if value is None else _mapping(value)


def _files(value: Any) -> Mapping[str, str]:
    for name, digest in _mapping(value).items():
        if not isinstance(digest, str):
            raise InputError(f"expected a digest for {name}, found {_shown(digest)}")
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise InputError(f"{name} lies outside of the checkpoint's folder")
    return dict(value)


def _products(value: Any) -> Mapping[str, tuple[str, ...]]:
    found = {}
    for precision, names in _mapping(value).items():
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InputError(f"expected a list of products for {precision}, found {_shown(names)}")
        found[canonical_precision(precision)] = tuple(names)
    return found


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:39] + "…"


# What the manifest holds: the name of each part, and what makes it from JSON values or raises InputError.
_PARTS: dict[str, Callable[[Any], Any]] = {
    "scale": lambda value: RelevanceScale.from_dict(_mapping(value)),
    "prompt": lambda value: Prompt.from_dict(_mapping(value)),
    "base": lambda value: BaseModel.from_dict(_mapping(value)),
    "feature_layer": _layer,
    "link": _link,
    "calibration": lambda value: Calibration.from_dict(_mapping(value)),
    "layers": lambda value: None if value is None else _layer(value),
    "prefill_layers": lambda value: None if value is None else _layer(value),
    # Made sense of beside their tensors, see `folder`.
    "novelty": _mapping_or_none,
    "exits": _mapping_or_none,
    # Made sense of beside the scale, see `folder`.
    "decisions": _mapping,
    "reach": lambda value: None if value is None else Reach.from_dict(_mapping(value)),
    "export": lambda value: ExportRecord.from_dict(_mapping(value)),
    "finer_products": _products,
    "trained": _flag,
    "provenance": _mapping,
    "files": _files,
}
_OPTIONAL: dict[str, Any] = {
    "layers": None, "prefill_layers": None, "novelty": None, "exits": None, "decisions": {}, "reach": None,
    "export": None, "provenance": {}, "finer_products": {},
}  # fmt: skip
