"""The checkpoints that come with the package, each by its name."""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError

SHIPPED = Path(__file__).resolve().parents[1] / "data" / "models"
DEFAULT = "smollm2-darl"


def shipped_names() -> list[str]:
    """What `checkpoint_folder` takes besides a folder, sorted."""
    return sorted(path.name for path in SHIPPED.iterdir() if path.is_dir())


def checkpoint_folder(model: str | Path) -> Path:
    """The folder that `model` means: what is there under this path, else the checkpoint of this name that ships.

    Raises:
        InputError: neither.
    """
    path = Path(model)
    if path.exists():
        return path
    if str(model) in shipped_names():
        return SHIPPED / str(model)
    raise InputError(f"expected a checkpoint folder or one of those that ship: {', '.join(shipped_names())}", path=path)
