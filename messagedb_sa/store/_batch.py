"""The messages of write_batch and write_streams: checked, and encoded as arrays."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from messagedb_sa import _arguments as arguments
from messagedb_sa._ids import new_ids
from messagedb_sa.errors import InvalidArgument
from messagedb_sa.message import Message, MessageInput, NewMessage
from messagedb_sa.store._json_codec import JSONCodec

T = TypeVar("T")


class Batch(NamedTuple):
    """``data`` and ``metadata`` are JSON arrays, with null for None."""

    ids: list[str]
    types: list[str]
    data: str
    metadata: str


NO_MESSAGES = Batch([], [], "[]", "[]")


def encoded_batch(
    argument: str,
    messages: Iterable[MessageInput],
    stream_name: str,
    *,
    may_be_empty: bool,
    new_message: Callable[[str, object], NewMessage],
    registered: Container[str],
    check_data: Callable[[str, str, Any, Any], None],
    checked_metadata: Callable[[str, Any, str], Any],
    with_context: Callable[[list[Any]], list[Any]],
    codec: JSONCodec,
    complete: Callable[[int, Any, Any], tuple[Any, Any]] | None = None,
) -> Batch:
    """``new_message`` makes a message of an instance, and names the argument in its errors; ``check_data`` checks the
    data of a message whose type is ``registered``; ``checked_metadata`` checks metadata for the stream;
    ``with_context`` adds the trace context to the metadata; ``complete`` gets the number, the metadata and the id of
    each message, and returns both as to write."""
    ids: list[str | None] = []
    types: list[str] = []
    data: list[Any] = []
    metadata: list[Any] = []
    known: set[str] = set()
    item: Any
    for number, item in enumerate(iterable(argument, messages)):
        id = its_metadata = None
        is_instance = False
        if isinstance(item, NewMessage):
            type_, its_data, its_metadata, id = item
        elif isinstance(item, (tuple, list)) and len(item) == 2:
            type_, its_data = item
        elif isinstance(item, (tuple, list)) and len(item) == 3:
            type_, its_data, its_metadata = item
        elif isinstance(item, (tuple, list, str)) or item.__class__ is dict:
            raise _unfit_message(f"{argument}[{number}]", item)
        else:
            is_instance = True
            type_, its_data, its_metadata, _ = new_message(f"{argument}[{number}]", item)
        if complete is not None:
            its_metadata, id = complete(number, its_metadata, id)
        if type_.__class__ is not str or type_ not in known:
            type_ = arguments.text(f"{argument}[{number}].type", type_)
            known.add(type_)
        ids.append(None if id is None else arguments.message_id(f"{argument}[{number}].id", id))
        types.append(type_)
        data.append(its_data)
        # Most metadata needs no more than this: to name the argument takes longer.
        if its_metadata is not None and not arguments.is_plain_metadata(its_metadata, stream_name):
            its_metadata = checked_metadata(f"{argument}[{number}].metadata", its_metadata, stream_name)
        if type_ in registered and not is_instance:
            check_data(f"{argument}[{number}].data", type_, its_data, its_metadata)
        metadata.append(its_metadata)
    if not ids:
        if may_be_empty:
            return NO_MESSAGES
        raise InvalidArgument(argument, messages, "must not be empty: pass at least one message")
    metadata = with_context(metadata)
    fresh = iter(new_ids(ids.count(None)))
    return Batch(
        [next(fresh) if id is None else id for id in ids],
        types,
        codec.encode_all(data, lambda i: f"{argument}[{i}].data"),
        codec.encode_all(metadata, lambda i: f"{argument}[{i}].metadata"),
    )


def array_of_texts(texts: Sequence[str]) -> str:
    """PostgreSQL's array literal, as one value: drivers would quote each element."""
    quoted = {text: '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"' for text in set(texts)}
    return f"{{{','.join([quoted[text] for text in texts])}}}"


def texts_of_array(array: str) -> list[str]:
    """The texts of which ``array_of_texts`` made this."""
    quoted = re.findall(r'"((?:[^"\\]|\\.)*)"', array, flags=re.DOTALL)
    return [re.sub(r"\\(.)", r"\1", each, flags=re.DOTALL) for each in quoted]


def array_of_ids(ids: Sequence[str]) -> str:
    # UUIDs need no quotes.
    return f"{{{','.join(ids)}}}"


def iterable(argument: str, value: Iterable[T]) -> Iterable[T]:
    # One message or one write is a tuple too, whose first item is a name.
    is_one = isinstance(value, tuple) and len(value) > 0 and isinstance(value[0], str)
    if is_one or isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise InvalidArgument(argument, value, "must be a list, or something else to iterate over, also for one item")
    if isinstance(value, Mapping):
        raise InvalidArgument(argument, value, "must be a list, not a dict; for (key, value) pairs, pass its items()")
    return value


def _unfit_message(argument: str, item: object) -> InvalidArgument:
    reason = "must be a NewMessage, (type, data), (type, data, metadata) or an instance of a registered class"
    if isinstance(item, Message):
        reason += "; to write what you read, pass NewMessage(message.type, message.data)"
    elif isinstance(item, dict):
        reason += "; a dict with such keys can be passed as NewMessage(**message)"
    return InvalidArgument(argument, item, reason)
