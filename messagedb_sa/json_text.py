"""JSON as text, for columns of type jsonb: checked before it is sent, decoded in bulk."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from functools import partial
from math import isfinite
from typing import Any, NamedTuple

from sqlalchemy import Dialect

from messagedb_sa.arguments import unstorable
from messagedb_sa.errors import InvalidArgument

try:
    import msgspec
except ImportError:
    msgspec = None  # type: ignore[assignment]


class Library(NamedTuple):
    """``encode`` is strict: text for keys, and only what JSON has. Raises TypeError, ValueError, RecursionError."""

    encode: Callable[[Any], str]
    decode: Callable[[str], Any]


_write = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode
_parser = json.JSONDecoder()


def _encode(value: Any) -> str:
    if not _has_text_keys(value):
        raise TypeError("keys must be text")
    return _write(value)


def _decode(text: str) -> Any:
    # Without the search for space around it that json.loads makes: PostgreSQL prints none.
    return _parser.raw_decode(text)[0]


def _encode_by_msgspec(value: Any) -> str:
    # Of other classes it takes more than JSON has, and NaN for null.
    if _is_plain(value):
        try:
            return msgspec.json.encode(value).decode()
        except (ArithmeticError, ValueError):
            pass
    return _encode(value)


STANDARD = Library(_encode, _decode)
FASTEST = Library(_encode_by_msgspec, msgspec.json.decode) if msgspec else STANDARD


class JSONCodec:
    """An engine's json_serializer and json_deserializer where they are set; otherwise the standard library's json,
    strict about what PostgreSQL could not store or would store as something else.

    Where msgspec is installed it takes the standard library's place: the same values, in about half the time.
    """

    def __init__(self, dialect: Dialect, by: Library = FASTEST) -> None:
        self._by = by
        self._serializer = getattr(dialect, "_json_serializer", None)
        self._deserializer = getattr(dialect, "_json_deserializer", None)

    def encode(self, argument: str, value: Any) -> str | None:
        """None for None: no value, not JSON's null."""
        if value is None:
            return None
        if self._serializer:
            return self._encode_as_the_engine_does(argument, value, self._serializer)
        try:
            encoded = _dumps(value, self._by.encode)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidArgument(argument, value, _flaw(value) or f"has no JSON form: {error}") from error
        # An escaped backslash before u0000 is no NUL: the value itself has to tell, and where it is.
        if _is_suspect(encoded) and (flaw := _flaw(value)):
            raise InvalidArgument(argument, value, flaw)
        return encoded

    def encode_all(self, values: list[Any], argument: Callable[[int], str]) -> str:
        """The values as one JSON array, null for None; ``argument`` names each where one is flawed."""
        if not self._serializer:
            # One document is encoded several times faster than its parts one by one; those can tell which is flawed.
            try:
                if not _is_suspect(document := self._by.encode(values)):
                    return document
            except (TypeError, ValueError, RecursionError):
                pass
        return f"[{','.join([self._encode_one_of(argument(i), value) or 'null' for i, value in enumerate(values)])}]"

    def _encode_one_of(self, argument: str, value: Any) -> str | None:
        encoded = self.encode(argument, value)
        if self._serializer and encoded is not None:
            # What is no JSON might be taken for two values, or for a part of the next.
            try:
                _loads_unjudged(encoded)
            except ValueError as error:
                raise InvalidArgument(argument, value, f"the engine's json_serializer made no JSON: {error}") from error
        return encoded

    def _encode_as_the_engine_does(
        self, argument: str, value: Any, serializer: Callable[[Any], str | bytes]
    ) -> str | None:
        try:
            encoded = serializer(value)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidArgument(argument, value, f"has no JSON form: {error}") from error
        encoded = encoded.decode() if isinstance(encoded, bytes) else encoded
        if flaw := "holds a NUL character" if _NUL.search(encoded) else unstorable(encoded):
            raise InvalidArgument(argument, value, flaw)
        return None if encoded == "null" else encoded

    def decode(self, texts: Sequence[str | None]) -> Sequence[Any]:
        if self._deserializer:
            return [None if text is None else self._deserializer(text) for text in texts]
        # One document is decoded several times faster than its parts one by one.
        values: list[Any] = self._loads(f"[{','.join(['null' if text is None else text for text in texts])}]")
        return values

    def decode_one(self, text: str | None) -> Any:
        return None if text is None else (self._deserializer or self._loads)(text)

    def _loads(self, text: str) -> Any:
        try:
            return self._by.decode(text)
        except ValueError:
            # What PostgreSQL keeps may be beyond it: a number of over 4,300 digits, where the interpreter has a limit.
            return json.loads(text, parse_int=lambda digits: int(Decimal(digits)))


