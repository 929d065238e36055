"""What can go wrong, under one root: every error carries its facts as attributes."""

from __future__ import annotations

import re
from reprlib import Repr
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from messagedb_sa.message import Message

__all__ = [
    "CannotSettle",
    "ConditionNotActivated",
    "DuplicateMessageId",
    "GroupChanged",
    "HandlerFailed",
    "InvalidArgument",
    "MessageDBError",
    "MessageNotDecodable",
    "PositionConflict",
    "PostgresNotFound",
    "PostgresNotStarted",
    "SlotsLost",
    "StoreNotInstalled",
    "StreamWithoutId",
    "WrongExpectedVersion",
]


class MessageDBError(Exception):
    """The root of every error that this package raises by itself.

    What the driver reports and this package has no name for (a lost connection, a missing privilege) stays the
    SQLAlchemy error that it is.
    """


class InvalidArgument(MessageDBError, ValueError):
    """An argument that no Message DB store could take. Raised before anything is sent.

    ``argument`` is the name of the parameter, ``value`` what was passed, ``reason`` what is wrong with it.
    """

    def __init__(self, argument: str, value: object, reason: str) -> None:
        super().__init__(argument, value, reason)
        self.argument = argument
        self.value = value
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.argument}={_shown(self.value)}: {self.reason}"


class WrongExpectedVersion(MessageDBError):
    """The stream was not at the version that the writer expected; nothing was written.

    Versions are the position of a stream's last message, -1 for a stream without messages. ``actual_version`` is None
    where the transaction's snapshot is too old to see it: the caller's own transaction, under REPEATABLE READ or
    SERIALIZABLE.
    """

    def __init__(self, stream_name: str, expected_version: int, actual_version: int | None) -> None:
        super().__init__(stream_name, expected_version, actual_version)
        self.stream_name = stream_name
        self.expected_version = expected_version
        self.actual_version = actual_version

    def __str__(self) -> str:
        actual = "another version" if self.actual_version is None else f"version {self.actual_version}"
        return f"stream {self.stream_name!r} is at {actual}, expected {self.expected_version}"


class DuplicateMessageId(MessageDBError):
    """A message with this ``id`` is in the store already; nothing was written.

    ``id`` is None when PostgreSQL does not say which message of a batch it was.
    """

    def __init__(self, id: str | None) -> None:
        super().__init__(id)
        self.id = id

    def __str__(self) -> str:
        return f"message id {self.id or '(one of the batch)'} is in the store already"


