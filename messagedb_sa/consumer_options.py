"""What a consumer can be told, and the checks of it: each returns what it means, or raises InvalidArgument."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict

from messagedb_sa import arguments
from messagedb_sa import stream_name as names
from messagedb_sa.errors import InvalidArgument
from messagedb_sa.message_types import MessageTypes

if TYPE_CHECKING:
    from tenacity import Retrying

Handler: TypeAlias = "Callable[..., Any]"
Handlers: TypeAlias = "Handler | Mapping[Any, Handler]"


class ConsumerOptions(TypedDict, total=False):
    """What a consumer can be told.

    ``group_member``, from 0, of ``group_size``: it reads that member's streams, as in Message DB, and has a position
    for itself. None: no group.

    ``slots``, 1 to 32767: the number of parts in which processes with the same identifier share the category among
    themselves, each part with one process at a time. As many processes can be at work as there are slots; others stand
    by. The number stays: positions are kept by slot. With another one, as with another group_size, it is GroupChanged
    that is raised, unless ``position`` says where to begin. None: not shared.

    ``streams_without_id``: the member or slot that handles the messages of streams without an id, which Message DB
    gives to no member; "skip" leaves them out; "refuse", the default, raises StreamWithoutId at the first.

    ``retry``: a tenacity.Retrying (extra ``retry``) that says whether, when and how often a message is tried again
    whose handler raised. None: never.

    ``on_failure``: what happens then. "stop", the default, raises HandlerFailed. "park" writes the message to the
    stream ``account:dead-identifier``, type and data as they are, with the error and where it came from in the
    metadata, and goes on.

    ``position``: where to begin, inclusive, where no position is recorded; "end" is after the last message that there
    is. It is recorded at once, so that it counts for good. None: at the start.

    ``correlation``: a category. Only messages whose metadata's correlationStreamName is in it are read.

    ``record_every``, from 1, and ``record_seconds``: after so many messages, or so long after the last time, the
    position is recorded, whichever comes first. By default 1000 and 5. Of a transactional consumer these messages are
    one transaction, of up to ``batch_size``; by default each has its own. Where one of several fails, all are taken
    back, and then handled one by one.

    ``batch_size``, from 1: how many messages are read at a time. By default 1000.

    ``poll_seconds``: the wait after an empty read, by default 0.1. Where the store notifies (see install.upgrade), it
    is woken within milliseconds, and looks only every 5 seconds.
    """

    group_member: int | None
    group_size: int | None
    slots: int | None
    streams_without_id: int | Literal["refuse", "skip"]
    retry: Retrying | None
    on_failure: Literal["stop", "park"]
    position: int | Literal["end"] | None
    correlation: str | None
    record_every: int | None
    record_seconds: float
    batch_size: int
    poll_seconds: float


def group(member: object, size: object, slots: object) -> tuple[int | None, int | None]:
    if slots is None:
        return arguments.consumer_group(member, size, ("group_member", "group_size"))
    for argument, value in (("group_member", member), ("group_size", size)):
        if value is not None:
            raise InvalidArgument(argument, value, "names members, where slots are shared without")
    return None, arguments.integer("slots", slots, minimum=1, maximum=names.MAX_GROUP_SIZE)


def member_without_id(value: object, size: int | None) -> int | str | None:
    if size is None:
        if value != "refuse":
            raise InvalidArgument("streams_without_id", value, "is for consumer groups")
        return None
    if value in ("refuse", "skip"):
        return str(value)
    return arguments.integer("streams_without_id", value, minimum=0, maximum=size - 1)


def finder(handlers: object, types: MessageTypes) -> Callable[[str], Handler | None]:
    if callable(handlers):
        return lambda _: handlers
    if not isinstance(handlers, Mapping) or not handlers:
        raise InvalidArgument("handlers", handlers, "is no function, and no mapping of message types to functions")
    by_type: dict[str, Handler] = {}
    for key, handler in handlers.items():
        message_type = types.name_of(key) if isinstance(key, type) else arguments.text("handlers", key)
        if message_type in by_type:
            raise InvalidArgument("handlers", key, f"has a handler already, by the name {message_type!r}")
        if not callable(handler):
            raise InvalidArgument(f"handlers[{message_type!r}]", handler, "can't be called")
        by_type[message_type] = handler
    return by_type.get


def retrying(retry: Any) -> Any:
    if retry is None:
        return None
    # Whoever has one has imported it.
    tenacity = sys.modules.get("tenacity")
    if tenacity is None or not isinstance(retry, tenacity.Retrying):
        # An AsyncRetrying would return at once, as if all was well.
        raise InvalidArgument("retry", retry, "is no tenacity.Retrying, which is for asynchronous consumers too")
    return retry


def session_factory(transactional: object, maker: type, session: type) -> Any:
    """What makes the sessions for handlers; None where they get connections, or nothing."""
    if isinstance(transactional, bool):
        return None
    if getattr(transactional, "kw", {}).get("binds"):
        raise InvalidArgument(
            "transactional", transactional, "has binds: what goes elsewhere is not in the transaction"
        )
    if isinstance(transactional, maker) or (isinstance(transactional, type) and issubclass(transactional, session)):
        return transactional
    raise InvalidArgument("transactional", transactional, f"is no bool, {maker.__name__} or {session.__name__} class")
