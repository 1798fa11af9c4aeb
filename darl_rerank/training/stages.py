"""A folder for each stage of a training: what it made, and a mark that it is finished, so that a killed training goes
on with the stage it was in."""

from __future__ import annotations

import hashlib
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


class Stages:
    """The stages of one training.

    Only the first of several processes runs a stage; the others wait for its result. Fine-tuning, which all processes
    take part in, is run with `shared`.

    Args:
        folder: for all of them.
        plan: what decides the results, as JSON types; a folder begun under another plan is refused.
    """

    def __init__(self, folder: Path, plan: Any) -> None:
        self.folder = folder
        digest = hashlib.sha256(json.dumps(plan, sort_keys=True, default=str).encode()).hexdigest()
        path = folder / _PLAN
        if path.is_file():
            if json.loads(path.read_text("utf-8")).get("sha256") != digest:
                raise InputError(
                    "holds a training by another recipe or on other data; choose another --work folder or delete it",
                    path=folder,
                )
        elif is_first_process():
            with atomic_write(path) as stream:
                json.dump({"sha256": digest, "plan": plan}, stream, indent=1, default=str)

    def path(self, name: str) -> Path:
        """The folder of stage `name`."""
        return self.folder / name

    def result(self, name: str) -> dict[str, Any] | None:
        """What stage `name` returned, if it is finished."""
        path = self.folder / name / _RESULT
        if not path.is_file():
            return None
        values: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return values

    def run(self, name: str, work: Callable[[Path], Any], *, shared: bool = False) -> dict[str, Any]:
        """The result of stage `name`: as it was kept, or that of `work`, which gets the stage's folder.

        Args:
            name: of the stage and its folder.
            work: returns JSON types or a dataclass of them.
            shared: all processes call `work`.
        """
        found = self.result(name)
        if found is not None:
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
        with atomic_write(folder / _RESULT) as stream:
            json.dump(result, stream, indent=1)
        return result

    def _wait(self, name: str) -> dict[str, Any]:
        wait_for(self.folder / name / _RESULT)
        found = self.result(name)
        assert found is not None
        return found


def portable(values: Any) -> Any:
    """JSON types, with paths cut to their names: where a file is decides no result, and its folder is private."""
    if isinstance(values, Mapping):
        return {str(key): portable(value) for key, value in values.items() if key != "path"}
    if isinstance(values, Path):
        return values.name
    if isinstance(values, list | tuple):
        return [portable(value) for value in values]
    return values
