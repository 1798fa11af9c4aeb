"""What an interrupted training resumes from, without pickle: tensors in safetensors, numbers in JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from darl_rerank.errors import InputError
from darl_rerank.files import atomic_write

from ..model.grade_model import save_weights

_OPTIMIZER = "optimizer.safetensors"
_NUMBERS = "optimizer.json"
# Trainer writes it last: a state folder that has it is whole.
_TRAINER_STATE = "trainer_state.json"


def newest_state(folder: Path) -> Path | None:
    """The state folder of the highest step that was written to its end, if there is one."""
    states = [path for path in folder.glob("checkpoint-*") if _is_whole(path)]
    return max(states, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _is_whole(path: Path) -> bool:
    try:
        json.loads((path / _TRAINER_STATE).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return path.name.rpartition("-")[2].isdecimal()


def save_optimizer(folder: Path, optimizer: Any, scheduler: Any, extra: dict[str, Any]) -> None:
    """Write optimizer, scheduler and `extra` (JSON) into a state folder."""
    state = optimizer.state_dict()
    tensors = {
        f"{index}.{name}": value.detach().cpu().contiguous()
        for index, values in state["state"].items()
        for name, value in values.items()
    }
    save_weights(folder / _OPTIMIZER, tensors)
    # A schedule's functions can't be written; they are made anew from the settings.
    numbers = {key: value for key, value in scheduler.state_dict().items() if key != "lr_lambdas"}
    rates = [{key: group[key] for key in ("lr", "initial_lr")} for group in state["param_groups"]]
    with atomic_write(folder / _NUMBERS) as stream:
        json.dump({"scheduler": numbers, "rates": rates, "extra": extra}, stream)


def load_optimizer(folder: Path, optimizer: Any, scheduler: Any) -> dict[str, Any]:
    """Put back what `save_optimizer` wrote; returns its `extra`.

    Raises:
        InputError: it was written by a training with other weights.
    """
    tensors = load_file(folder / _OPTIMIZER)
    numbers = json.loads((folder / _NUMBERS).read_text("utf-8"))
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    groups = optimizer.state_dict()["param_groups"]
    if len(groups) != len(numbers["rates"]):
        raise InputError("the saved optimizer is not of this training; delete the folder to begin anew", path=folder)
    for group, rates in zip(groups, numbers["rates"], strict=True):
        group.update(rates)
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    own = scheduler.state_dict()
    scheduler.load_state_dict({**own, **numbers["scheduler"]})
    extra: dict[str, Any] = numbers["extra"]
    return extra
