"""Encode values as JSON text for jsonb columns, with checks before anything is sent, and decode the text in bulk."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from functools import partial
from math import isfinite
from typing import Any, NamedTuple

from sqlalchemy import Dialect

from messagedb_sa._arguments import CONTAINS_NUL, unstorable
from messagedb_sa._drivers.errors import is_about_a_value
from messagedb_sa._round_trips import as_read
from messagedb_sa.errors import InvalidArgument
from messagedb_sa.store._gc import uncollected

try:
    import msgspec
except ImportError:
    msgspec = None  # type: ignore[assignment]


class Library(NamedTuple):
    """A JSON encoder and decoder.

    ``encode`` is strict: keys must be strings, and values must be those of JSON. It raises TypeError, ValueError or
    RecursionError.
    """

    encode: Callable[[Any], str]
    decode: Callable[[str], Any]


_write = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode
_parser = json.JSONDecoder()


def _encode(value: Any) -> str:
    if not _has_text_keys(value):
        raise TypeError("keys must be strings")
    return _write(value)


def _decode(text: str) -> Any:
    # raw_decode does not look for white space around the text. PostgreSQL's output has none.
    value, end = _parser.raw_decode(text)
    if end != len(text):
        raise ValueError(f"extra data after character {end}")
    return value


def _encode_by_msgspec(value: Any) -> str:
    # Other values go to the standard library, since msgspec also encodes classes that JSON does not have, and encodes
    # NaN as null.
    if _is_plain(value):
        try:
            return msgspec.json.encode(value).decode()
        except (ArithmeticError, ValueError):
            pass
    return _encode(value)


STANDARD = Library(_encode, _decode)
FASTEST = Library(_encode_by_msgspec, msgspec.json.decode) if msgspec else STANDARD


# Shorter text is not nested deeply.
_MAY_BE_DEEP = 500


class JSONCodec:
    """Encodes and decodes JSON for an engine.

    If the engine has a json_serializer or json_deserializer, it is used. Otherwise it is the standard library's json,
    and values that PostgreSQL cannot store, or would store as something else, are refused. If msgspec is installed, it
    replaces the standard library: it gives the same values in about half the time.
    """

    def __init__(self, dialect: Dialect, by: Library = FASTEST) -> None:
        self._library = by
        self._serializer = getattr(dialect, "_json_serializer", None)
        self._deserializer = getattr(dialect, "_json_deserializer", None)

    def as_read(self, argument: str, value: Any) -> Any:
        """A copy of the value as a read would return it. ``argument`` as in ``encode``."""
        if not (self._serializer or self._deserializer):
            try:
                return as_read(value)
            except RecursionError:
                pass
        text = self.encode(argument, value)
        try:
            return self.decode_one(text)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidArgument(argument, value, f"must become JSON that can be decoded: {error}") from error

    def encode(self, argument: str, value: Any) -> str | None:
        """The value as JSON text. None, for NULL, if the value is None."""
        if value is None:
            return None
        if self._serializer:
            return self._encode_by_serializer(argument, value, self._serializer)
        try:
            encoded = _dumps(value, self._library.encode)
        except (TypeError, ValueError, RecursionError) as error:
            reason = unstorable_part(value) or f"must be a value that JSON can represent: {error}"
            raise InvalidArgument(argument, value, reason) from error
        # The text may look unstorable although the value is not: a backslash, escaped, before u0000. Check the value.
        if _looks_unstorable(encoded) and (found := unstorable_part(value)):
            raise InvalidArgument(argument, value, found)
        return encoded

    def encode_all(self, values: list[Any], argument: Callable[[int], str]) -> str:
        """The values as one JSON array, with null for None. ``argument(i)`` is the name of item i for errors."""
        if not self._serializer:
            # One array is encoded several times faster than its items one by one. If the array fails, the items are
            # encoded one by one to find which one is wrong.
            try:
                if not _looks_unstorable(document := self._library.encode(values)):
                    return document
            except (TypeError, ValueError, RecursionError):
                pass
        return f"[{','.join([self._encode_item(argument(i), value) or 'null' for i, value in enumerate(values)])}]"

    def _encode_item(self, argument: str, value: Any) -> str | None:
        encoded = self.encode(argument, value)
        if self._serializer and encoded is not None:
            # Inside an array, text that is not JSON could become two items, or a part of the next item.
            try:
                _check_syntax(encoded)
            except ValueError as error:
                reason = f"the engine's json_serializer must return JSON: {error}"
                raise InvalidArgument(argument, value, reason) from error
        return encoded

    def _encode_by_serializer(self, argument: str, value: Any, serializer: Callable[[Any], str | bytes]) -> str | None:
        try:
            encoded = serializer(value)
            encoded = encoded.decode() if isinstance(encoded, bytes) else encoded
        except Exception as error:
            # A signal handler may raise its own error at any moment.
            if not is_about_a_value(error):
                raise
            reason = f"must be a value that the engine's json_serializer can encode: {_text(error)}"
            raise InvalidArgument(argument, value, reason) from error
        if not isinstance(encoded, str):
            reason = f"the engine's json_serializer must return text, got {type(encoded).__name__}"
            raise InvalidArgument(argument, value, reason)
        if unstorable_text := CONTAINS_NUL if _NUL.search(encoded) else unstorable(encoded):
            raise InvalidArgument(argument, value, unstorable_text)
        return None if encoded == "null" else encoded

    def decode(self, texts: Sequence[str | None]) -> Sequence[Any]:
        """The values of these texts. Raises ValueError or RecursionError if one of them cannot be decoded."""
        if self._deserializer:
            try:
                return [None if text is None else self._deserializer(text) for text in texts]
            except Exception as error:
                raise _failed(error) from error
        # One array is decoded several times faster than its items one by one.
        try:
            array = f"[{','.join(texts)}]"  # type: ignore[arg-type]
        except TypeError:
            array = f"[{','.join(['null' if text is None else text for text in texts])}]"
        values: list[Any] = self._loads(array)
        if len(values) != len(texts):
            # Text of the caller's own SQL may not be JSON.
            raise ValueError("some text is not one JSON value")
        return values

    def decode_one(self, text: str | None) -> Any:
        if text is None or not self._deserializer:
            return None if text is None else self._loads(text)
        try:
            return self._deserializer(text)
        except Exception as error:
            raise _failed(error) from error

    def _loads(self, text: str) -> Any:
        if len(text) < _MAY_BE_DEEP:
            return self._parse(text)
        # A collection deep inside nested data would run finalizers, such as those of connection pools, which then fail
        # at Python's recursion limit.
        with uncollected(len(text)):
            return self._parse(text)

    def _parse(self, text: str) -> Any:
        try:
            return self._library.decode(text)
        except ValueError:
            # jsonb holds integers of more than 4,300 digits. Python refuses to convert so many digits with int().
            return json.loads(text, parse_int=lambda digits: int(Decimal(digits)))


def _text(error: Exception) -> str:
    # A KeyError's text is only the key.
    return str(error) if isinstance(error, (TypeError, ValueError)) else f"{type(error).__name__}: {error}"


def _failed(error: Exception) -> ValueError:
    return ValueError(f"the engine's json_deserializer raised {type(error).__name__}: {error}")


# An even number of backslashes may come before: a backslash that is itself escaped does not begin an escape.
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")

_EXACT_TYPES = frozenset({str, int, bool, type(None)})
_SCALAR_TYPES = _EXACT_TYPES | {float}

# PostgreSQL's numeric has at most 131,072 digits before the decimal point.
_MAX_INTEGER_BITS = 435_412


# Numbers are not converted, so a long one does not fail.
_check_syntax = partial(json.loads, parse_int=str, parse_float=str)


def _looks_unstorable(encoded: str) -> bool:
    return "\\u0000" in encoded or unstorable(encoded) is not None


def _dumps(value: Any, encode: Callable[[Any], str] = _encode) -> str:
    try:
        return encode(value)
    except ValueError:
        if unstorable_part(value):
            raise
        return _dumps_long_integers(value)


def _is_plain(value: Any) -> bool:
    """Whether the value has only JSON's own classes and finite numbers, which all encoders write in the same way."""
    if value.__class__ is dict:
        for key in value:
            if key.__class__ is not str:
                return False
        value = value.values()
    elif value.__class__ is not list and value.__class__ is not tuple:
        return value.__class__ in _EXACT_TYPES or (value.__class__ is float and isfinite(value))
    for item in value:  # noqa: SIM110 - a generator would take twice as long
        if item.__class__ not in _EXACT_TYPES and not _is_plain(item):
            return False
    return True


