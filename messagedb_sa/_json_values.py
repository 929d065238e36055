"""Copies of values in JSON's own types, and how instances of registered classes become such values."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import Any
from weakref import WeakKeyDictionary

from messagedb_sa.errors import InvalidArgument

_JSON = "must be text, a finite number, True, False, None, a list, or a dict with text as keys"

# By class, since a message does not know the types that made an instance of its data.
_encoders: WeakKeyDictionary[type, Callable[[Any], Any]] = WeakKeyDictionary()


def add_encoder(cls: type, encode: Callable[[Any], Any]) -> None:
    """Instances of the class, and of classes derived from it, become what ``encode`` returns."""
    _encoders[cls] = encode


def json_value(argument: str, value: Any) -> Any:
    """A copy of the value, or of an instance's data. Raises InvalidArgument with the part that JSON cannot have."""
    encode = next((_encoders[each] for each in type(value).__mro__ if each in _encoders), None)
    if encode is not None:
        try:
            data = encode(value)
        except Exception as error:
            reason = f"must be an instance that its class can encode: {type(error).__name__}: {error}"
            raise InvalidArgument(argument, value, reason) from error
    elif isinstance(value, (str, int, float, dict, list, tuple)) or value is None:
        data = value
    else:
        raise InvalidArgument(argument, value, f"{_JSON}; or an instance of a class that is registered")
    try:
        return _copy(argument, data)
    except RecursionError as error:
        raise InvalidArgument(argument, value, "must not be nested as deeply") from error


def _copy(path: str, value: Any) -> Any:
    if value is None or value is True or value is False or value.__class__ is str:
        return value
    if isinstance(value, dict):
        copy = {}
        for key, item in value.items():
            if not isinstance(key, str):
                raise InvalidArgument(path, value, f"{_JSON}; it has the key {key!r}")
            copy[str.__str__(key)] = _copy(f"{path}[{key!r}]", item)
        return copy
    if isinstance(value, (list, tuple)):
        return [_copy(f"{path}[{number}]", item) for number, item in enumerate(value)]
    # A subclass, such as an enumeration, may have a text and a JSON of its own.
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__index__(value)
    if isinstance(value, float) and isfinite(value):
        return float.__float__(value)
    raise InvalidArgument(path, value, _JSON)
