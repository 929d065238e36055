"""Makes JSON of the states of entities, for snapshots, and states of that."""

from __future__ import annotations

from typing import Any

from messagedb_sa import _class_codecs as conversion
from messagedb_sa._message_types import RegisteredTypes
from messagedb_sa.errors import InvalidArgument

_JSON_CLASSES = frozenset({dict, list, str, int, float, bool})

_AS_IT_IS = conversion.Conversion(lambda state: state, lambda data: data)


def conversion_of_state(cls: type, types: RegisteredTypes | None) -> conversion.Conversion:
    """By the application's own functions if it has registered the class of the state with them."""
    if cls in _JSON_CLASSES:
        return _AS_IT_IS
    if types is not None and cls in types.by_class:
        return types.by_class[cls].conversion
    try:
        return conversion.of_class(cls)
    except InvalidArgument as error:
        way_out = "register it in the types of the entity, with encode= and decode="
        reason = f"to write snapshots, {error.reason.replace(conversion.OWN_FUNCTIONS, way_out)}"
        raise InvalidArgument("begin", cls, reason) from error.__cause__


def decoded_state(by: conversion.Conversion, data: Any) -> Any:
    """The state; ValueError if the class has other fields than the data. Raises what the class raises."""
    state = by.decode(data)
    if not _has_same_keys(by.encode(state), data):
        raise ValueError("the state's class has other fields")
    return state


def _has_same_keys(ours: Any, theirs: Any) -> bool:
    # Values may be written in another way, such as times.
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(_has_same_keys(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, (list, tuple)) and isinstance(theirs, (list, tuple)):
        return len(ours) == len(theirs) and all(map(_has_same_keys, ours, theirs))
    return True
