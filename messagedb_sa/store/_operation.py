"""The call object: a statement, its parameters, a function from rows to the result, and our error for the server's."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeAlias, TypeVar

from sqlalchemy import Executable
from sqlalchemy.exc import DBAPIError

from messagedb_sa import functions, schema
from messagedb_sa._drivers.errors import ServerError, is_about_a_value, server_error
from messagedb_sa.errors import (
    ConditionNotActivated,
    DuplicateMessageId,
    InvalidArgument,
    MessageDBError,
    MessageNotDecodable,
    MissingPrivilege,
    StoreNotInstalled,
    WrongExpectedVersion,
)
from messagedb_sa.message import Message
from messagedb_sa.schema import SCHEMA
from messagedb_sa.store import _gaps as gaps
from messagedb_sa.store._refused_values import refused_argument
from messagedb_sa.store._statements import plain

if TYPE_CHECKING:
    from messagedb_sa._instruments import Instruments

NO_OF_MESSAGES = 1000
"""How many messages a read returns by default."""

SETTLE_SECONDS = 1.0
"""How long a read of ``$all`` waits for writers by default."""

# SQLSTATEs: no such schema, function or table.
_NOT_INSTALLED = frozenset({"3F000", "42883", "42P01"})
_NOT_PERMITTED = "42501"

# What the server's text of a missing privilege may name. An error of row-level security has the name in quotes.
_NAMES = frozenset({*schema.__all__, *functions.__all__, SCHEMA, "messages_global_position_seq"})

# What the server's text says to be missing. A condition, or the caller's own SQL, may lack something else.
_OBJECTS = "|".join(sorted({*schema.__all__, *functions.__all__}))
_MISSING = re.compile(rf"\b{SCHEMA}(\.({_OBJECTS}))?\b(?!\.)")
_MISSING_TO_OWN_SQL = re.compile(rf"\b{SCHEMA}(\.messages)?\b(?!\.)")

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

logger = logging.getLogger("messagedb_sa.store")


class Call(Protocol[T_co]):
    """What a method of a store does: one operation, or several that depend on each other."""

    def perform(self, run: Run) -> T_co:
        """The call's result. ``run`` executes an operation and returns its result."""


@dataclass(frozen=True, slots=True)
class Pause:
    """A step that waits so many seconds, without a connection."""

    seconds: float


Steps: TypeAlias = "Generator[Call[Any] | Pause | Awaitable[Any], Any, T]"
"""What a method of a store does, if the caller's code or a wait comes between its calls: a generator without I/O.

It yields one step after the other, gets the step's result or its error, and returns the method's result. No connection
is held between two calls. Only an AsyncStore takes an Awaitable, the result of the caller's asynchronous function.
"""


@dataclass(slots=True)
class Operation(Generic[T]):
    """Executes ``statement`` with ``parameters``; ``result`` turns the rows into what the call returns.

    ``expected`` has the streams that it writes to, with the version that is expected of each. ``own_sql``: the caller
    wrote the statement. ``our_functions``: the statement uses these, which we add to Message DB's.
    ``without_our_functions`` is the statement for a store that lacks one of them; it has the same parameters, rows and
    errors.
    """

    statement: Executable
    parameters: Mapping[str, Any]
    result: Callable[[Sequence[Any]], T]
    expected: Mapping[str, int | None] = field(default_factory=dict)
    own_sql: bool = False
    our_functions: frozenset[str] = frozenset()
    without_our_functions: Executable | None = None

    def perform(self, run: Run) -> T:
        result: T = run(self)
        return result

    def error(self, error: DBAPIError, setting: Callable[[str], str | None]) -> MessageDBError | None:
        """Our error for the server's; None if this package has no name for it. ``setting`` looks up a setting that the
        session has on the server."""
        state, message, detail, constraint = reported = server_error(error)
        if state == "P0001" and (wrong := self._wrong_expected_version(message)):
            return wrong
        if state == "P0001" and message == "Retrieval with SQL condition is not activated":
            return ConditionNotActivated()
        if state == "23505" and constraint == "messages_id":
            # PostgreSQL gives no detail to a role without the privilege to read the table.
            found = re.search(r"\(id\)=\(([-0-9a-f]+)\)", detail or "")
            return DuplicateMessageId(found[1] if found else self.parameters.get("id"))
        if state == "40001" or (state == "23505" and constraint == "messages_stream"):
            return self._lost_race(reported)
        if state in _NOT_INSTALLED and (_MISSING_TO_OWN_SQL if self.own_sql else _MISSING).search(message):
            return StoreNotInstalled(message)
        if state == "53200" and len(self.expected) > 1:
            reason = (
                f"must be to fewer categories at once: each takes a lock of the server, which has no more ({message}). "
                "Its setting max_locks_per_transaction says how many it has"
            )
            return InvalidArgument("writes", self.parameters["streams"], reason)
        if state == _NOT_PERMITTED and not _NAMES.isdisjoint(message.split()):
            return MissingPrivilege(setting("session_authorization"), message)
        return refused_argument(self.parameters, reported, setting)

    def _wrong_expected_version(self, message: str) -> WrongExpectedVersion | None:
        """None if it is about another write than this one: a trigger's, or one in the caller's own SQL."""
        for name, version in self.expected.items():
            begin = f"Wrong expected version: {version} (Stream: {name}, Stream Version: "
            if version is not None and message.startswith(begin):
                return WrongExpectedVersion(name, version, int(message[len(begin) :].rstrip(")")))
        return None

    def _lost_race(self, reported: ServerError) -> WrongExpectedVersion | None:
        """The write came too late, in a transaction with an older snapshot; None if no version was expected.

        Under REPEATABLE READ the position is taken; under SERIALIZABLE the transactions cannot be put in an order.
        """
        checked = {name: version for name, version in self.expected.items() if version is not None}
        name = next(iter(checked)) if len(checked) == 1 else None
        if found := re.search(r'"position"\)=\((.*), \d+\)', reported.detail or ""):
            name = found[1]
        return WrongExpectedVersion(name, checked[name], None) if name in checked else None