# Preceded by an even number of backslashes, for an escaped one begins no escape.
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")

_EXACT = frozenset({str, int, bool, type(None)})
_SCALAR = _EXACT | {float}

# PostgreSQL's numeric has at most 131,072 digits before the point: these many bits.
_LONGEST_INTEGER = 435_412


def is_json(text: str | None) -> bool:
    """Whether it is JSON to PostgreSQL, which has no NaN and no lone surrogates."""
    try:
        return text is None or not _flaw(json.loads(text))
    except ValueError:
        return False


_loads_unjudged = partial(json.loads, parse_int=str, parse_float=str)


def _is_suspect(encoded: str) -> bool:
    return "\\u0000" in encoded or unstorable(encoded) is not None


def _dumps(value: Any, encode: Callable[[Any], str] = _encode) -> str:
    try:
        return encode(value)
    except ValueError:
        if _flaw(value):
            raise
        return _dumps_long_integers(value)


def _is_plain(value: Any) -> bool:
    """Whether it is made of finite values of JSON's own classes, and of no others: what every encoder writes alike."""
    if value.__class__ is dict:
        for key in value:
            if key.__class__ is not str:
                return False
        value = value.values()
    elif value.__class__ is not list and value.__class__ is not tuple:
        return value.__class__ in _EXACT or (value.__class__ is float and isfinite(value))
    for item in value:  # noqa: SIM110 - a generator would take twice as long
        if item.__class__ not in _EXACT and not _is_plain(item):
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
        if item.__class__ not in _SCALAR and not _has_text_keys(item):
            return False
    return True


def _dumps_long_integers(value: Any) -> str:
    """As json.dumps, with integers of any length, which the interpreter refuses to print beyond 4,300 digits."""
    if isinstance(value, dict):
        return f"{{{','.join(f'{_dumps(key)}:{_dumps_long_integers(item)}' for key, item in value.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(_dumps_long_integers, value))}]"
    if isinstance(value, int) and not isinstance(value, bool):
        return format(Decimal(value), "f")
    return _dumps(value)


def _is_too_long(value: int) -> bool:
    return value.bit_length() > _LONGEST_INTEGER


def _flaw(value: Any, path: str = "") -> str | None:
    """The first thing in the value that JSON or PostgreSQL can't hold, and where; None if nothing is found."""
    at = f"at {path}: " if path else ""
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, int):
        return f"{at}an integer of {value.bit_length()} bits is more than jsonb holds" if _is_too_long(value) else None
    if isinstance(value, str):
        return f"{at}{flaw}" if (flaw := unstorable(value)) else None
    if isinstance(value, float):
        return None if isfinite(value) else f"{at}{value} is no JSON number"
    try:
        if isinstance(value, dict):
            for key, item in value.items():
                if not isinstance(key, str):
                    return f"{at}the key {key!r} is no text"
                if flaw := unstorable(key):
                    return f"{at}the key {key!r} {flaw}"
                if flaw := _flaw(item, f"{path}[{key!r}]"):
                    return flaw
            return None
        if isinstance(value, (list, tuple)):
            return next((flaw for i, item in enumerate(value) if (flaw := _flaw(item, f"{path}[{i}]"))), None)
    except RecursionError:
        return "is nested too deeply, or holds itself"
    return f"{at}a {type(value).__name__} has no JSON form"
