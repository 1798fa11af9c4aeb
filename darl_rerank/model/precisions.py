"""Names of number formats: one set for engines, exports and the command line, with the short names people also type."""

from __future__ import annotations

from collections.abc import Collection

from ..errors import InputError

PRECISIONS = ("float32", "bfloat16", "float16", "int8", "int4")
_ALIASES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "half": "float16"}


def canonical_precision(name: str, known: Collection[str] = PRECISIONS) -> str:
    """The name in `PRECISIONS` that `name`, or a short form of it ("fp32", "bf16", "fp16"), stands for.

    Raises:
        InputError: it is not one of `known`.
    """
    full = _ALIASES.get(str(name).lower(), str(name).lower())
    if full not in known:
        raise InputError(f"no precision {name!r}; known here: {', '.join(known)}")
    return full
