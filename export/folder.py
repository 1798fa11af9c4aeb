"""From a checkpoint to an exported folder: trace, convert, share weights, prove parity, put in place."""

from __future__ import annotations

import gc
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from ..engines.onnx_engine import OnnxEngine
from ..engines.providers import require_provider
from ..engines.torch_engine import TorchEngine
from ..errors import CheckFailedError, InputError
from ..files import atomic_folder
from ..model.base_weights import load_body
from ..model.checkpoint import GRAPH, PREFIX_GRAPH, SEGMENT_GRAPH, Checkpoint
from ..model.export_record import ExportRecord
from ..model.precisions import canonical_precision
from ..progress import Bar, Progress, progress_bar
from ..reranker import Reranker
from ..results import PairScores
from ..trec.graded_pairs import GradedPair
from .graph import FUSED_OPSET, OLDEST_OPSET, OPSET, GradeGraph, require_llama_kind, trace
from .graph_exits import exits_of
from .parity import BOUNDS, NOVELTY_BOUND, Parity, bundled_sample, compare, layer_differences, violations, with_exits
from .precision import PRECISIONS, convert, products
from .segments import segments
from .sensitivity import LEFT, effects, input_sizes, sensitive
from .smoothing import smooth, smoothing
from .weights import write_graphs, write_weights

_CALIBRATION_PAIRS = 8
# What has products that take a finer way.
_SEARCHED = ("int8", "int4")
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
    progress: Progress = True,
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
        progress: whether to show a bar, or a function that is called with what it shows.

    Raises:
        InputError: unknown precision or opset, an empty sample, or a model that can't be exported.
        CheckFailedError: the results lie beyond the precision's bounds; the message names the layers that differ most.
        DarlRerankError: `folder` exists, or can't be written.
    """
    precision, pairs = _checked(checkpoint, precision, opset, device, sample)
    texts = [(pair.query, pair.document) for pair in pairs]
    with (
        atomic_folder(folder, overwrite=overwrite) as temporary,
        tempfile.TemporaryDirectory(dir=temporary.parent, prefix=".export.") as scratch,
        progress_bar(f"exporting in {precision}", 100, unit="%", progress=progress) as bar,
    ):
        steps = _Steps(bar, searches=precision in _SEARCHED)
        steps.begin("load and grade with torch")
        body = load_body(checkpoint, torch.float32)
        require_llama_kind(body)
        reference = _torch_scores(checkpoint.replace(exits=None), texts, body)
        early = _torch_scores(checkpoint, texts, body) if exits_of(checkpoint, len(body.layers)) else None
        steps.begin("trace")
        source = _Traced(checkpoint, Path(scratch) / PREFIX_GRAPH, opset, body)
        del body
        _write_config(source.graph, checkpoint, temporary)
        calibration = _calibration(checkpoint, pairs)
        steps.begin("find the sensitive products")
        factors, moved = source.searched(precision, calibration)
        # Of half a gigabyte for 135 million weights, which the graph's file has as well.
        source.forget_weights()
        attempts = [*((left, False) for left in LEFT), (0.0, True)] if moved else [(1.0, False)]
        for left, float_activations in attempts:
            finer = sensitive(moved, left)
            steps.begin("convert")
            record = ExportRecord(precision, opset, tuple(finer), float_activations)
            source.convert(record, factors, temporary)
            exported, left_out = checkpoint.replace(export=record), ""
            exported.write_into(temporary)
            steps.begin(f"compare with torch ({len(finer)} products finer)" if finer else "compare with torch")
            parity = compare(pairs, reference, _scores(temporary, device, texts, exits=False))
            if early is not None:
                parity = with_exits(parity, early, _scores(temporary, device, texts, exits=True))
            distance = parity.novelty_mean_difference
            # A novelty that is not a number is within no bound.
            if distance is not None and not distance <= NOVELTY_BOUND:
                left_out = f"left out: {distance:.2g} points from torch's in the mean"
                exported = exported.replace(novelty=None, calibration=checkpoint.calibration.at(_MEDIAN_NOVELTY))
                exported.write_into(temporary)
                without = checkpoint.replace(novelty=None, calibration=exported.calibration, exits=None)
                measured = compare(pairs, _torch_scores(without, texts), _scores(temporary, device, texts, exits=False))
                parity = replace(measured, exit_agreement=parity.exit_agreement, exit_difference=parity.exit_difference)
            faults = violations(parity, BOUNDS[precision])
            if not faults:
                break
        if faults:
            raise _refusal(checkpoint, precision, faults, source.products(), temporary / GRAPH, calibration[0])
        report = {"precision": precision, "device": device, "bounds": BOUNDS[precision], "measures": asdict(parity)}
        if left_out:
            report["novelty"] = left_out
        (temporary / "parity.json").write_text(json.dumps(report, indent=2) + "\n", "utf-8")
        card = exported.card(_card(exported, precision, parity, left_out))
        exported.write_into(temporary, card=card)
        steps.begin("")
    return parity


def _checked(
    checkpoint: Checkpoint, precision: str, opset: int, device: str, sample: Sequence[GradedPair] | None
) -> tuple[str, list[GradedPair]]:
    """The precision's full name and the sample, if all arguments are what they should be."""
    precision = canonical_precision(precision, PRECISIONS)
    if opset < OLDEST_OPSET:
        raise InputError(f"opset must be at least {OLDEST_OPSET}, got {opset}")
    if checkpoint.exported:
        raise InputError("is exported already; export the checkpoint it was made from", path=checkpoint.folder)
    require_provider(device)
    pairs = bundled_sample() if sample is None else list(sample)
    if not pairs:
        raise InputError("the sample for parity is empty")
    return precision, pairs


