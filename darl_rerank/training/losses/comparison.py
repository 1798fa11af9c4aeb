"""The losses OCC is compared with, and `LOSSES`: every loss by the name a configuration uses.

All have the signature `losses.occ.Loss`. One of them, CORN, reads the head's outputs in another way: `link_of` says
which, and the checkpoint keeps it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from darl_rerank.errors import InputError
from darl_rerank.model.head import Link

from .occ import (
    Loss,
    Reduction,
    cross_entropy,
    full_precision,
    occ,
    ranked_probability_score,
    reduce,
    soft_targets,
)


def label_smoothing(
    logits: Tensor,
    targets: Tensor,
    *,
    queries: Tensor | None = None,
    gains: Tensor | None = None,
    weights: Tensor | None = None,
    reduction: Reduction = "mean",
    smoothing: float = 0.1,
) -> Tensor:
    """CE against (1 − smoothing) · t + smoothing / K.

    Source: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision" (CVPR 2016).
    Shapes as in `Loss`.
    """
    logits = full_precision(logits)
    smooth = (1 - smoothing) * soft_targets(targets, logits) + smoothing / logits.shape[1]
    return cross_entropy(logits, smooth, weights=weights, reduction=reduction)


def sord(
    logits: Tensor,
    targets: Tensor,
    *,
    queries: Tensor | None = None,
    gains: Tensor | None = None,
    weights: Tensor | None = None,
    reduction: Reduction = "mean",
    sharpness: float = 1.0,
) -> Tensor:
    """CE against SORD soft labels: softmax over k of −sharpness · (k − y)².

    Source: Díaz and Marathe, "Soft Labels for Ordinal Regression" (CVPR 2019), squared distance between ranks.
    A soft target gives the mean of its grades' soft labels. Shapes as in `Loss`.
    """
    logits = full_precision(logits)
    rank = torch.arange(logits.shape[1], device=logits.device, dtype=logits.dtype)
    labels = (-sharpness * (rank.unsqueeze(0) - rank.unsqueeze(1)).square()).softmax(dim=1)
    return cross_entropy(logits, soft_targets(targets, logits) @ labels, weights=weights, reduction=reduction)


def emd(
    logits: Tensor,
    targets: Tensor,
    *,
    queries: Tensor | None = None,
    gains: Tensor | None = None,
    weights: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Squared earth mover's distance between p and t on the line of grades, without cross-entropy beside it.

    Source: Hou, Yu and Samaras, "Squared Earth Mover's Distance-based Loss for Training Deep Neural Networks" (2016).
    On ordered grades it is the same sum as the ranked probability score. Shapes as in `Loss`.
    """
    return ranked_probability_score(logits, targets, weights=weights, reduction=reduction)


def corn_conditionals(logits: Tensor) -> Tensor:
    """CORN's K−1 conditional logits from a head with K rows: c_j = z_{j+1} − z_j, of P(y > j | y ≥ j), shape (n, K−1).

    A difference of neighbouring rows is as general as K−1 rows of their own, keeps the head's shape, and starts from
    the words of two neighbouring grades like the softmax arms do. (The other natural choice, the continuation
    log-odds of the softmax, would make CORN the same function as CE: their products telescope to p_y.)
    """
    logits = full_precision(logits)
    return logits[:, 1:] - logits[:, :-1]


def corn(
    logits: Tensor,
    targets: Tensor,
    *,
    queries: Tensor | None = None,
    gains: Tensor | None = None,
    weights: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """CORN: Σ_j −P(y > j) log σ(c_j) − P(y = j) log σ(−c_j), with c from `corn_conditionals`.

    A hard label takes part in the tasks j ≤ y only, as the conditional training sets demand; a soft target in every
    task with the probability it reaches it. Source: Shi, Cao and Raschka, "Deep Neural Networks for Rank-Consistent
    Ordinal Regression Based on Conditional Probabilities" (2021). Their code divides the batch's sum by the number of
    (example, task) cases, here it is divided by the number of examples: a factor between 1 and K−1.
    Shapes as in `Loss`.
    """
    conditionals = corn_conditionals(logits)
    truth = soft_targets(targets, full_precision(logits))
    at = truth[:, :-1]
    # Summed from above, so that an exact zero stays one: 1 − cumsum would leave rounding behind.
    beyond = truth.flip(1).cumsum(dim=1).flip(1)[:, 1:]
    values = -(beyond * F.logsigmoid(conditionals) + at * F.logsigmoid(-conditionals)).sum(dim=1)
    return reduce(values, weights, reduction)


def corn_log_probabilities(logits: Tensor) -> Tensor:
    """log p_k of the CORN model, shape (n, K): Σ_{j<k} log σ(c_j) + log σ(−c_k), the last term absent for k = K−1."""
    conditionals = corn_conditionals(logits)
    reached = F.pad(F.logsigmoid(conditionals).cumsum(dim=1), (1, 0))
    return reached + F.pad(F.logsigmoid(-conditionals), (0, 1))


LOSSES: dict[str, Loss] = {
    "occ": occ,
    "ce": cross_entropy,
    "label_smoothing": label_smoothing,
    "sord": sord,
    "emd": emd,
    "corn": corn,
}


def loss_named(name: str) -> Loss:
    """The loss a configuration names.

    Raises:
        InputError: there is no such loss; the message lists those there are.
    """
    if name not in LOSSES:
        raise InputError(f"unknown loss {name!r}; known: {', '.join(LOSSES)}")
    return LOSSES[name]


def link_of(name: str) -> Link:
    """How the outputs of a head that was trained with this loss are read; see `darl_rerank.model.head.grade_logits`."""
    loss_named(name)
    return "corn" if name == "corn" else "softmax"
