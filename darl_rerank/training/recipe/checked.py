"""Settings that are checked when they are made: pydantic's dataclasses with the errors of this package."""

from __future__ import annotations

from dataclasses import field
from typing import Any, TypeVar, dataclass_transform

from darl_rerank.errors import InputError, MissingDependencyError

try:
    from pydantic import ConfigDict, Field, ValidationError
    from pydantic.dataclasses import dataclass
except ImportError as error:
    raise MissingDependencyError("pydantic", "train", "it checks settings") from error

T = TypeVar("T")
# pydantic's words, and those of someone who writes TOML.
_WORDS = {
    "a valid array": "a list",
    "a valid list": "a list",
    "a valid tuple": "a list",
    "a valid dictionary": "a table",
    "an object": "a table",
    "a valid boolean": "true or false",
    "a valid": "a",
    "a integer": "an integer",
    "expected greater": "expected a number greater",
    "expected less": "expected a number less",
}


@dataclass_transform(frozen_default=True, field_specifiers=(field, Field))
def checked(kind: type[T]) -> type[T]:
    """A frozen dataclass that takes no other keys than its fields, and no value of another type or out of range.

    Made in code, it raises an InputError that names every fault; `recipe.read` collects those of a whole file.
    """
    made: Any = dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))(kind)
    validate = made.__init__

    def init(self: Any, *arguments: Any, **values: Any) -> None:
        try:
            validate(self, *arguments, **values)
        except ValidationError as error:
            raise InputError("; ".join(faults_of(error, ""))) from None

    made.__init__ = init
    return made  # type: ignore[no-any-return]


def place(where: str, *keys: str) -> str:
    """A key as messages name it: "finetune.occ.rps", "source 'web': part"."""
    separator = ": " if where.startswith("source") else "."
    return separator.join(part for part in (where, ".".join(keys)) if part)


def faults_of(error: ValidationError, where: str) -> list[str]:
    """Each fault as "where.key: expected …, found …".

    Args:
        error: of pydantic.
        where: the table, as its header names it; "" for the file itself.
    """
    found = []
    for fault in error.errors(include_url=False):
        name = place(where, *map(str, fault["loc"]))
        if fault["type"] == "missing":
            found.append(f"{name} is missing")
        elif fault["type"] == "unexpected_keyword_argument":
            found.append(f"{name} is not a key")
        elif fault["type"] == "value_error":
            found.append(f"{name}: {fault['ctx']['error']}".removeprefix(": "))
        else:
            expected = fault["msg"].replace("Input should be ", "expected ", 1)
            for theirs, ours in _WORDS.items():
                expected = expected.replace(theirs, ours, 1)
            found.append(f"{name}: {expected}, found {fault['input']!r}")
    return found
