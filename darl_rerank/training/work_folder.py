"""A folder for each stage of a training: what it made, and a mark that it is finished, so that a killed training goes
on with the stage it was in."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from darl_rerank.errors import InputError
from darl_rerank.files import atomic_write

_RESULT = "result.json"
_PLAN = "plan.json"
_INPUTS = "inputs.json"


def is_first_process() -> bool:
    """False in all but one of the processes that `accelerate launch` or torchrun start."""
    return int(os.environ.get("RANK", "0")) == 0


def wait_for(path: Path) -> None:
    """Return when the first process has made the file.

    A collective operation would time out on stages that take hours. The launcher ends this process with the first one,
    should that fail.
    """
    while not path.is_file():
        time.sleep(0.2)


class WorkFolder:
    """The stages of one training.

    Only the first of several processes runs a stage; the others wait for its result. Fine-tuning, which all processes
    take part in, is run with `shared`.

    Args:
        folder: for all of them.
        plan: what decides the results, by name, as JSON types; a folder begun under another plan is refused.

    Raises:
        InputError: the plan differs from the one that `folder` was begun with; the message says in what.
    """

    def __init__(self, folder: Path, plan: Mapping[str, Any]) -> None:
        self.folder = folder
        path = folder / _PLAN
        if path.is_file():
            if changed := differences(_read(path), json.loads(json.dumps(plan))):
                raise InputError(
                    f"holds a training that differs in {changed}; choose another --work folder or delete it",
                    path=folder,
                )
        elif is_first_process():
            _write(path, plan)

    def path(self, name: str) -> Path:
        """The folder of stage `name`."""
        return self.folder / name

    def result(self, name: str) -> dict[str, Any] | None:
        """What stage `name` returned, if it is finished."""
        path = self.folder / name / _RESULT
        if not path.is_file():
            return None
        return _read(path)

    def run(
        self,
        name: str,
        work: Callable[[Path], Any],
        *,
        shared: bool = False,
        inputs: Mapping[str, str | None] | None = None,
    ) -> dict[str, Any]:
        """The result of stage `name`: as it was kept, or that of `work`, which gets the stage's folder.

        Args:
            name: of the stage and its folder.
            work: returns JSON types or a dataclass of them.
            shared: all processes call `work`.
            inputs: digests, by name, of what the stage reads and the plan can't know, because it is made between two
                runs.

        Raises:
            InputError: an input is not what it was when the stage was finished.
        """
        found = self.result(name)
        if found is not None:
            kept = self.folder / name / _INPUTS
            if inputs and kept.is_file() and (changed := differences(_read(kept), inputs)):
                raise InputError(
                    f"stage {name} is finished, and since then there is a change in {changed}; choose another --work "
                    "folder, or delete this stage's folder and those of the stages after it",
                    path=self.folder / name,
                )
            return found
        first = is_first_process()
        if not first and not shared:
            return self._wait(name)
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        value = work(folder)
        if not first:
            return self._wait(name)
        result: dict[str, Any] = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
        if inputs:
            _write(folder / _INPUTS, inputs)
        _write(folder / _RESULT, result)
        return result

    def _wait(self, name: str) -> dict[str, Any]:
        wait_for(self.folder / name / _RESULT)
        found = self.result(name)
        assert found is not None
        return found


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs, in words: the names, with both values where these are short; "" if nothing does."""
    old, new = _flat(before), _flat(now)
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    shown = [
        f"{key} ({a}, now {b})" if max(len(a := _short(old.get(key))), len(b := _short(new.get(key)))) <= 40 else key
        for key in changed[:8]
    ]
    return ", ".join(shown) + (f" and {len(changed) - 8} more" if len(changed) > 8 else "")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables and lists of tables as one table: {"a": [{"b": 1}]} is {"a.1.b": 1}."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        inner = value
        if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            inner = {str(place): item for place, item in enumerate(value, 1)}
        if isinstance(inner, Mapping):
            result |= _flat(inner, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    # A digest says nothing beyond its first digits.
    return text[:12] if len(text) == 64 and text.isalnum() else text


def _read(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return values


def _write(path: Path, values: Mapping[str, Any]) -> None:
    with atomic_write(path) as stream:
        json.dump(values, stream, indent=1)


def portable(values: Any) -> Any:
    """JSON types, with paths cut to their names: where a file is decides no result, and its folder is private."""
    if isinstance(values, Mapping):
        return {str(key): portable(value) for key, value in values.items() if key != "path"}
    if isinstance(values, Path):
        return values.name
    if isinstance(values, list | tuple):
        return [portable(value) for value in values]
    return values
