"""Message DB, the event store in PostgreSQL, for SQLAlchemy."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from messagedb_sa.async_consumer import AsyncConsumer
    from messagedb_sa.async_store import AsyncStore
    from messagedb_sa.consumer import Consumer
    from messagedb_sa.consumer_options import ConsumerOptions
    from messagedb_sa.errors import (
        CannotSettle,
        ConditionNotActivated,
        DuplicateMessageId,
        GroupChanged,
        HandlerFailed,
        InvalidArgument,
        MessageDBError,
        MessageNotDecodable,
        PositionConflict,
        SlotsLost,
        StoreNotInstalled,
        StreamWithoutId,
        WrongExpectedVersion,
    )
    from messagedb_sa.message import Message, NewMessage, StreamWrite
    from messagedb_sa.message_types import MessageTypes
    from messagedb_sa.monitoring import ConsumerStatus
    from messagedb_sa.store import NO_STREAM, Store
    from messagedb_sa.tracing import Tracing
else:
    # Lazy: pytest imports this package at every start, for the plugin in it, and that must not cost SQLAlchemy.
    from importlib import import_module

    _HOMES = {
        "AsyncConsumer": "async_consumer",
        "AsyncStore": "async_store",
        "CannotSettle": "errors",
        "ConditionNotActivated": "errors",
        "Consumer": "consumer",
        "ConsumerOptions": "consumer_options",
        "ConsumerStatus": "monitoring",
        "DuplicateMessageId": "errors",
        "GroupChanged": "errors",
        "HandlerFailed": "errors",
        "InvalidArgument": "errors",
        "Message": "message",
        "MessageDBError": "errors",
        "MessageNotDecodable": "errors",
        "MessageTypes": "message_types",
        "NO_STREAM": "store",
        "NewMessage": "message",
        "PositionConflict": "errors",
        "SlotsLost": "errors",
        "Store": "store",
        "StoreNotInstalled": "errors",
        "StreamWithoutId": "errors",
        "StreamWrite": "message",
        "Tracing": "tracing",
        "WrongExpectedVersion": "errors",
    }

    def __getattr__(name):
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

    def __dir__():
        return sorted({*globals(), *_HOMES})


__all__ = [
    "NO_STREAM",
    "AsyncConsumer",
    "AsyncStore",
    "CannotSettle",
    "ConditionNotActivated",
    "Consumer",
    "ConsumerOptions",
    "ConsumerStatus",
    "DuplicateMessageId",
    "GroupChanged",
    "HandlerFailed",
    "InvalidArgument",
    "Message",
    "MessageDBError",
    "MessageNotDecodable",
    "MessageTypes",
    "NewMessage",
    "PositionConflict",
    "SlotsLost",
    "Store",
    "StoreNotInstalled",
    "StreamWithoutId",
    "StreamWrite",
    "Tracing",
    "WrongExpectedVersion",
]
