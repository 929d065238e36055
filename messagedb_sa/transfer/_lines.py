"""A message as a line of JSON, as exports write it."""

from __future__ import annotations

from json import JSONEncoder

from messagedb_sa.transfer._raw import RawMessage
from messagedb_sa.transfer._statements import JSON_NULL

_quoted = JSONEncoder(ensure_ascii=False).encode


def line_of(message: RawMessage) -> str:
    """The fields of ``Message.as_json_dict``, in their order; data and metadata are PostgreSQL's own text.

    SQL's NULL is null. Fields that are JSON's null are named in a ninth field, ``json_null``.
    """
    id, stream_name, type_, position, global_position, data, metadata, time = message
    nulls = ""
    if data == "null" or metadata == "null":
        names = [name for name, value in (("data", data), ("metadata", metadata)) if value == "null"]
        nulls = f', "{JSON_NULL}": {_quoted(names)}'
    return (
        f'{{"id": "{id}", "stream_name": {_quoted(stream_name)}, "type": {_quoted(type_)}, "position": {position}, '
        f'"global_position": {global_position}, "data": {"null" if data is None else data}, '
        f'"metadata": {"null" if metadata is None else metadata}, "time": "{time}"{nulls}}}\n'
    )
