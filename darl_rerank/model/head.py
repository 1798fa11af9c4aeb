"""Head: the grade rows over the network's last hidden state."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Head:
    """The linear layer over the last token's final hidden state, evaluated in float32.

    Attributes:
        weight: shape (K, hidden), float32.
        bias: shape (K,), float32.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