def _has_text_keys(value: Any) -> bool:
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                return False
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return True
    for item in value:  # noqa: SIM110 - a generator would take twice as long
        if item.__class__ not in _SCALAR_TYPES and not _has_text_keys(item):
            return False
    return True


def _dumps_long_integers(value: Any) -> str:
    """json.dumps for integers of any length. Python refuses to print an int of more than 4,300 digits."""
    if isinstance(value, dict):
        return f"{{{','.join(f'{_dumps(key)}:{_dumps_long_integers(item)}' for key, item in value.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(_dumps_long_integers, value))}]"
    if isinstance(value, int) and not isinstance(value, bool):
        return format(Decimal(value), "f")
    return _dumps(value)


def unstorable_part(value: Any, path: str = "") -> str | None:
    """Where the value has a part that JSON or PostgreSQL cannot represent, and why. None if there is no such part."""
    at = f"at {path}: " if path else ""
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, int):
        bits = value.bit_length()
        too_large = f"{at}an integer of {bits} bits is too large, since jsonb holds at most {_MAX_INTEGER_BITS} bits"
        return too_large if bits > _MAX_INTEGER_BITS else None
    if isinstance(value, str):
        return f"{at}{reason}" if (reason := unstorable(value)) else None
    if isinstance(value, float):
        return None if isfinite(value) else f"{at}must be a finite number, not {value}"
    try:
        if isinstance(value, dict):
            for key, item in value.items():
                if not isinstance(key, str):
                    return f"{at}the key {key!r} must be a string"
                if reason := unstorable(key):
                    return f"{at}the key {key!r} {reason}"
                if reason := unstorable_part(item, f"{path}[{key!r}]"):
                    return reason
            return None
        if isinstance(value, (list, tuple)):
            items = (unstorable_part(item, f"{path}[{i}]") for i, item in enumerate(value))
            return next(filter(None, items), None)
    except RecursionError:
        return "must not be nested too deeply, or contain itself"
    return f"{at}must be a value that JSON can represent, not a {type(value).__name__}"
