"""Checks of single arguments. numpy's numbers are numbers; True and False, which Python counts as 1 and 0, are not."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any, TypeGuard

from .errors import InputError


def is_whole(value: Any) -> TypeGuard[int]:
    """Whether it is a whole number."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> TypeGuard[float]:
    """Whether it is a real number; NaN and the infinities are."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_count(name: str, value: Any) -> None:
    """Raise InputError unless the argument `name` is a whole number of at least 1."""
    if not is_whole(value):
        raise InputError(f"{name} must be a whole number, got {value!r}")
    if value < 1:
        raise InputError(f"{name} must be at least 1, got {value}")
