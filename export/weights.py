"""One file of external data for several graphs: a tensor that two of them hold is written once."""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx

# Smaller tensors (shapes, axes, scalars) stay in the graph.
_SMALLEST = 1024
# The data can then be mapped into memory.
_ALIGNMENT = 4096


def share_weights(sources: dict[Path, Path], data: Path) -> None:
    """Write each source graph to its target, with the weights of all in `data`.

    Args:
        sources: target .onnx file by source .onnx file; the targets lie in the folder of `data`.
        data: the file for the weights.
    """
    places: dict[tuple[int, str], tuple[int, int]] = {}
    with data.open("wb") as stream:
        for source, target in sources.items():
            model = onnx.load(str(source))
            for tensor in model.graph.initializer:
                if not tensor.HasField("raw_data") or len(tensor.raw_data) < _SMALLEST:
                    continue
                key = tensor.data_type, hashlib.sha256(tensor.raw_data).hexdigest()
                if key not in places:
                    stream.write(b"\0" * (-stream.tell() % _ALIGNMENT))
                    places[key] = stream.tell(), len(tensor.raw_data)
                    stream.write(tensor.raw_data)
                offset, length = places[key]
                tensor.ClearField("raw_data")
                tensor.ClearField("external_data")
                tensor.data_location = onnx.TensorProto.EXTERNAL
                for name, value in (("location", data.name), ("offset", str(offset)), ("length", str(length))):
                    entry = tensor.external_data.add()
                    entry.key, entry.value = name, value
            target.write_bytes(model.SerializeToString())
