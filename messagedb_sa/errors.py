"""The errors that this package raises: one tree, with the facts as attributes. ::

    MessageDBError
        InvalidArgument             also a ValueError
        WrongExpectedVersion
        AppendConditionFailed
        DuplicateMessageId
        MessageNotDecodable
        ConditionNotActivated
        CannotSettle
        NotCaughtUp                 also a TimeoutError
        StoreNotInstalled
        MissingPrivilege
        install.MigrationRefused    also an Alembic CommandError
        ConsumerError
            HandlerFailed
            PositionConflict
            StreamWithoutId
            GroupChanged
            SlotsLost
        PostgresNotFound
        PostgresNotStarted

An error that comes from the database or the driver is raised ``from`` the SQLAlchemy error, so that ``__cause__`` has
the original.
"""

from __future__ import annotations

from reprlib import Repr
from typing import TYPE_CHECKING

from messagedb_sa._drivers.urls import without_passwords
from messagedb_sa._error_texts import text_of
from messagedb_sa._privileges import CONSUME, READ, WRITE, grants, quoted

if TYPE_CHECKING:
    from messagedb_sa.message import Message

__all__ = [
    "AppendConditionFailed",
    "CannotSettle",
    "ConditionNotActivated",
    "ConsumerError",
    "DuplicateMessageId",
    "GroupChanged",
    "HandlerFailed",
    "InvalidArgument",
    "MessageDBError",
    "MessageNotDecodable",
    "MissingPrivilege",
    "NotCaughtUp",
    "PositionConflict",
    "PostgresNotFound",
    "PostgresNotStarted",
    "SlotsLost",
    "StoreNotInstalled",
    "StreamWithoutId",
    "WrongExpectedVersion",
]


class MessageDBError(Exception):
    """The base of all errors of this package.

    Other errors of the database or the driver, such as a lost connection, are raised as SQLAlchemy's own errors.
    """


class InvalidArgument(MessageDBError, ValueError):
    """An argument that no store accepts, or that this database does not accept. Nothing was written.

    It is raised before anything is sent, except for what only the server can know: a character that the database's
    encoding does not have, what the engine's own json_serializer returns, and more categories than it has locks for.

    ``argument`` is the name of the parameter, ``value`` is what you passed, and ``reason`` says what must hold.
    """

    def __init__(self, argument: str, value: object, reason: str) -> None:
        super().__init__(argument, value, reason)
        self.argument = argument
        self.value = value
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.argument}={_short_repr(self.value)}: {self.reason}"


class WrongExpectedVersion(MessageDBError):
    """The stream was not at the version that the writer expected. Nothing was written.

    A version is the position of the stream's last message, or -1 if the stream has no messages. ``actual_version`` is
    None if your transaction cannot see it: under REPEATABLE READ or SERIALIZABLE its snapshot may be too old. Do not
    pass None on as ``expected_version``, which would check nothing.
    """

    def __init__(self, stream_name: str, expected_version: int, actual_version: int | None) -> None:
        super().__init__(stream_name, expected_version, actual_version)
        self.stream_name = stream_name
        self.expected_version = expected_version
        self.actual_version = actual_version

    def __str__(self) -> str:
        actual = "another version" if self.actual_version is None else f"version {self.actual_version}"
        return f"stream {self.stream_name!r} is at {actual}, expected {self.expected_version}"


class AppendConditionFailed(MessageDBError):
    """A message that matches the write's AppendCondition came after what the decision was made on. Nothing was written.

    ``stream_name``, ``type`` and ``global_position`` are those of this message, the first of its kind; ``after`` is the
    global position after which none of its category was to match. Read again with ``read_query``, and decide again.
    """

    def __init__(self, after: int, stream_name: str, type: str, global_position: int) -> None:
        super().__init__(after, stream_name, type, global_position)
        self.after = after
        self.stream_name = stream_name
        self.type = type
        self.global_position = global_position

    def __str__(self) -> str:
        return (
            f"a message of type {self.type!r} matches the condition: it came to stream {self.stream_name!r} at global "
            f"position {self.global_position}, and none was to come after {self.after}"
        )


