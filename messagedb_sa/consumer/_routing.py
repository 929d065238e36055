"""Which handler gets a message, and which messages a consumer skips."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

from messagedb_sa import _arguments as arguments
from messagedb_sa import stream_name as names
from messagedb_sa.consumer._handlers import check_handler, is_coroutine_function
from messagedb_sa.consumer._options import Settings
from messagedb_sa.errors import InvalidArgument, StreamWithoutId
from messagedb_sa.message import Message
from messagedb_sa.message_types import MessageTypes
from messagedb_sa.store._consumer_streams import holds_positions, is_dead_letter, is_position
from messagedb_sa.store._operations import ALL
from messagedb_sa.store._snapshots import is_snapshot

Handler: TypeAlias = "Callable[..., Any]"
AnyHandlers: TypeAlias = "Handler | Mapping[Any, Handler]"


class Router:
    """``find`` returns the handler of a message type, None if there is none. ``skips`` tells whether a message is not
    for handlers, whatever its type; None if that need not be asked. ``needs_greenlet``: an AsyncConsumer must call
    them in SQLAlchemy's greenlet."""

    def __init__(self, settings: Settings, handlers: object, types: MessageTypes | None, *, awaited: bool) -> None:
        check = partial(check_handler, takes=2 if settings.transactional else 1, awaited=awaited)
        self.find = _finder(handlers, types, check)
        # There, a plain function may use the engine's synchronous side.
        every = handlers.values() if isinstance(handlers, Mapping) and not callable(handlers) else [handlers]
        self.needs_greenlet = awaited and not all(map(is_coroutine_function, every))
        self.skips: Callable[[Message], bool] | None = None
        if settings.category == ALL:
            self.skips = _is_not_an_event
        elif holds_positions(settings.category):
            refuses = settings.streams_without_id == "refuse"
            self.skips = _is_position_or_refused if refuses else is_position
        elif settings.streams_without_id == "refuse":
            self.skips = _refuse_stream_without_id

    def handler_of(self, message: Message) -> Handler | None:
        if self.skips is not None and self.skips(message):
            return None
        return self.find(message.type)


def _is_not_an_event(message: Message) -> bool:
    # Otherwise each recorded position would be a message to handle, whose position is recorded, without end. The same
    # holds for parked messages, and for snapshots if handlers decide on entities.
    return is_position(message) or is_dead_letter(message) or is_snapshot(message)


def _is_position_or_refused(message: Message) -> bool:
    return is_position(message) or _refuse_stream_without_id(message)


def _refuse_stream_without_id(message: Message) -> bool:
    if names.is_category(message.stream_name):
        raise StreamWithoutId(message)
    return False


def _finder(
    handlers: object, types: MessageTypes | None, check: Callable[[str, Any], None]
) -> Callable[[str], Handler | None]:
    if callable(handlers):
        check("handlers", handlers)
        return lambda _: handlers
    if not isinstance(handlers, Mapping):
        reason = "must be a function, or map message types to functions; pass a function without calling it"
        raise InvalidArgument("handlers", handlers, reason)
    if not handlers:
        reason = "must not be empty: map a message type to a function, or pass one function for all messages"
        raise InvalidArgument("handlers", handlers, reason)
    known = MessageTypes() if types is None else types
    by_type: dict[str, Handler] = {}
    for key, handler in handlers.items():
        message_type = known.name_of(key) if isinstance(key, type) else arguments.text("handlers", key)
        if message_type in by_type:
            raise InvalidArgument("handlers", key, f"must not be given twice; {message_type!r} has a handler already")
        if not callable(handler):
            reason = "must be a function; pass it without calling it"
            raise InvalidArgument(f"handlers[{message_type!r}]", handler, reason)
        check(f"handlers[{message_type!r}]", handler)
        by_type[message_type] = handler
    return by_type.get