Run: TypeAlias = "Callable[[Operation[Any]], Any]"


@dataclass(slots=True)
class Read(Operation[T]):
    """A read of messages. If no objects can be made of the rows, it reads again, and ``plain`` makes the result.

    That happens if one value is not of Python's, and if the application has told the driver to make other objects.
    """

    plain: Callable[[Sequence[Any]], T] = field(kw_only=True)

    def perform(self, run: Run) -> T:
        return self._read(run)

    def _read(self, run: Run) -> T:
        result: T
        try:
            result = run(self)
        except Exception as error:
            if isinstance(error, MessageDBError) or not is_about_a_value(error):
                raise
            other = self.without_our_functions
            result = run(
                replace(
                    self,
                    statement=plain(self.statement, kept=not self.own_sql),
                    without_our_functions=None if other is None else plain(other, kept=True),
                    result=self.plain,
                )
            )
        return result


@dataclass(slots=True)
class Page(Read[list[Message]]):
    """A read that can be continued; ``by`` is the message field that the position counts."""

    by: str = "position"
    backwards: bool = False

    def after(self, page: list[Message]) -> Page | None:
        """The page after this one, whose messages are ``page``; None if this one was the last."""
        if len(page) < self.parameters["batch_size"]:
            return None
        last: int = getattr(page[-1], self.by)
        if self.backwards:
            return self.at(last - 1) if last else None
        return self.at(last + 1)

    def at(self, position: int) -> Page:
        return replace(self, parameters={**self.parameters, "position": position})


@dataclass(slots=True)
class SettledPage(Page):
    """A page of ``$all`` that skips no message that may still commit: it ends before the first unsettled gap.

    ``settled`` is the highest global position that is known to be settled; the pages after this one inherit it.
    ``is_cut`` tells whether the last read ended before a gap that is not settled. ``instruments`` measure the waits.
    """

    settle_seconds: float = SETTLE_SECONDS
    settled: int = 0
    is_cut: bool = False
    instruments: Instruments | None = None

    def perform(self, run: Run) -> list[Message]:
        def look(pause: float) -> gaps.Writers:
            writers: gaps.Writers = run(Operation(gaps.WRITERS, {"pause": pause}, gaps.writers))
            return writers

        messages, missing = self._before_gap(run)
        self.is_cut = missing is not None
        if missing is None:
            return messages
        outcome = gaps.settle(look, missing, self.settle_seconds)
        if self.instruments is not None:
            self.instruments.settled(outcome.waited, in_time=outcome.settled is not None)
        if outcome.settled is not None:
            self.settled = max(self.settled, outcome.settled)
        # Read again, for what has committed in the meantime.
        messages, missing = self._before_gap(run)
        self.is_cut = missing is not None
        if missing is not None and outcome.blockers and self.settle_seconds:
            logger.warning(
                "waited %.1f s for open transactions that write, and stopped reading $all before global position %d; "
                "still open: %s",
                outcome.waited,
                missing,
                ", ".join("a prepared transaction" if pid is None else f"process {pid}" for pid in outcome.blockers),
            )
        return messages

    def _before_gap(self, run: Run) -> tuple[list[Message], int | None]:
        undecodable: MessageNotDecodable | None = None
        try:
            messages = self._read(run)
            found: Sequence[Any] = messages
        except MessageNotDecodable as error:
            undecodable, messages = error, error._before
            found = [*messages, error]
        end, missing = gaps.before_gap(found, max(self.parameters["position"], self.settled + 1))
        if missing is not None:
            return messages[:end], missing
        if undecodable is not None:
            raise undecodable
        return messages, None
