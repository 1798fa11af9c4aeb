"""Early exit: heads at layers on the way, and the rule by which a pair leaves there instead of going on.

Most of a first stage's list is plainly irrelevant, which a model can know before its last layer. An exit reads the last
token's state behind its layer as the head reads the final one. A pair leaves at the first exit at which

    P(grade >= g) < threshold

under the exit's own calibration. One threshold serves all exits: each is calibrated, so an exit that knows little gives
few pairs so low a probability. It is chosen by conformal risk control, as a cut that promises recall is, on the
smallest of a pair's probabilities at the exits: the pair leaves at some exit if and only if that lies below the
threshold (`darl_rerank.training.decisions.exits`). The rule looks at the pair alone, so its result depends on nothing
else.

In a checkpoint:

    exits.safetensors     "LAYER.norm" (hidden,), "LAYER.weight" (K, hidden), "LAYER.bias" (K,) for each exit, float32
    checkpoint.json       "exits": {"heads": [{"layer": 14, "calibration": {…}}, …], rising by layer,
                                    "rule": null or {"promise": "recall 0.98 of relevant", "threshold": 0.19,
                                                     "novelty": null, "facts": {…}}}

Layers count from 1. Without a rule nothing leaves. Versions that know no exits read such a checkpoint and run it whole.

Sources: BERxiT (Xin et al., EACL 2021) for heads trained along with the model; CALM (Schuster et al., NeurIPS 2022) for
thresholds by risk control.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .calibration import Calibration
from .decisions import Cut
from .head import Head, Link, grade_logits
from .scale import RelevanceScale

# Added to a state's mean square before its root is taken, in every engine.
EPSILON = 1e-6
# What is left of the expected gain above the lowest grade's when a pair leaves early; see `lowered`.
_LEFT_OF_GAIN = 1e-3


@dataclass(frozen=True, slots=True)
class ExitHead:
    """A head behind a layer.

    Attributes:
        layer: the layer, counted from 1.
        head: K rows over the last token's state there, divided by its root mean square and multiplied by `head.norm`.
        calibration: its own; it does not follow novelty, which may not be known yet.

    Raises:
        InputError: a layer below 1, a head without norm, or a calibration that follows novelty.
    """

    layer: int
    head: Head
    calibration: Calibration = field(default_factory=Calibration.identity)

    def __post_init__(self) -> None:
        if not isinstance(self.layer, int) or isinstance(self.layer, bool) or self.layer < 1:
            raise InputError(f"an exit's layer must be a whole number of at least 1, got {self.layer!r}")
        if self.head.norm is None:
            raise InputError(f"the exit behind layer {self.layer} has no norm of its own")
        if self.calibration.needs_novelty:
            raise InputError(f"the calibration of the exit behind layer {self.layer} must not follow novelty")

    def probabilities(self, logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Calibrated, of grade logits (n, K), shape (n, K)."""
        return self.calibration.probabilities(logits)


