"""From a checkpoint to an exported folder: trace, convert, share weights, prove parity, put in place."""

from __future__ import annotations

import json
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
from ..files import atomic_folder, temporary_folder
from ..model.base_weights import load_body
from ..model.checkpoint import GRAPH, PREFIX_GRAPH, SEGMENT_GRAPH, Checkpoint
from ..model.export_record import ExportRecord
from ..model.precisions import canonical_precision
from ..model.scoring import scored
from ..progress import Bar, Progress, progress_bar
from ..reranker import Reranker
from ..results import PairScores
from ..trec.graded_pairs import GradedPair
from .agreement import counted
from .exit_parity import WatchedExits, compare_exits, with_margin
from .graph import FUSED_OPSET, OLDEST_OPSET, OPSET, Attention, GradeGraph, require_llama_kind, trace
from .graph_exits import exits_of
from .inputs import input_sizes, torch_grades
from .parity import (
    BOUNDS,
    NOVELTY_BOUND,
    Parity,
    compare,
    layer_differences,
    violations,
    with_agreement,
    with_exits,
)
from .precision import PRECISIONS, convert, products
from .rounding import rounded_products
from .samples import bundled_sample, calibration_sample, further_samples, halves
from .segments import segments
from .sensitivity import LEFT, effects, sensitive
from .smoothing import smooth, smoothing
from .weights import write_graphs, write_weights

# What rounding looks at; smoothing and the search for sensitive products take one in three of these.
_CALIBRATION_PAIRS, _STRIDE = 24, 3
# Of a document, about: of products that only its last token needs the time counts once for so many.
_TOKENS = 64
# What has products that take a finer way.
_SEARCHED = ("int8", "int4")
# What gains by rotation; blocks of 32 have scales of their own, and lose by it.
_ROTATED = ("int8",)
# Of a micro-batch, for all engines alike: so they ask exits in the same order.
_BATCH_TOKENS = 1024
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
        sample: pairs that parity is measured on; `bundled_sample` if None. int8 and int4 are fitted to the pairs of
            every other query and measured on the rest, see `samples.halves`.
        opset: version of the ONNX operators; below 23 attention is written as products and a softmax.
        device: what ONNX Runtime runs the export on when it is compared: "cpu", "cuda" or "cuda:1".
        overwrite: replace an existing folder.
        progress: whether to show a bar, or a function that is called with what it shows.

    Raises:
        InputError: unknown precision or opset, an empty sample, or a model that can't be exported.
        CheckFailedError: the results lie beyond the precision's bounds; the message names the layers that differ most.
        DarlRerankError: `folder` exists, or can't be written.
    """
    precision = _checked(checkpoint, precision, opset, device)
    fitted, pairs = _samples(sample, fits=precision in _SEARCHED)
    # A user's own pairs are all measured.
    further = sample is None and precision in _SEARCHED
    with (
        atomic_folder(folder, overwrite=overwrite) as temporary,
        temporary_folder(folder) as scratch,
        progress_bar(f"exporting in {precision}", 100, unit="%", progress=progress) as bar,
    ):
        steps = _Steps(bar, rounds=precision in _ROTATED)
        steps.begin("load and grade with torch")
        body = load_body(checkpoint, torch.float32)
        require_llama_kind(body)
        watched = _watched(checkpoint, len(body.layers))
        reference = _torch_scores(checkpoint.replace(exits=watched), pairs, body)
        steps.begin("trace")
        source = _Traced(checkpoint, scratch / PREFIX_GRAPH, opset, precision, body)
        del body
        _write_config(source.graph, checkpoint, temporary)
        steps.begin("round the weights")
        calibration = _calibration(checkpoint, fitted)
        source.prepare(calibration)
        moved: dict[str, float] = {}
        sizes = source.sizes()
        known = sorted(sizes.keys() & set(checkpoint.finer_products.get(precision, ())))
        searched = [*((left, False) for left in LEFT), (0.0, True)] if precision in _SEARCHED else [(1.0, False)]
        # What was found before is judged as everything else; if it does not do, the search begins.
        for left, float_activations in [(None, False), *searched] if known else searched:
            if left is not None and left < 1 and not moved:
                steps.begin("find the sensitive products")
                moved = source.effects(calibration[::_STRIDE])
            finer = known if left is None else sensitive(moved, left, sizes)
            steps.begin("convert")
            record = ExportRecord(precision, opset, tuple(finer), float_activations)
            source.convert(record, temporary)
            steps.begin(f"compare with torch ({len(finer)} products finer)" if finer else "compare with torch")
            exported, parity, left_out = _compared(
                checkpoint.replace(export=record),
                temporary,
                device,
                pairs,
                reference,
                watched,
                source.graph if further else None,
            )
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


def _compared(
    exported: Checkpoint,
    folder: Path,
    device: str,
    pairs: Sequence[GradedPair],
    reference: PairScores,
    watched: WatchedExits | None,
    graph: GradeGraph | None,
) -> tuple[Checkpoint, Parity, str]:
    """The export as it is to be: without a novelty that is too far off, its exits' threshold lowered as they need it.

    Args:
        exported: what the graphs in `folder` are of, as the checkpoint has it.
        folder: of the graphs; the checkpoint is written there.
        device, pairs: as for `export`.
        reference: torch's scores.
        watched: what torch found at the exits; None if there are none.
        graph: what was traced, if grades are to be compared on as many more pairs as it takes, see `agreement`.

    Returns:
        the checkpoint, its measures, and why it has no novelty; "" if it has, or never had.
    """
    left_out = ""
    exported.write_into(folder)
    found = _scores(folder, device, pairs)
    parity = compare(pairs, reference, found)
    distance = parity.novelty_mean_difference
    # A novelty that is not a number is within no bound.
    if distance is not None and not distance <= NOVELTY_BOUND:
        left_out = f"left out: {distance:.2g} points from torch's in the mean"
        exported = exported.replace(novelty=None, calibration=exported.calibration.at(_MEDIAN_NOVELTY))
        exported.write_into(folder)
        reference, found = _without_novelty(reference, exported), _scores(folder, device, pairs)
        parity = compare(pairs, reference, found)
    if watched is not None:
        seen = WatchedExits.of(watched, stop=True)
        _scores(folder, device, pairs, seen)
        early = compare_exits(watched, seen)
        parity, exported = with_exits(parity, early), exported.replace(exits=with_margin(watched, early.margin))
    assert exported.export is not None
    bounds = dict(BOUNDS[exported.export.precision])
    least = bounds.pop("grade_agreement", None)
    # Where another measure lies beyond its bound more pairs change nothing.
    if graph is not None and least is not None and not violations(parity, bounds):
        parity = with_agreement(parity, counted(
            reference, found, further_samples(), least, exported.grade_cuts.points,
            by_torch=lambda part: torch_grades(graph, exported, part),
            by_export=lambda part: _scores(folder, device, part),
        ))  # fmt: skip
    return exported, parity, left_out


def _checked(checkpoint: Checkpoint, precision: str, opset: int, device: str) -> str:
    """The precision's full name, if all arguments are what they should be."""
    precision = canonical_precision(precision, PRECISIONS)
    if opset < OLDEST_OPSET:
        raise InputError(f"opset must be at least {OLDEST_OPSET}, got {opset}")
    if checkpoint.exported:
        raise InputError("is exported already; export the checkpoint it was made from", path=checkpoint.folder)
    require_provider(device)
    return precision