def _refusal(
    checkpoint: Checkpoint, precision: str, faults: Sequence[str], made: Mapping[str, Any], path: Path,
    inputs: dict[str, Any],
) -> CheckFailedError:  # fmt: skip
    """What the gate found, and the layers that differ most."""
    differences = layer_differences(GradeGraph(checkpoint, "plain").eval(), made, path, inputs)
    worst = sorted(enumerate(differences), key=lambda item: -item[1])[:_SHOWN_LAYERS]
    layers = ", ".join(f"{layer} ({share:.2g})" for layer, share in worst)
    return CheckFailedError(
        f"the {precision} export does not grade as torch does: {'; '.join(faults)}. Layers that differ most "
        f"(relative error of their MLP's output): {layers}. Nothing was written"
    )


class _Steps:
    """The bar's share of each step, about what it takes of the time."""

    _SHARES: ClassVar = {"load": 35, "trace": 20, "find": 25, "convert": 8, "compare": 12}

    def __init__(self, bar: Bar, *, searches: bool) -> None:
        self._bar, self._under_way = bar, 0
        # Each counts once, however often it has to be repeated.
        self._shares = self._SHARES if searches else {**self._SHARES, "load": 50, "trace": 30, "find": 0}
        self._left = dict(self._shares)

    def begin(self, name: str) -> None:
        """The step before is done; "" if nothing follows."""
        self._bar.update(self._under_way, name)
        self._under_way = self._left.pop(name.partition(" ")[0], 0)


class _Traced:
    """A checkpoint's graph with a prefix in float32, in a file.

    Args:
        checkpoint: what to trace.
        path: the file; its weights lie beside it.
        opset: version of the ONNX operators.
        body: the checkpoint's decoder in float32, if it is loaded already; it is changed.
    """

    def __init__(self, checkpoint: Checkpoint, path: Path, opset: int, body: Any = None) -> None:
        self.graph: Any = GradeGraph(checkpoint, "fused" if opset >= FUSED_OPSET else "plain", body).eval()
        self._path = path
        self._exits, self._feature_layer = self.graph.exits, checkpoint.feature_layer
        self._layers = len(self.graph.body.layers)
        trace(self.graph, path, opset=opset)

    def model(self) -> Any:
        """The graph, its weights left in the file."""
        return onnx.load(str(self._path), load_external_data=False)

    def products(self) -> dict[str, Any]:
        """The MatMul node of each weight."""
        return products(self.model())

    def searched(
        self, precision: str, calibration: Sequence[Mapping[str, Any]]
    ) -> tuple[dict[str, NDArray[np.float32]], dict[str, float]]:
        """Factors of `smoothing`, and how far each product moves the logits, for precisions that need them."""
        if precision not in _SEARCHED:
            return {}, {}
        model, factors = self.model(), {}
        if precision == "int8":
            factors = smoothing(
                model, products(model), lambda readers: input_sizes(self.graph, readers, calibration), self._path.parent
            )
        return factors, effects(self.graph, factors, precision, calibration)

    def forget_weights(self) -> None:
        """Free the memory of the module that was traced."""
        self.graph = None
        gc.collect()

    def convert(self, record: ExportRecord, factors: Mapping[str, NDArray[np.float32]], target: Path) -> None:
        """Write the graphs as `record` says into the folder `target`."""
        model = self.model()
        if factors:
            smooth(model, products(model), factors, self._path.parent)
        convert(
            model, record.precision, record.finer_products, self._path.parent,
            float_activations=record.float_activations,
        )  # fmt: skip
        write_weights(model, self._path.parent, target)
        write_graphs(model, target)
        for i, segment in enumerate(segments(model, self._exits, self._feature_layer, self._layers)):
            (target / SEGMENT_GRAPH.format(i)).write_bytes(segment.SerializeToString())


def _torch_scores(checkpoint: Checkpoint, texts: Sequence[tuple[str, str]], body: Any = None) -> PairScores:
    engine = TorchEngine(checkpoint, device="cpu", precision="float32", model=body)
    return Reranker(checkpoint, engine).score_pairs(texts)


def _scores(folder: Path, device: str, texts: Sequence[tuple[str, str]], *, exits: bool) -> PairScores:
    candidate = Checkpoint.load(folder)
    if not exits:
        candidate = candidate.replace(exits=None)
    return Reranker(candidate, OnnxEngine(candidate, device=device)).score_pairs(texts)


def _calibration(checkpoint: Checkpoint, pairs: Sequence[GradedPair]) -> list[dict[str, Any]]:
    """Inputs of the plain graph, from all over the sample: of each part of it the shortest, which costs least."""
    encoder = checkpoint.encoder()
    step = max(1, len(pairs) // _CALIBRATION_PAIRS)
    batches = []
    for start in range(0, min(len(pairs), step * _CALIBRATION_PAIRS), step):
        groups = [encoder.encode(pair.query, [pair.document]) for pair in pairs[start : start + step]]
        ids = np.array([min((group.prefix + group.suffixes[0] for group in groups), key=len)], dtype=np.int64)
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
    if checkpoint.export is not None and checkpoint.export.float_activations:
        state += (
            "\nOnly weights are in low precision; activations are in float32, since int8 was too coarse for them.\n"
        )
    if novelty:
        state += f"\nNovelty {novelty}; all pairs have one temperature.\n"
    return "\n".join([
        f"# A darl-rerank checkpoint exported to ONNX ({precision})", state, f"Base model: {checkpoint.base.name}.", "",
        "Compared with torch in float32:", "", "| measure | value |", "|---|---|", *rows, "",
    ])  # fmt: skip
