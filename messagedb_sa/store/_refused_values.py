"""Which argument holds the text or the number that PostgreSQL refused. Asked only after an error."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from math import isfinite
from typing import Any

from messagedb_sa._drivers.errors import ServerError
from messagedb_sa.errors import InvalidArgument
from messagedb_sa.store._batch import texts_of_array
from messagedb_sa.store._json_codec import unstorable_part

# SQLSTATEs. For a JSON escape that an encoding does not have, older servers report 0A000: no conversion.
_BAD_TEXT = frozenset({"22P02", "22P05"})
_OUT_OF_RANGE = "22003"
_NOT_ENCODABLE = frozenset({"22P05", "22021", "0A000"})
_STATES = {*_BAD_TEXT, _OUT_OF_RANGE, *_NOT_ENCODABLE}

# PostgreSQL's encodings with a name that Python does not know.
_PYTHON_NAMES = {"SQL_ASCII": "ascii", "KOI8R": "koi8-r", "KOI8U": "koi8-u"}

_ARGUMENTS = {"category": "category_name", "type": "message_type"}


def refused_argument(
    parameters: Mapping[str, Any], error: ServerError, setting: Callable[[str], str | None]
) -> InvalidArgument | None:
    """None if the error has another cause than a value among the parameters."""
    # Of combined writes, which have lists, each is made again by itself and then has an error of its own.
    if error.state not in _STATES or isinstance(parameters.get("data"), list):
        return None
    server_encoding = setting("server_encoding")
    # What an engine's json_serializer returned may be nested deeper than Python can walk.
    with suppress(RecursionError):
        for argument, value, is_document in _given(parameters):
            if reason := _reason(error, value, is_document, server_encoding):
                return InvalidArgument(argument, value.text if isinstance(value, _NotJSON) else value, reason)
    return None


def _reason(error: ServerError, value: Any, is_document: bool, server_encoding: str | None) -> str | None:
    if error.state in _NOT_ENCODABLE and server_encoding:
        characters = json.dumps(value, ensure_ascii=False, default=str)
        if (character := _first_without(server_encoding, characters)) is not None:
            return f"must not contain {character!r}: the database's encoding, {server_encoding}, does not have it"
    if error.state in _BAD_TEXT and is_document and unstorable_part(value):
        return f"must become JSON, but what the engine's json_serializer returned is refused: {error.message}"
    if error.state == _OUT_OF_RANGE and is_document and unstorable_part(value):
        return "must not contain a number of more than 131072 digits before the decimal point"
    return None


class _NotJSON:
    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        return self.text


def _parsed(text: str) -> Any:
    """What a json_serializer returned. A number that is too large for a float becomes a Decimal."""
    try:
        return json.loads(text, parse_int=lambda digits: int(Decimal(digits)), parse_float=_number)
    except ValueError:
        return _NotJSON(text)


def _number(digits: str) -> float | Decimal:
    number = float(digits)
    return number if isfinite(number) else Decimal(digits)


def _given(parameters: Mapping[str, Any]) -> Iterator[tuple[str, Any, bool]]:
    """The texts that were sent: the name of the argument, the value, and whether it was sent as JSON."""
    types = texts_of_array(parameters["types"]) if "types" in parameters else []
    batches = list(map(texts_of_array, types)) if "streams" in parameters else [types]
    messages = _messages(parameters.get("streams", ()), batches)
    types = [each for batch in batches for each in batch]
    yield from ((f"{message}.type", type_, False) for message, type_ in zip(messages, types, strict=True))
    for key, sent in parameters.items():
        if key in ("data", "metadata") and "types" in parameters:
            items = _parsed(sent)
            if "streams" in parameters:
                items = [item for of_stream in items for item in of_stream]
            yield from ((f"{message}.{key}", item, True) for message, item in zip(messages, items, strict=True))
        elif key in ("data", "metadata") and sent is not None:
            yield key, _parsed(sent), True
        elif key == "streams":
            yield from ((f"writes[{name!r}].stream_name", name, False) for name in sent)
        elif key not in ("ids", "types") and isinstance(sent, str):
            yield _ARGUMENTS.get(key, key), sent, False


def _messages(streams: Sequence[str], batches: Sequence[Sequence[str]]) -> list[str]:
    """How errors name the messages of these batches, in the order in which they are sent."""
    # Other streams are only checked or locked.
    written = sum(map(bool, batches))
    batch_names = [f"writes[{name!r}].messages" for name in streams] if written > 1 else ["messages"] * len(batches)
    return [f"{name}[{i}]" for name, batch in zip(batch_names, batches, strict=True) for i in range(len(batch))]


def _first_without(server_encoding: str, text: str) -> str | None:
    """The first character of the text that PostgreSQL's encoding does not have. None if it has them all."""
    try:
        text.encode(_PYTHON_NAMES.get(server_encoding) or server_encoding.replace("WIN", "cp"))
    except UnicodeEncodeError as error:
        return text[error.start]
    except LookupError:
        # Python does not know the encoding. PostgreSQL's encodings all have ASCII.
        return next((character for character in text if not character.isascii()), None)
    return None