class StoreNotInstalled(MessageDBError):
    """The database holds no Message DB, or one too old for this package. ``reason`` is PostgreSQL's own text."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"no Message DB 1.3 in this database ({self.reason}). Install or update it with "
            "messagedb_sa.install.upgrade(engine), or with Alembic: alembic -n messagedb upgrade head"
        )


class ConditionNotActivated(MessageDBError):
    """A ``condition`` was passed to a session whose setting ``message_store.sql_condition`` is not on."""

    def __str__(self) -> str:
        return (
            "SQL conditions are refused unless the session's setting message_store.sql_condition is on; for an "
            'engine: create_engine(url, connect_args={"options": "-c message_store.sql_condition=on"})'
        )


class CannotSettle(MessageDBError):
    """``$all`` lacks the global position ``position``, and nobody can tell here whether its message is still to come.

    ``reason`` is why: the server is a standby, or the transaction is REPEATABLE READ or SERIALIZABLE.
    """

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(position, reason)
        self.position = position
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"the message at global position {self.position} of $all may be one that is still being written: "
            f"{self.reason}. Read in a READ COMMITTED transaction on the primary server; or plainly, with "
            "allow_holes=True, which passes over such messages"
        )


class HandlerFailed(MessageDBError):
    """A consumer's handler raised; the consumer stopped there. Raised from the handler's error.

    ``message`` is the one that it was given. What was before it is handled and recorded; it is the next to be handled.
    """

    def __init__(self, message: Message) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        m = self.message
        where = (
            f"the handler of {m.type} failed at global position {m.global_position}: "
            f"stream {m.stream_name!r}, position {m.position}"
        )
        cause = self.__cause__
        return where if cause is None else f"{where}: {type(cause).__name__}: {cause}"


class PositionConflict(MessageDBError):
    """Another consumer with the same identifier has recorded a position meanwhile: two of them run at the same time.

    ``stream_name`` is the stream that holds their position, the versions are its own. Where several are wanted, use
    ``slots``: slots=1 has one at work and the others ready to take its place.
    """

    def __init__(self, stream_name: str, expected_version: int, actual_version: int | None) -> None:
        super().__init__(stream_name, expected_version, actual_version)
        self.stream_name = stream_name
        self.expected_version = expected_version
        self.actual_version = actual_version

    def __str__(self) -> str:
        return (
            f"another consumer with this identifier recorded a position in {self.stream_name!r} (its version is "
            f"{self.actual_version}, not {self.expected_version}); to run several, pass slots="
        )


class StreamWithoutId(MessageDBError):
    """A consumer group met a message of a stream without an id, which Message DB gives to none of its members.

    ``message`` is the one. It was not handled, and is the next to be.
    """

    def __init__(self, message: Message) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return (
            f"stream {self.message.stream_name!r} has no id, so that no member of a consumer group reads it (global "
            f"position {self.message.global_position}): pass streams_without_id=0 to have member or slot 0 handle "
            'such messages, or "skip" to leave them out'
        )


class GroupChanged(MessageDBError):
    """A consumer has no position, but there are some of its identifier by which it is shared among another number.

    To begin at the start would handle again what was handled. ``stream_names`` are those of these positions. Before
    ``position`` there is none that they have not handled; from there on some of them may have.
    """

    def __init__(self, stream_names: list[str], position: int) -> None:
        super().__init__(stream_names, position)
        self.stream_names = stream_names
        self.position = position

    def __str__(self) -> str:
        return (
            "this consumer has no position yet, but by another number of slots or members, or none, it has: "
            f"{', '.join(self.stream_names)}. Pass position={self.position} to go on from the first message that one "
            "of these has not handled, or position=0 to begin at the start"
        )


class SlotsLost(MessageDBError):
    """The locks on a consumer's slots are not those that its session took.

    A session of its own is needed: a connection pooler in transaction mode lends one session to many.
    """

    def __init__(self, slots: list[int]) -> None:
        super().__init__(slots)
        self.slots = slots

    def __str__(self) -> str:
        return (
            f"the session does not hold the locks of slots {self.slots}: slots need a session of their own, which a "
            "connection pooler in transaction mode does not give"
        )


class MessageNotDecodable(MessageDBError):
    """A message that was read is of a registered type, and can't be made an instance of its class.

    Raised from what the class, its library or an upcaster raised, if one did. None of the read's messages is returned:
    those before and after this one can be read by themselves, or all by a store without the types.
    """

    def __init__(self, stream_name: str, position: int, global_position: int, type: str, reason: str) -> None:
        super().__init__(stream_name, position, global_position, type, reason)
        self.stream_name = stream_name
        self.position = position
        self.global_position = global_position
        self.type = type
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"message {self.position} of stream {self.stream_name!r} (global position {self.global_position}) is no "
            f"{self.type!r}: {self.reason}"
        )


class PostgresNotFound(MessageDBError):
    """No PostgreSQL server programs were found for a throwaway server; the text says where was looked."""


class PostgresNotStarted(MessageDBError):
    """A throwaway PostgreSQL did not start; the text holds what it printed."""


_repr = Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 100
_repr.maxlevel = 4


def _shown(value: object) -> str:
    # Short, whatever the size of the value; and an error about a value must not fail on it.
    try:
        # A URL may be among them.
        return re.sub(r"(://[^:@/]*):[^@/]*@", r"\1:***@", _repr.repr(value))
    except Exception:  # noqa: BLE001
        return object.__repr__(value)
