"""Where a checkpoint is that is called by a name: one that comes with the package, or one on the hub."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import InputError
from .hub import fetch, hub_reference

SHIPPED = Path(__file__).resolve().parents[1] / "data" / "models"
DEFAULT = "smollm2-darl"


def shipped_names() -> list[str]:
    """What `checkpoint_folder` takes besides a folder, sorted."""
    return sorted(path.name for path in SHIPPED.iterdir() if path.is_dir())


def is_checkpoint(model: str | Path) -> bool:
    """Whether `checkpoint_folder` finds a checkpoint under this path or name, and not, say, a base model."""
    return str(model) in shipped_names() or (Path(model) / "checkpoint.json").is_file()


def checkpoint_folder(model: str | Path, revision: str | None = None) -> Path:
    """The folder that `model` means: what is under this path, else the shipped one of this name, else the hub's.

    Raises:
        InputError: none of them, or a revision of something that is not on the hub.
        DarlRerankError: the hub was not reached, and its cache does not have the model.
    """
    # Not Path.expanduser, which raises where there is no such home.
    path = Path(os.path.expanduser(model))
    shipped = str(model) in shipped_names()
    if not path.exists() and not shipped and (found := hub_reference(str(model), revision)) is not None:
        return fetch(*found)
    if revision is not None:
        raise InputError(f"a revision ({revision}) is of a model on the hub, which this is not", path=path)
    if path.exists():
        return path
    if shipped:
        return SHIPPED / str(model)
    raise InputError(
        f"expected a checkpoint folder, one of those that ship ({', '.join(shipped_names())}) or org/name on the hub",
        path=path,
    )
