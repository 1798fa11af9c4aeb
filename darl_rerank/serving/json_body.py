"""A request's body as a JSON object, read strictly."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from .errors import ApiError


def read_object(body: bytes) -> dict[str, Any]:
    """The JSON object that a body holds.

    What parsers disagree on is refused, so that a proxy in front can't have read another request than this one: names
    that come twice, NaN and Infinity, any encoding but UTF-8.

    Raises:
        ApiError: 400, the body is something else.
    """
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _malformed(f"expected UTF-8, byte {error.start} is not") from error
    try:
        value = json.loads(text, object_pairs_hook=_without_repeats, parse_constant=_not_a_number)
    except RecursionError as error:
        raise _malformed("it is nested too deeply") from error
    except json.JSONDecodeError as error:
        raise _malformed(f"{error.msg} (line {error.lineno}, column {error.colno})") from error
    except ValueError as error:  # an integer of more digits than Python reads
        raise _malformed(str(error).split(";", maxsplit=1)[0]) from error
    if not isinstance(value, dict):
        raise ApiError(422, "invalid_request", f"the body must be a JSON object, got {json_type(value)}")
    return value


def json_type(value: Any) -> str:
    """What JSON calls the type of a value, with an article."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, (int, float)):
        return "a number"
    return "a string" if isinstance(value, str) else "an array" if isinstance(value, list) else "an object"


def _malformed(why: str) -> ApiError:
    return ApiError(400, "malformed_json", f"the body is not valid JSON: {why}")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise _malformed(f"the name {twice[:60]!r} comes twice in one object")
    return values


def _not_a_number(name: str) -> NoReturn:
    raise _malformed(f"{name} is not a number in JSON")
