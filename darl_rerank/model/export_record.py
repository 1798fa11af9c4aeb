"""What a checkpoint's manifest says of the ONNX graphs beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .precisions import canonical_precision


@dataclass(frozen=True, slots=True)
class ExportRecord:
    """How the graphs of an exported checkpoint were made.

    Attributes:
        precision: number format of the network's body, one of `model.precisions.PRECISIONS`.
        opset: version of the ONNX operators; None where an older version did not note it.
        finer_products: weights that take the finer way of the precision (int8: blocks of 32; int4: 8 bits), sorted.
    """

    precision: str
    opset: int | None = None
    finer_products: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "finer_products": list(self.finer_products)}

    @classmethod
    def from_manifest(cls, values: Mapping[str, Any]) -> ExportRecord | None:
        """The record of a manifest; None if it has none.

        Version 0.1 kept it in the provenance, under other names.

        Raises:
            InputError: an unknown precision.
        """
        if (found := values.get("export")) is not None:
            finer = tuple(map(str, found.get("finer_products", ())))
        elif (found := values.get("provenance", {}).get("export")) is not None:
            finer = tuple(map(str, found.get("finer products", ())))
        else:
            return None
        opset = found.get("opset")
        precision = canonical_precision(str(found.get("precision", "float32")))
        return cls(precision, None if opset is None else int(opset), finer)
