"""From a checkpoint to an exported folder: trace, convert, share weights, prove parity, put in place."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ..engines.onnx_engine import OnnxEngine
from ..engines.providers import require_provider
from ..engines.torch_engine import TorchEngine
from ..errors import CheckFailedError, InputError
from ..files import atomic_folder
from ..model.checkpoint import GRAPH, PREFIX_GRAPH, Checkpoint
from ..model.export_record import ExportRecord
from ..model.precisions import canonical_precision
from ..reranker import Reranker
from ..results import PairScores
from ..trec.graded_pairs import GradedPair
from .graph import FUSED_OPSET, OLDEST_OPSET, OPSET, GradeGraph, trace
from .parity import BOUNDS, NOVELTY_BOUND, Parity, bundled_sample, compare, layer_differences, name_products, violations
from .precision import PRECISIONS, convert, products
from .sensitivity import LEFT, effects, sensitive
from .smoothing import smooth, smoothing
from .weights import share_weights

_CALIBRATION_PAIRS = 16
_SHOWN_LAYERS = 5
# Of the held-out pairs half are stranger.
_MEDIAN_NOVELTY = 50.0


def export(
    checkpoint: Checkpoint,
    folder: str | Path,
    *,
    precision: str = "float32",
    sample: Sequence[GradedPair] | None = None,
    opset: int = OPSET,
    device: str = "cpu",
    overwrite: bool = False,
    progress: Callable[[str], None] = lambda step: None,
) -> Parity:
    """Write an exported folder, if it grades as torch does; otherwise nothing is written.

    Novelty that lies more than `NOVELTY_BOUND` from torch's is left out, and the temperature no longer follows it.

    Args:
        checkpoint: what to export, loaded from or saved in a folder, or made by `from_base`.
        folder: where to.
        precision: "float32", "float16", "int8" or "int4", or short ("fp32", "fp16").
        sample: pairs that parity is measured on; `bundled_sample` if None.
        opset: version of the ONNX operators; below 23 attention is written as products and a softmax.
        device: what ONNX Runtime runs the export on when it is compared: "cpu", "cuda" or "cuda:1".
        overwrite: replace an existing folder.
        progress: told the name of each step as it begins.

    Raises:
        InputError: unknown precision or opset, an empty sample, or a model that can't be exported.
        CheckFailedError: the results lie beyond the precision's bounds; the message names the layers that differ most.
        DarlRerankError: `folder` exists, or can't be written.
    """
    precision = canonical_precision(precision, PRECISIONS)
    if opset < OLDEST_OPSET:
        raise InputError(f"opset must be at least {OLDEST_OPSET}, got {opset}")
    if checkpoint.exported:
        raise InputError("is exported already; export the checkpoint it was made from", path=checkpoint.folder)
    require_provider(device)
    pairs = bundled_sample() if sample is None else list(sample)
    if not pairs:
        raise InputError("the sample for parity is empty")
    with (
        atomic_folder(folder, overwrite=overwrite) as temporary,
        tempfile.TemporaryDirectory(dir=temporary.parent, prefix=".export.") as scratch,
    ):
        progress("load")
        graph = GradeGraph(checkpoint, "fused" if opset >= FUSED_OPSET else "plain").eval()
        calibration = _calibration(checkpoint, pairs)
        traced = _traced(graph, Path(scratch), opset, progress)
        moved = _prepared(graph, traced, precision, calibration, progress)
        _write_config(graph, checkpoint, temporary)
        texts = [(pair.query, pair.document) for pair in pairs]
        progress("grade with torch")
        reference = _torch_scores(checkpoint, texts)
        for left in LEFT if moved else (1.0,):
            finer = sensitive(moved, left)
            _write_graphs(traced, temporary, precision, finer, progress)
            record = ExportRecord(precision, opset, tuple(finer))
            exported, left_out = checkpoint.replace(export=record), ""
            exported.write_into(temporary)
            progress("compare with torch")
            parity = compare(pairs, reference, _scores(temporary, device, texts))
            distance = parity.novelty_mean_difference
            # A novelty that is not a number is within no bound.
            if distance is not None and not distance <= NOVELTY_BOUND:
                left_out = f"left out: {distance:.2g} points from torch's in the mean"
                progress(f"compare without novelty ({left_out})")
                exported = exported.replace(novelty=None, calibration=checkpoint.calibration.at(_MEDIAN_NOVELTY))
                exported.write_into(temporary)
                without = checkpoint.replace(novelty=None, calibration=exported.calibration)
                parity = compare(pairs, _torch_scores(without, texts), _scores(temporary, device, texts))
            faults = violations(parity, BOUNDS[precision])
            if not faults:
                break
        if faults:
            differences = layer_differences(graph, traced[GRAPH], temporary / GRAPH, calibration[0])
            worst = sorted(enumerate(differences), key=lambda item: -item[1])[:_SHOWN_LAYERS]
            layers = ", ".join(f"{layer} ({share:.2g})" for layer, share in worst)
            raise CheckFailedError(
                f"the {precision} export does not grade as torch does: {'; '.join(faults)}. Layers that differ most "
                f"(relative error of their MLP's output): {layers}. Nothing was written"
            )
        report = {"precision": precision, "device": device, "bounds": BOUNDS[precision], "measures": asdict(parity)}
        if left_out:
            report["novelty"] = left_out
        (temporary / "parity.json").write_text(json.dumps(report, indent=2) + "\n", "utf-8")
        card = exported.card(_card(exported, precision, parity, left_out), kind="quantized")
        exported.write_into(temporary, card=card)
    return parity


def _torch_scores(checkpoint: Checkpoint, texts: Sequence[tuple[str, str]]) -> PairScores:
    return Reranker(checkpoint, TorchEngine(checkpoint, device="cpu", precision="float32")).score_pairs(texts)


def _scores(folder: Path, device: str, texts: Sequence[tuple[str, str]]) -> PairScores:
    candidate = Checkpoint.load(folder)
    return Reranker(candidate, OnnxEngine(candidate, device=device)).score_pairs(texts)


def _traced(graph: GradeGraph, scratch: Path, opset: int, progress: Any) -> dict[str, Path]:
    """Both graphs in float32, by their file's name."""
    traced = {}
    for name, prefix in ((GRAPH, False), (PREFIX_GRAPH, True)):
        progress(f"trace {name}")
        traced[name] = scratch / name
        trace(graph, traced[name], prefix=prefix, opset=opset)
        name_products(traced[name], graph.body)
    return traced