def _samples(
    sample: Sequence[GradedPair] | None, *, fits: bool
) -> tuple[Sequence[GradedPair], Sequence[GradedPair]]:  # fmt: skip
    """What a precision is fitted to, if it `fits`, and what it is measured on."""
    if sample is None:
        return calibration_sample(), bundled_sample()
    if not sample:
        raise InputError("the sample for parity is empty")
    return halves(sample) if fits else (sample, sample)


def _refusal(
    checkpoint: Checkpoint, precision: str, faults: Sequence[str], made: Mapping[str, Any], path: Path,
    inputs: dict[str, Any],
) -> CheckFailedError:  # fmt: skip
    """What the gate found, and the layers that differ most."""
    graph = GradeGraph(checkpoint, "plain", rotated=precision in _ROTATED).eval()
    differences = layer_differences(graph, made, path, inputs)
    worst = sorted(enumerate(differences), key=lambda item: -item[1])[:_SHOWN_LAYERS]
    layers = ", ".join(f"{layer} ({share:.2g})" for layer, share in worst)
    return CheckFailedError(
        f"the {precision} export does not grade as torch does: {'; '.join(faults)}. Layers that differ most "
        f"(relative error of their MLP's output): {layers}. Nothing was written"
    )


class _Steps:
    """The bar's share of each step, about what it takes of the time."""

    _SHARES: ClassVar = {"load": 35, "trace": 20, "round": 25, "find": 0, "convert": 8, "compare": 12}

    def __init__(self, bar: Bar, *, rounds: bool) -> None:
        self._bar, self._under_way = bar, 0
        # Each counts once, however often it has to be repeated.
        self._shares = self._SHARES if rounds else {**self._SHARES, "load": 50, "trace": 30, "round": 0}
        self._left = dict(self._shares)

    def begin(self, name: str) -> None:
        """The step before is done; "" if nothing follows."""
        self._bar.update(self._under_way, name)
        self._under_way = self._left.pop(name.partition(" ")[0], 0)


