"""Reading TOML tables with all faults collected: each getter returns a default where the key is absent or faulty."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from darl_rerank.model.shipped import SHIPPED, shipped_names


class HasFaults(Protocol):
    """What a table reports to.

    Attributes:
        path: the file, whose folder paths are relative to.
        faults: messages.
    """

    path: Path
    faults: list[str]


class Table:
    """One TOML table; each getter returns the default where the key is absent or faulty."""

    def __init__(self, reader: HasFaults, where: str, values: Any, known: set[str] | None = None) -> None:
        self.values: dict[str, Any] = values if isinstance(values, dict) else {}
        known = set(self.values) if known is None else known
        self.reader, self.where, self.known = reader, where, known
        for name in sorted(self.values.keys() - known):
            reader.faults.append(f"{self._name(name)} is not a key; known: {', '.join(sorted(known))}")

    def _name(self, key: str) -> str:
        separator = ": " if self.where.startswith("source") else "."
        return f"{self.where}{separator}{key}" if self.where else key

    def fault(self, key: str, expected: str) -> None:
        self.reader.faults.append(f"{self._name(key)}: expected {expected}, found {self.values[key]!r}")

    def string(self, key: str, default: str | None, *, required: bool = False) -> str | None:
        if key not in self.values:
            if required:
                self.reader.faults.append(f"{self._name(key)} is missing")
            return default
        if isinstance(self.values[key], str) and self.values[key]:
            return str(self.values[key])
        self.fault(key, "a string")
        return default

    def integer(self, key: str, default: Any, *, low: int = 1) -> Any:
        value = self.values.get(key, default)
        if key in self.values and (not isinstance(value, int) or isinstance(value, bool) or value < low):
            self.fault(key, f"an integer of at least {low}")
            return default
        return value

    def integers(self, key: str, default: tuple[int, ...]) -> tuple[int, ...]:
        value = self.values.get(key, list(default))
        if not isinstance(value, list) or not value or not all(type(item) is int and item >= 0 for item in value):
            self.fault(key, "a list of integers of at least 0")
            return default
        return tuple(value)

    def number(self, key: str, default: Any, *, low: float = 0.0) -> Any:
        value = self.values.get(key, default)
        if key in self.values and (not isinstance(value, int | float) or isinstance(value, bool) or not value >= low):
            self.fault(key, f"a number of at least {low:g}")
            return default
        return value

    def strings(self, key: str) -> tuple[str, ...]:
        value = self.values.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self.fault(key, "a list of strings")
            return ()
        return tuple(value)

    def interval(self, key: str, default: tuple[float, float], low: float, high: float) -> tuple[float, float]:
        value = self.values.get(key, list(default))
        numbers = isinstance(value, list) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
        if not numbers or len(value) != 2 or not low <= value[0] < value[1] <= high:
            self.fault(key, f"two rising numbers within {low:g} and {high:g}")
            return default
        return float(value[0]), float(value[1])

    def boolean(self, key: str, default: bool) -> bool:
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            self.fault(key, "true or false")
            return default
        return value

    def table(self, key: str, default: Any = ()) -> Any:
        value = self.values.get(key)
        if key in self.values and not isinstance(value, dict):
            self.fault(key, "a table")
            value = None
        return value if value is not None else (None if default is None else {})

    def tables(self, key: str) -> list[dict[str, Any]]:
        value = self.values.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
            self.fault(key, f"an array of tables, [[{key}]]")
            return []
        return value

    def path(self, key: str) -> Path | None:
        text = self.string(key, None)
        return None if text is None else self._existing(key, text)

    def _existing(self, key: str, text: str) -> Path | None:
        path = self.reader.path.parent / Path(text).expanduser()
        if path.exists():
            return path
        self.reader.faults.append(f"{self._name(key)}: no such file: {path}")
        return None

    def checkpoint(self, key: str) -> Path | None:
        """A checkpoint folder, relative to the recipe like every path, or the name of a checkpoint that ships."""
        text = self.string(key, None)
        if text is None:
            return None
        path = self.reader.path.parent / Path(text).expanduser()
        if path.exists():
            return path
        if text in shipped_names():
            return SHIPPED / text
        self.reader.faults.append(
            f"{self._name(key)}: no such folder: {path}; checkpoints that ship: {', '.join(shipped_names())}"
        )
        return None

    def paths(self, key: str) -> tuple[Path, ...]:
        value = self.values.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self.fault(key, "a list of paths")
            return ()
        return tuple(path for text in value if (path := self._existing(key, text)) is not None)
