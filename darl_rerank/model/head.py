"""Head: the grade rows over the network's last hidden state, and how their logits are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

# How the head's K outputs z make a distribution over the grades; it depends on the loss that the head was trained with.
Link = Literal["softmax", "corn"]


@dataclass(frozen=True, slots=True)
class Head:
    """The linear layer over the last token's final hidden state, evaluated in float32.

    Attributes:
        weight: shape (K, hidden), float32.
        bias: shape (K,), float32.
        norm: weight of the RMS norm before it, shape (hidden,), float32; None for the base model's final norm.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    norm: NDArray[np.float32] | None = None


def check_link(link: str) -> None:
    """Raise InputError for a link that `grade_logits` does not know."""
    if link not in get_args(Link):
        raise InputError(f"unknown link {link!r}; known: {', '.join(get_args(Link))}")


def grade_logits(link: Link, outputs: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """The head's outputs as grade logits, whose softmax is the model's distribution over the grades.

    Every engine applies this, and an exported graph holds it, so that calibration, measures and users of the graph need
    not know how the head was trained.

    Args:
        link: "softmax" leaves the outputs as they are. "corn" takes z_{j+1} − z_j as the logit c_j of
            P(y > j | y ≥ j) and gives log p_k = Σ_{j<k} log σ(c_j) + log σ(−c_k), the last term absent for the highest
            grade: Shi, Cao and Raschka, "Deep Neural Networks for Rank-Consistent Ordinal Regression Based on
            Conditional Probabilities" (2021).
        outputs: z, shape (n, K).

    Returns:
        shape (n, K), float32.

    Raises:
        InputError: an unknown link.
    """
    check_link(link)
    if link == "softmax":
        return np.asarray(outputs, dtype=np.float32)
    conditionals = np.diff(np.asarray(outputs, dtype=np.float64), axis=1)
    beyond, at = -np.logaddexp(0, -conditionals), -np.logaddexp(0, conditionals)
    result = np.zeros(np.shape(outputs))
    result[:, 1:] += beyond.cumsum(axis=1)
    result[:, :-1] += at
    return result.astype(np.float32)
