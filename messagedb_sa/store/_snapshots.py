"""Snapshots of entities, as Eventide's entity-snapshot-postgres writes and reads them.

https://github.com/eventide-project/entity-snapshot-postgres
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from messagedb_sa import stream_name as names
from messagedb_sa._class_codecs import Conversion
from messagedb_sa._message_types import SCHEMA_VERSION
from messagedb_sa._state_cache import Known
from messagedb_sa._state_codecs import decoded_state
from messagedb_sa.errors import InvalidArgument
from messagedb_sa.message import Message
from messagedb_sa.store._consumer_streams import POSITIONS, RECORDED
from messagedb_sa.store._json_codec import unstorable_part

ENTITY_VERSION = "entityVersion"
"""In a snapshot's data: the position of the last event in it."""

SNAPSHOTS = POSITIONS.replace("position", "snapshot")
"""A regular expression, of Python and of PostgreSQL, for the categories of snapshots."""

_ENTITY_DATA = "entityData"
_TIME = "time"
_LAST_MESSAGE_ID = "lastMessageId"
_KEYS_AS_WRITTEN = "keysAsWritten"


def snapshot_stream(stream_name: str) -> str:
    """The stream of the snapshots of the entity with this stream: ``account:snapshot-123``."""
    category, _, id = stream_name.partition("-")
    return f"{category}{'+' if ':' in category else ':'}snapshot-{id}"


def is_snapshot(message: Message) -> bool:
    return (
        message.type == RECORDED
        and re.search(SNAPSHOTS, names.category(message.stream_name), flags=re.DOTALL) is not None
    )


def encoded(
    by: Conversion, cls: type, version: int, known: Known[Any], last: Message, as_read: Callable[[str, Any], Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Data and metadata of a snapshot. InvalidArgument if the state could not be read as it is.

    Eventide's keys are in camelCase, and it reads them as snake_case. If the state has keys that would then come back
    as others, such as currencies, all are written as they are, and the metadata says so. Eventide reads snake_case
    unchanged.
    """
    state = known.state
    if type(state) is not cls:
        raise InvalidArgument("state", state, f"must be a {cls.__name__}, as begin makes it")
    data = as_read("state", by.encode(state))
    if reason := unstorable_part(data):
        raise InvalidArgument("state", state, reason)
    if change := by.change(state, by.decode(as_read("state", data))):
        raise InvalidArgument("state", state, f"must be read as it was written, but {change}")
    metadata: dict[str, Any] = {_LAST_MESSAGE_ID: last.id}
    if version != 1:
        metadata[SCHEMA_VERSION] = str(version)
    in_camel_case = _recased(data, _camel_case)
    if _recased(in_camel_case, _snake_case) == data:
        data = in_camel_case
    else:
        metadata[_KEYS_AS_WRITTEN] = True
    # Milliseconds, as Ruby's Time#iso8601(3) writes them.
    time = last.time.strftime("%Y-%m-%dT%H:%M:%S.") + f"{last.time.microsecond // 1000:03d}Z"
    return {_ENTITY_DATA: data, ENTITY_VERSION: known.version, _TIME: time}, metadata


def decoded(by: Conversion, message: Message) -> Known[Any]:
    """What a snapshot holds. Raises ValueError, or what the state's class raises, if it does not fit the class."""
    data = message.data
    version = data.get(ENTITY_VERSION) if isinstance(data, dict) else None
    if not (type(version) is int and version >= 0 and _ENTITY_DATA in data):
        raise ValueError(f"its data must have {_ENTITY_DATA}, and a position as {ENTITY_VERSION}")
    metadata = message.metadata if isinstance(message.metadata, dict) else {}
    last_id = metadata.get(_LAST_MESSAGE_ID)
    as_written = data[_ENTITY_DATA]
    if metadata.get(_KEYS_AS_WRITTEN) is True:
        state = decoded_state(by, as_written)
    else:
        in_snake_case = _recased(as_written, _snake_case)
        try:
            state = decoded_state(by, in_snake_case)
        except Exception:
            # A class that has Ruby's names, for instance by aliases.
            if in_snake_case == as_written:
                raise
            state = decoded_state(by, as_written)
    return Known(state, version, last_id if isinstance(last_id, str) else None, None, version)


def _recased(value: Any, recase: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        return {recase(key): _recased(item, recase) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_recased(item, recase) for item in value]
    return value


# As Eventide's casing does.


def _camel_case(key: str) -> str:
    return key[:1].lower() + re.sub(r"(^|_)(.)", lambda found: found[2].upper(), key)[1:]


def _snake_case(key: str) -> str:
    key = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", key.replace("::", "/"))
    return re.sub(r"([a-z\d])([A-Z])", r"\1_\2", key).replace("-", "_").lower()
