"""Names of the graphs' inputs and outputs."""

from __future__ import annotations

from collections.abc import Sequence

PREFIX_INPUTS = ("prefix_keys_values", "prefix_own_sum")
# Of the graph with a prefix, without those that segments alone have.
OUTPUTS = ("logits", "features", "keys_values", "own_sum")
MIDDLE, FINAL = "middle_features", "final_features"


def exit_outputs(layer: int) -> tuple[str, str]:
    """The states behind an exit's layer, and its logits."""
    return f"exit_{layer}.states", f"exit_{layer}.logits"


def segment_outputs(layers: Sequence[int]) -> list[str]:
    """What a graph with exits behind `layers` gives besides `OUTPUTS`, in this order."""
    of_exits = [name for layer in layers for name in exit_outputs(layer)]
    return [*of_exits, MIDDLE, FINAL, *(f"keys_values_{i}" for i in range(len(layers) + 1))]
