"""Start: the checkpoint that a training begins with, a given one or a base model with a head from the grade words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..context import Context
from ..model.initial import initial_checkpoint


def run(context: Context, folder: Path) -> dict[str, Any]:
    checkpoint = initial_checkpoint(context.recipe.model).save(folder / "checkpoint", overwrite=True)
    return {"base": checkpoint.base.name, "fingerprint": checkpoint.fingerprint}