class _Traced:
    """A checkpoint's graph with a prefix in float32, in a file, and what is found out once for all ways to convert it.

    Args:
        checkpoint: what to trace.
        path: the file; its weights lie beside it.
        opset: version of the ONNX operators.
        precision: what it will be converted to.
        body: the checkpoint's decoder in float32, if it is loaded already; it is changed.
    """

    def __init__(self, checkpoint: Checkpoint, path: Path, opset: int, precision: str, body: Any = None) -> None:
        attention: Attention = "fused" if opset >= FUSED_OPSET else "plain"
        self.graph: Any = GradeGraph(checkpoint, attention, body, rotated=precision in _ROTATED).eval()
        self._path, self._precision = path, precision
        self._exits, self._feature_layer = self.graph.exits, checkpoint.feature_layer
        self._layers = len(self.graph.body.layers)
        self._factors: dict[str, NDArray[np.float32]] = {}
        self._rounded: dict[str, NDArray[np.int8]] = {}
        trace(self.graph, path, opset=opset)

    def model(self) -> Any:
        """The graph, its weights left in the file."""
        return onnx.load(str(self._path), load_external_data=False)

    def products(self) -> dict[str, Any]:
        """The MatMul node of each weight."""
        return products(self.model())

    def sizes(self) -> dict[str, int]:
        """How many numbers of each product's weight there are for a token that is run, at least one."""
        alone = self.graph.last_tokens.products()
        return {
            name: max(1, module.weight.numel() // (_TOKENS if module in alone else 1))
            for name, module in self.graph.products().items()
        }

    def prepare(self, calibration: Sequence[Mapping[str, Any]]) -> None:
        """Find factors of `smoothing` and rounded weights for int8, from inputs of the plain graph."""
        if self._precision != "int8":
            return
        model = self.model()
        some = calibration[::_STRIDE]
        self._factors = smoothing(
            model, products(model), lambda readers: input_sizes(self.graph, readers, some), self._path.parent
        )
        self._rounded = rounded_products(self.graph, self._factors, calibration)

    def effects(self, calibration: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """How far each product moves the logits."""
        return effects(self.graph, self._factors, self._precision, calibration, self._rounded)

    def convert(self, record: ExportRecord, target: Path) -> None:
        """Write the graphs as `record` says into the folder `target`."""
        model = self.model()
        if self._factors:
            smooth(model, products(model), self._factors, self._path.parent)
        convert(
            model, record.precision, record.finer_products, self._path.parent,
            rounded=self._rounded, float_activations=record.float_activations,
        )  # fmt: skip
        write_weights(model, self._path.parent, target)
        write_graphs(model, target)
        for i, segment in enumerate(segments(model, self._exits, self._feature_layer, self._layers)):
            (target / SEGMENT_GRAPH.format(i)).write_bytes(segment.SerializeToString())


def _watched(checkpoint: Checkpoint, layers: int) -> WatchedExits | None:
    """The checkpoint's exits, letting nothing go; None if it has none with a rule."""
    if not exits_of(checkpoint, layers):
        return None
    assert checkpoint.exits is not None
    return WatchedExits.of(checkpoint.exits, stop=False)


def _torch_scores(checkpoint: Checkpoint, pairs: Sequence[GradedPair], body: Any = None) -> PairScores:
    engine = TorchEngine(checkpoint, device="cpu", precision="float32", model=body)
    return _graded(Reranker(checkpoint, engine, batch_tokens=_BATCH_TOKENS), pairs)


def _scores(folder: Path, device: str, pairs: Sequence[GradedPair], exits: WatchedExits | None = None) -> PairScores:
    candidate = Checkpoint.load(folder).replace(exits=exits)
    return _graded(Reranker(candidate, OnnxEngine(candidate, device=device), batch_tokens=_BATCH_TOKENS), pairs)


def _graded(reranker: Reranker, pairs: Sequence[GradedPair]) -> PairScores:
    return reranker.score_pairs([(pair.query, pair.document) for pair in pairs])


def _without_novelty(scores: PairScores, checkpoint: Checkpoint) -> PairScores:
    """The same logits under the calibration of a checkpoint without novelty."""
    probabilities, score = scored(checkpoint, scores.logits)
    grade = checkpoint.grade_cuts.grades(score)
    return replace(scores, probabilities=probabilities, score=score, grade=grade, novelty=None)


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
    rows = [f"| {name} | {value} |" for name, value in parity.shown().items()]
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
