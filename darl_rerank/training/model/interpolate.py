"""Weights between the probed and the fine-tuned model: θ = (1 − α)·θ_probe + α·θ_finetuned, head and body together.

Source: WiSE-FT, Wortsman et al., "Robust fine-tuning of zero-shot models" (CVPR 2022); the average of several
fine-tuned models is a model soup (Wortsman et al., ICML 2022).

Under LoRA the difference ΔW = B·A·alpha/rank is what is interpolated: scaled by α. Averaging A and B on their own
would give cross terms B_i·A_j that no model has been trained with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from darl_rerank.errors import InputError

State = Mapping[str, Tensor]


def interpolated(start: State, end: State, alpha: float) -> dict[str, Tensor]:
    """The state at `alpha` between two states of `GradeModel.trainable_state`, 0 the first and 1 the second.

    LoRA's B is scaled and its A kept, which scales ΔW, provided that ΔW is zero at the start.

    Raises:
        InputError: other weights in the two, or an adapter that does not start at zero.
    """
    if start.keys() != end.keys():
        raise InputError("states with different weights can't be interpolated")
    result = {}
    for name, value in end.items():
        if ".lora_A." in name:
            result[name] = value.clone()
            continue
        if ".lora_B." in name and bool(start[name].any()):
            raise InputError("interpolation starts from the model without an adapter, but this one had one already")
        result[name] = torch.lerp(start[name].float(), value.float(), alpha).to(value.dtype)
    return result


def average(states: Sequence[State]) -> dict[str, Tensor]:
    """The mean of fine-tuned states (a model soup).

    LoRA's factors are put side by side, so that the new ΔW is exactly the mean of the old ones; the rank becomes the
    sum of the ranks, and the model that takes it needs `rank` and `alpha` times as large.

    Raises:
        InputError: no states, or states with different weights.
    """
    if not states or any(state.keys() != states[0].keys() for state in states):
        raise InputError("an average needs states of the same weights")
    result = {}
    for name in states[0]:
        values = [state[name].float() for state in states]
        if ".lora_A." in name:
            result[name] = torch.cat(values, dim=0)
        elif ".lora_B." in name:
            result[name] = torch.cat(values, dim=1) / len(values)
        else:
            result[name] = torch.stack(values).mean(0)
    return result
