"""The versions that `make test` installs are those that constraints.txt gives to users."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text("utf-8").splitlines()
    return dict(line.lower().replace("_", "-").split("==") for line in lines if line and not line.startswith("#"))


def test_lock_and_constraints_agree() -> None:
    """Where they don't, `make lock` writes the lock anew."""
    locked, given = pins("requirements.lock"), pins("constraints.txt")
    assert len(locked) > 200
    assert {name: locked[name] for name in given if name in locked and locked[name] != given[name]} == {}
    assert {"torch", "transformers", "numpy", "pytest", "codespell"} <= set(locked)