class DuplicateMessageId(MessageDBError):
    """The store already has a message with this ``id``. Nothing was written.

    ``id`` is None if PostgreSQL does not say which message of a batch it was.
    """

    def __init__(self, id: str | None) -> None:
        super().__init__(id)
        self.id = id

    def __str__(self) -> str:
        duplicate = "one of the batch's message ids" if self.id is None else f"message id {self.id}"
        return f"{duplicate} is already in the store"


class StoreNotInstalled(MessageDBError):
    """The database has no Message DB, or one that is too old for this package.

    ``reason`` is PostgreSQL's own error text.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"this database has no Message DB 1.3 ({self.reason}). Install or update it with "
            "messagedb_sa.install.upgrade(engine), or with Alembic: alembic -n messagedb upgrade head"
        )


class MissingPrivilege(MessageDBError):
    """The session's role lacks a privilege on the schema, a table, a sequence or a function of the store.

    ``role`` is the name with which the session logged in, None if the connection does not know it. ``reason`` is
    PostgreSQL's own error text, which names the object. If your own SQL may not use an object of your own, SQLAlchemy's
    error is raised instead.
    """

    def __init__(self, role: str | None, reason: str) -> None:
        super().__init__(role, reason)
        self.role = role
        self.reason = reason

    def __str__(self) -> str:
        # Not always the table of positions: the revision that makes it may be missing.
        tasks = (*READ, *WRITE, *CONSUME) if "consumer_positions" in self.reason else (*READ, *WRITE)
        role = quoted("the_role" if self.role is None else self.role)
        return (
            f"{'this role' if self.role is None else f'role {self.role!r}'} lacks a privilege ({self.reason}). As the "
            f"owner of the store, run: GRANT message_store TO {role}; or, if the server has no role message_store: "
            f"{' '.join(f'{each};' for each in grants(role, tasks))} "
            "If the session changes its role with SET ROLE, grant them to that role"
        )


class ConditionNotActivated(MessageDBError):
    """You passed a ``condition``, but the session's setting ``message_store.sql_condition`` is off, or not set."""

    def __str__(self) -> str:
        return (
            "Message DB refuses SQL conditions unless the session's setting message_store.sql_condition is on. For one "
            "transaction: SET LOCAL message_store.sql_condition = on"
        )


class CannotSettle(MessageDBError):
    """``$all`` has a gap at the global position ``position``, and a message may still be committed there.

    This connection cannot find out. ``reason`` says why: the server is a standby, or the transaction is REPEATABLE READ
    or SERIALIZABLE.
    """

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(position, reason)
        self.position = position
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"$all has a gap at global position {self.position}, where a message may still be committed: "
            f"{self.reason}. Read on the primary server, in a READ COMMITTED transaction. Where such messages may be "
            "skipped, read with allow_holes=True"
        )


class NotCaughtUp(MessageDBError, TimeoutError):
    """The time was out before a consumer had handled what was waited for.

    ``position`` is the global position up to which it has handled everything, None if it has recorded none, and
    ``wanted`` is the one that was waited for. With slots or members, they are those of the one furthest behind.
    """

    def __init__(self, category: str, identifier: str | None, position: int | None, wanted: int) -> None:
        super().__init__()
        # OSError, the base of TimeoutError, would take them for numbers and names of its own.
        self.args = (category, identifier, position, wanted)
        self.category = category
        self.identifier = identifier
        self.position = position
        self.wanted = wanted

    def __str__(self) -> str:
        name = " ".join(repr(each) for each in (self.category, self.identifier) if each is not None)
        at = "has recorded no position yet" if self.position is None else f"is at global position {self.position}"
        return f"the consumer {name} {at}, and {self.wanted} was waited for: it is slow, or it does not run"


class ConsumerError(MessageDBError):
    """The base of the errors that stop a consumer.

    It is raised itself if the consumer's position stream holds something other than positions.
    """


class HandlerFailed(ConsumerError):
    """A consumer's handler raised an error, and the consumer stopped. Raised ``from`` the handler's error.

    ``message`` is the message that failed, as it is stored; if it cannot be decoded, with JSON text for the part that
    cannot. All messages before it are handled and recorded. The next run starts with ``message``.
    """

    def __init__(self, message: Message) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        m = self.message
        failure = (
            f"the handler of {m.type} failed at global position {m.global_position} "
            f"(stream {m.stream_name!r}, position {m.position})"
        )
        cause = self.__cause__
        return failure if cause is None else f"{failure}: {type(cause).__name__}: {text_of(cause)}"


