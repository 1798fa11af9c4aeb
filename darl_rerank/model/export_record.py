"""What a checkpoint's manifest says of the ONNX graphs beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import InputError
from .precisions import canonical_precision


@dataclass(frozen=True, slots=True)
class ExportRecord:
    """How the graphs of an exported checkpoint were made.

    Attributes:
        precision: number format of the network's body, one of `model.precisions.PRECISIONS`.
        opset: version of the ONNX operators; None where an older version did not note it.
        finer_products: weights that take the finer way of the precision, sorted (int8: activations in two parts, before
            version 0.5 blocks of 32; int4: 8 bits).
        float_activations: whether products read activations in float32, since int8 was too coarse for them.
    """

    precision: str
    opset: int | None = None
    finer_products: tuple[str, ...] = ()
    float_activations: bool = False

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "finer_products": list(self.finer_products)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ExportRecord:
        """The inverse of `to_dict`.

        Raises:
            InputError: an unknown precision, or a value of another type.
        """
        opset, finer = values.get("opset"), values.get("finer_products", [])
        exact = values.get("float_activations", False)
        if not isinstance(exact, bool):
            raise InputError(f"expected float_activations as true or false, got {exact!r}")
        if not isinstance(opset, int | None) or not isinstance(finer, list):
            raise InputError(f"expected opset as a number and finer_products as a list, got {opset!r} and {finer!r}")
        return cls(canonical_precision(str(values.get("precision"))), opset, tuple(map(str, finer)), exact)
