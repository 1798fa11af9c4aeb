"""How far int8 moves the logits, by kind of product, and what smoothing, rotation and joint rounding save of it.

    python benchmarks/int8_errors.py CHECKPOINT [--pairs 8]

Weights are fitted to pairs of the bundled catalogue, errors measured on others of it, to first order: see
`darl_rerank.export.sensitivity`. Writes results/int8_errors.json.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from darl_rerank.export import folder as exporting
from darl_rerank.export.graph import GradeGraph, trace
from darl_rerank.export.inputs import input_sizes
from darl_rerank.export.precision import products
from darl_rerank.export.rounding import rounded_products
from darl_rerank.export.samples import bundled_sample, calibration_sample
from darl_rerank.export.sensitivity import effects
from darl_rerank.export.smoothing import smoothing
from provenance import write_result

from darl_rerank import Checkpoint
from darl_rerank.model.base_weights import load_body
from darl_rerank.model.checkpoint import PREFIX_GRAPH

KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@click.command(help=__doc__)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--pairs", default=8, show_default=True)
def main(model: Path, pairs: int) -> None:
    checkpoint = Checkpoint.load(model)
    fitted = exporting._calibration(checkpoint, calibration_sample())
    judged = exporting._calibration(checkpoint, bundled_sample())[:: 24 // pairs]
    ways: dict[str, dict[str, Any]] = {}

    def measure(name: str, *found: Any) -> None:
        ways[name] = by_kind(effects(found[0], found[1], "int8", judged, *found[2:]))
        click.echo(f"{name:40} {ways[name]['all']['together']:.4f}", err=True)

    for rotated in (False, True):
        graph = GradeGraph(checkpoint, body=load_body(checkpoint, torch.float32), rotated=rotated).eval()
        factors = smoothing_factors(graph, fitted)
        if not rotated:
            measure("as they are", graph, {})
        turned = ", rotated" if rotated else ""
        measure(f"smoothed{turned}", graph, factors)
        measure(f"smoothed{turned}, rounded together", graph, factors, rounded_products(graph, factors, fitted))
    values = {"model": model.name, "fingerprint": checkpoint.fingerprint, "pairs": len(judged), "ways": ways}
    click.echo(f"written: {write_result('int8_errors', values)}", err=True)


def smoothing_factors(graph: GradeGraph, fitted: list[dict[str, Any]]) -> dict[str, Any]:
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / PREFIX_GRAPH
        trace(graph, path)
        model = onnx.load(str(path), load_external_data=False)
        return smoothing(model, products(model), lambda readers: input_sizes(graph, readers, fitted), path.parent)


def by_kind(moved: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """What all layers' products of a kind do to the logits, were they independent, and the one that does most."""
    found = {kind: {name: effect for name, effect in moved.items() if name.endswith(kind)} for kind in KINDS}
    return {
        kind: {"together": float(np.linalg.norm(list(of_kind.values()))), "most": max(of_kind.values())}
        for kind, of_kind in {**found, "all": moved}.items()
    }


if __name__ == "__main__":
    main()