class PositionConflict(ConsumerError):
    """Another consumer with the same identifier recorded a position: two of them run at the same time. Or the position
    was set or forgotten while the consumer was running.

    ``stream_name`` is the stream that holds their position, or would hold it, if that is in the table. Both versions
    count what is recorded, from 0; -1 means nothing. To run several consumers, pass ``slots``: with slots=1, one works
    and the others stand by.
    """

    def __init__(self, stream_name: str, expected_version: int, actual_version: int | None) -> None:
        super().__init__(stream_name, expected_version, actual_version)
        self.stream_name = stream_name
        self.expected_version = expected_version
        self.actual_version = actual_version

    def __str__(self) -> str:
        actual = "another version" if self.actual_version is None else f"version {self.actual_version}"
        return (
            "another consumer with this identifier is running, or its position was set or forgotten: position stream "
            f"{self.stream_name!r} is at {actual}, expected {self.expected_version}. Stop one of them, or pass slots= "
            "to run several"
        )


class StreamWithoutId(ConsumerError):
    """A consumer group found a message of a stream without an id. Message DB gives it to no member of the group.

    ``message`` is that message. It was not handled. The next run starts with it.
    """

    def __init__(self, message: Message) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return (
            f"stream {self.message.stream_name!r} has no id, so no member of a consumer group reads it (global "
            f"position {self.message.global_position}). Pass streams_without_id=0 to let member or slot 0 handle such "
            'messages, or streams_without_id="skip" to skip them'
        )


class GroupChanged(ConsumerError):
    """A consumer's number of slots or members has changed, and it has no position for the new number.

    This includes a consumer that had no slots or members before, or has none now. Starting from the beginning would
    handle messages twice. ``stream_names`` are the streams with the positions for the old number. All messages before
    the global position ``position`` are handled; some of the later ones may be.
    """

    def __init__(self, stream_names: list[str], position: int) -> None:
        super().__init__(stream_names, position)
        self.stream_names = stream_names
        self.position = position

    def __str__(self) -> str:
        return (
            "this consumer has no position for its setting of slots or members, only for another setting: "
            f"{', '.join(self.stream_names)}. Pass position={self.position} to continue with the first message that "
            "may not be handled yet, or position=0 to start from the beginning"
        )


class SlotsLost(ConsumerError):
    """The consumer's session does not hold the locks on the consumer's ``slots``.

    Slots need a session of their own. A connection pooler in transaction mode shares one session among many clients.
    """

    def __init__(self, slots: list[int]) -> None:
        super().__init__(slots)
        self.slots = slots

    def __str__(self) -> str:
        return (
            f"the session does not hold the locks of slots {self.slots}. Slots need a session of their own: connect "
            "to PostgreSQL directly, or through a connection pooler in session mode"
        )


class MessageNotDecodable(MessageDBError):
    """A message cannot be decoded: Python cannot represent it, or the class of its type does not fit its data.

    Other clients can write JSON that is nested thousands of levels deep, and times outside of the years 1 to 9999. If
    the decoder, the class, its library or an upcaster raised an error, this error is raised ``from`` it. A read returns
    no messages; an iterator first yields those before this one. To get the others, read the positions before and after
    this one; if it is the class that does not fit, read with a Store without ``types``.
    """

    def __init__(self, stream_name: str, position: int, global_position: int, type: str, reason: str) -> None:
        super().__init__(stream_name, position, global_position, type, reason)
        # Those that the same read found before this one.
        self._before: list[Message] = []
        self.stream_name = stream_name
        self.position = position
        self.global_position = global_position
        self.type = type
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"cannot decode message {self.position} of stream {self.stream_name!r} (global position "
            f"{self.global_position}) as {self.type!r}: {self.reason}"
        )


class PostgresNotFound(MessageDBError):
    """No PostgreSQL server programs were found for a throwaway server. The text lists the places that were searched."""


class PostgresNotStarted(MessageDBError):
    """A throwaway PostgreSQL server did not start. The text includes what the server printed."""


_repr = Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 100
_repr.maxlevel = 4


def _short_repr(value: object) -> str:
    try:
        # The value may contain a URL with a password.
        return without_passwords(_repr.repr(value))
    except Exception:  # noqa: BLE001 - an error about a value must not fail on the value's own repr
        return object.__repr__(value)