def _prepared(
    graph: GradeGraph,
    traced: Mapping[str, Path],
    precision: str,
    calibration: Sequence[Mapping[str, Any]],
    progress: Callable[[str], None],
) -> dict[str, float]:
    """Smooth both graphs in place if they are to be int8; how far each product moves the logits, if it may be finer."""
    plain = traced[GRAPH]
    if precision == "int8":
        progress("smooth")
        factors = smoothing(plain, products(onnx.load(str(plain))), calibration)
        for path in traced.values():
            model = onnx.load(str(path))
            smooth(model, products(model), factors)
            path.with_name(path.name + ".data").unlink()
            onnx.save(model, str(path), save_as_external_data=True, location=path.name + ".data")
    if precision not in ("int8", "int4"):
        return {}
    progress("find the sensitive products")
    return effects(graph, plain, precision, calibration)


def _write_graphs(
    traced: Mapping[str, Path], target: Path, precision: str, finer: Sequence[str], progress: Any
) -> None:
    """Convert both graphs and write them with one file of weights."""
    sources = {}
    for name, path in traced.items():
        source = path
        if precision != "float32":
            how = f" ({len(finer)} sensitive products finer)" if finer else ""
            progress(f"convert {name} to {precision}{how}")
            source = path.with_name(f"{precision}_{name}")
            source.with_name(source.name + ".data").unlink(missing_ok=True)
            convert(path, source, precision, finer)
        sources[source] = target / name
    progress("write")
    share_weights(sources, target / f"{GRAPH}_data")


def _calibration(checkpoint: Checkpoint, pairs: Sequence[GradedPair]) -> list[dict[str, Any]]:
    encoder = checkpoint.encoder()
    batches = []
    for pair in pairs[:: max(1, len(pairs) // _CALIBRATION_PAIRS)][:_CALIBRATION_PAIRS]:
        group = encoder.encode(pair.query, [pair.document])
        ids = np.array([group.prefix + group.suffixes[0]], dtype=np.int64)
        batches.append({"input_ids": ids, "attention_mask": np.ones_like(ids)})
    return batches


def _write_config(graph: GradeGraph, checkpoint: Checkpoint, folder: Path) -> None:
    """What Optimum reads beside the graph: the decoder's configuration, with the grades as labels."""
    values = graph.config.to_dict()
    names = [grade.name for grade in checkpoint.scale.grades]
    values |= {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
        "num_labels": len(names),
    }
    (folder / "config.json").write_text(json.dumps(values, indent=2, default=str) + "\n", "utf-8")


def _card(checkpoint: Checkpoint, precision: str, parity: Parity, novelty: str) -> str:
    rows = [
        f"| {name.replace('_', ' ')} | {value:.6g} |" for name, value in asdict(parity).items() if value is not None
    ]
    state = "" if checkpoint.trained else "\nUntrained: it grades zero-shot, from the grade words alone.\n"
    if novelty:
        state += f"\nNovelty {novelty}; all pairs have one temperature.\n"
    return "\n".join([
        f"# A darl-rerank checkpoint exported to ONNX ({precision})", state, f"Base model: {checkpoint.base.name}.", "",
        "Compared with torch in float32:", "", "| measure | value |", "|---|---|", *rows, "",
    ])  # fmt: skip
