"""The types of a recipe's keys: ranges, labels, and paths that are relative to the recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, PlainValidator, ValidationInfo

from darl_rerank.errors import InputError
from darl_rerank.model.scale import SCALES, RelevanceScale
from darl_rerank.model.shipped import SHIPPED, is_checkpoint, shipped_names

# A label on the model's scale: a grade, or a probability for each of some grades.
Target = int | Mapping[int, float]


def target_probabilities(target: Target, grades: int) -> tuple[float, ...]:
    """`target` as a probability for each of K grades.

    Raises:
        InputError: a grade off the scale, or probabilities that don't sum to 1.
    """
    weights = {target: 1.0} if isinstance(target, int) else {int(k): float(p) for k, p in target.items()}
    outside = [k for k in weights if not 0 <= k < grades]
    if outside:
        raise InputError(f"grade {outside[0]} of the grade map is not on the scale 0..{grades - 1}")
    if any(p < 0 for p in weights.values()) or abs(sum(weights.values()) - 1) > 1e-6:
        raise InputError(f"expected probabilities >= 0 that sum to 1 in a grade map, found {dict(weights)}")
    return tuple(weights.get(k, 0.0) for k in range(grades))


# `info.context` is what the reader of a recipe knows: its `folder`, and how many `grades` the model has; else None.


def _target(value: Any, info: ValidationInfo) -> Target:
    try:
        if isinstance(value, bool):
            raise TypeError
        target = value if isinstance(value, int) else {int(k): float(p) for k, p in value.items()}
    except (AttributeError, TypeError, ValueError):
        raise ValueError(f"expected a grade, or a table of grades with probabilities, found {value!r}") from None
    if info.context is not None and info.context["grades"] is not None:
        try:
            target_probabilities(target, info.context["grades"])
        except InputError as error:
            raise ValueError(str(error)) from None
    return target


def _beside(path: Path, info: ValidationInfo) -> Path:
    return path if info.context is None else info.context["folder"] / path.expanduser()


def _existing(path: Path, info: ValidationInfo) -> Path:
    path = _beside(path, info)
    if info.context is not None and not path.exists():
        raise ValueError(f"no such file: {path}")
    return path


def _checkpoint(path: Path, info: ValidationInfo) -> Path:
    found = _beside(path, info)
    if info.context is None or found.exists():
        return found
    if str(path) in shipped_names():
        return SHIPPED / path
    raise ValueError(f"no such folder: {found}; checkpoints that ship: {', '.join(shipped_names())}")


def _base(base: str, info: ValidationInfo) -> str:
    if info.context is None:
        return base
    beside = _beside(Path(base), info)
    if is_checkpoint(base) or is_checkpoint(beside):
        raise ValueError(f"{base} is a checkpoint, not a base model: give it as model.checkpoint")
    return str(beside) if (beside / "config.json").is_file() else base


def _scale(value: Any) -> RelevanceScale:
    if isinstance(value, RelevanceScale):
        return value
    if value not in SCALES:
        raise ValueError(f"unknown relevance scale {value!r}; known: {', '.join(sorted(SCALES))}")
    return SCALES[value]


def _distinct(layers: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(layers)) < len(layers):
        raise ValueError(f"expected layers that differ, found {list(layers)}")
    return tuple(sorted(layers))


def _rising(band: tuple[float, float]) -> tuple[float, float]:
    if not band[0] < band[1]:
        raise ValueError(f"expected two rising numbers, found {band[0]:g}, {band[1]:g}")
    return band


Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Unit = Annotated[float, Field(ge=0, le=1)]
Percentile = Annotated[float, Field(ge=0, le=100)]
File = Annotated[Path, AfterValidator(_existing)]
CheckpointFolder = Annotated[Path, AfterValidator(_checkpoint)]
Label = Annotated[Target, PlainValidator(_target)]
Base = Annotated[Text, AfterValidator(_base)]
Scale = Annotated[RelevanceScale, PlainValidator(_scale)]
Layers = Annotated[tuple[Count, ...], Field(min_length=1), AfterValidator(_distinct)]
Interval = Annotated[tuple[Unit, Unit], AfterValidator(_rising)]
Band = Annotated[tuple[Percentile, Percentile], AfterValidator(_rising)]
# It need not be there yet.
FutureFile = Annotated[Path, AfterValidator(_beside)]