@dataclass(frozen=True, slots=True)
class Exits:
    """A checkpoint's exits.

    Attributes:
        heads: rising by layer, at least one.
        rule: which pairs leave, those that this cut does not keep; None if none do.

    Raises:
        InputError: no heads, layers that do not rise, heads of different shapes, or a rule that promises no recall.
    """

    heads: tuple[ExitHead, ...]
    rule: Cut | None = None

    def __post_init__(self) -> None:
        if not self.heads or any(low >= high for low, high in pairwise(self.layers)):
            raise InputError(f"exits need layers that rise, got {list(self.layers)}")
        if len({each.head.weight.shape for each in self.heads}) > 1:
            raise InputError("the exits' heads differ in shape")
        if self.rule is not None and self.rule.promise.kind != "recall":
            raise InputError("the rule of exits promises a recall: of what deserves a place, how much stays")

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(each.layer for each in self.heads)

    def at(self, layer: int) -> ExitHead:
        """The exit behind a layer.

        Raises:
            InputError: there is none.
        """
        for each in self.heads:
            if each.layer == layer:
                return each
        raise InputError(f"there is no exit behind layer {layer}; there is behind {', '.join(map(str, self.layers))}")

    def leaving(self, layer: int, logits: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
        """Which of n pairs leave behind `layer`, from their grade logits there, shape (n, K); shape (n,)."""
        if self.rule is None:
            return np.zeros(len(logits), dtype=bool)
        return ~self.rule.keeps(self.at(layer).probabilities(logits))

    def only(self, *layers: int) -> Exits:
        """These exits alone. With fewer no more pairs leave, so the rule holds what it promised.

        Raises:
            InputError: there is no exit behind one of them.
        """
        return Exits(tuple(self.at(layer) for layer in sorted(layers)), self.rule)

    def before(self, layer: int) -> Exits | None:
        """The exits at earlier layers; None if there are none."""
        kept = [each for each in self.layers if each < layer]
        return self.only(*kept) if kept else None

    def to_tensors(self, scale: RelevanceScale) -> tuple[dict[str, NDArray[np.float32]], dict[str, Any]]:
        """What exits.safetensors and the manifest hold."""
        tensors = {}
        for each in self.heads:
            for name in ("norm", "weight", "bias"):
                tensors[f"{each.layer}.{name}"] = np.asarray(getattr(each.head, name), dtype=np.float32)
        values = {
            "heads": [{"layer": each.layer, "calibration": each.calibration.to_dict()} for each in self.heads],
            "rule": None if self.rule is None else self.rule.to_dict(scale),
        }
        return tensors, values

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, NDArray[Any]], values: Mapping[str, Any], scale: RelevanceScale, hidden: int
    ) -> Exits:
        """The inverse of `to_tensors`.

        Raises:
            InputError: a value or tensor is missing or not what it should be; all faults of tensors are listed.
        """
        try:
            settings = [(entry["layer"], Calibration.from_dict(entry["calibration"])) for entry in values["heads"]]
            rule = values.get("rule")
            cut = None if rule is None else Cut.from_dict(rule, scale)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"expected heads and a rule as a checkpoint is saved with them: {error}") from error
        faults = []
        shapes = {"norm": (hidden,), "weight": (len(scale), hidden), "bias": (len(scale),)}
        for layer, calibration in settings:
            for name, shape in shapes.items():
                found = tensors.get(f"{layer}.{name}")
                if found is None:
                    faults.append(f"lacks the tensor {layer}.{name}")
                elif found.dtype != np.float32 or found.shape != shape:
                    faults.append(f"expected {layer}.{name} {shape} in float32, found {found.shape} in {found.dtype}")
                elif not np.isfinite(found).all():
                    faults.append(f"{layer}.{name} holds values that are not finite")
            if calibration.bias and len(calibration.bias) != len(scale):
                faults.append(f"the calibration at layer {layer} has {len(calibration.bias)} biases")
        if faults:
            raise InputError("; ".join(faults))
        heads = (
            ExitHead(layer, Head(*(tensors[f"{layer}.{name}"] for name in ("weight", "bias", "norm"))), calibration)
            for layer, calibration in settings
        )
        return cls(tuple(heads), cut)


def exit_logits(head: Head, link: Link, states: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Grade logits of an exit, from last tokens' states behind its layer, shape (n, hidden); shape (n, K).

    The engines compute the same in their own runtime.
    """
    assert head.norm is not None
    exact = np.asarray(states, dtype=np.float32)
    scaled = exact / np.sqrt(np.square(exact).mean(axis=1, keepdims=True) + EPSILON) * head.norm
    return grade_logits(link, scaled @ head.weight.T + head.bias)


def lowered(gain: NDArray[np.float64], lowest: float) -> NDArray[np.float64]:
    """The score of pairs that left early, from the expected gain that the exit gives them, any shape.

    Above the gain of the lowest grade, `lowest`, a thousandth of it is left. So these pairs keep their order among
    themselves and stand below pairs that were judged whole, for each pair without a look at others. Where the exit's
    gain itself is the score, an exit that knows less than the model, and so is never far from the mean, puts pairs that
    it lets go of above irrelevant ones that it keeps (results/successor.json has both orders).
    """
    return lowest + _LEFT_OF_GAIN * (gain - lowest)
