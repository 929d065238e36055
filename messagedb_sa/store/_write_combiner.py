"""Makes one transaction of the writes to a category that arrive while another one is under way. No I/O here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import TypeAlias

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from messagedb_sa import stream_name as names
from messagedb_sa._drivers.errors import server_error
from messagedb_sa._forks import in_child
from messagedb_sa.errors import MessageDBError
from messagedb_sa.store._operation import Operation, Run

Outcome: TypeAlias = "int | BaseException | None"
"""A position; an error; or None if nothing was written, and the write must be made by itself."""


class PendingWrite:
    """A write that waits. ``answer`` is its outcome, or its turn: then its caller must execute that."""

    def __init__(self, operation: Operation[int]) -> None:
        self.operation = operation
        self.category = names.category(operation.parameters["stream_name"])
        self.answer: Future[Outcome | Turn] = Future()
        # Nobody can cancel it: other writes may depend on it.
        self.answer.set_running_or_notify_cancel()


@dataclass(slots=True, eq=False)
class Turn:
    """A category's writes that are executed together, by the caller of the first one. Other writes wait meanwhile.

    ``outcomes`` are those of its writes, None until they are known. ``next`` are those that waited.
    """

    writes: list[PendingWrite]
    waiting: list[PendingWrite] = field(default_factory=list)
    outcomes: list[Outcome] | None = None
    next: Turn | None = None

    @property
    def leader(self) -> PendingWrite:
        return self.writes[0]


class CombinedWrite:
    """The call that executes a turn. ``outcomes`` are those of its writes, once they are known."""

    def __init__(self, make: Callable[[], Operation[list[Outcome]]], size: int) -> None:
        self._make = make
        self.outcomes: list[Outcome] = [None] * size
        self.was_sent = False

    def perform(self, run: Run) -> list[Outcome]:
        operation = self._make()
        self.was_sent = True
        outcomes: list[Outcome] = run(operation)
        return outcomes


class WriteCombiner:
    """Lets one caller at a time write to a category, as its lock in the database would. The writes that arrive in the
    meantime are executed in one statement, by the caller of the first of them.

    ``combine`` makes that statement. Safe to share between threads. A call may wait for another one: the
    callers must be threads, or tasks of one event loop, which end together.
    """

    def __init__(self, combine: Callable[[Sequence[Operation[int]]], Operation[list[Outcome]]]) -> None:
        self._combine = combine
        self._forget()
        in_child(self, WriteCombiner._forget)

    def _forget(self) -> None:
        self._lock = Lock()
        # A category has one while a write to it is under way.
        self._turns: dict[str, Turn] = {}

    @contextmanager
    def waiting(self, operation: Operation[int]) -> Iterator[PendingWrite]:
        """In the block, wait for the answer, and execute the turn if it is one.

        If the block ends with an error, such as an interrupt or a cancelled task, the write is taken back unless it was
        executed already, and nobody waits for this caller any longer.
        """
        write = PendingWrite(operation)
        try:
            self._add(write)
            yield write
        except BaseException:
            self._withdraw(write)
            raise

    def _add(self, write: PendingWrite) -> None:
        with self._lock:
            turn = self._turns.get(write.category)
            if turn is None:
                self._begin(Turn([write]))
            else:
                turn.waiting.append(write)

    def _withdraw(self, write: PendingWrite) -> None:
        with self._lock:
            turn = self._turns.get(write.category)
            if turn is not None and write in turn.waiting:
                turn.waiting.remove(write)
                return
        answer = write.answer.result() if write.answer.done() else None
        if isinstance(answer, Turn):
            self._end(answer)

    @contextmanager
    def executing(self, turn: Turn) -> Iterator[CombinedWrite]:
        """The block performs the combined write, and sets its outcomes to what that returns.

        If the server refuses the writes together, nothing was written, and each must be written by itself. If it is not
        known what was written, each gets an error. If this caller is interrupted before anything is sent, the other
        writes are the next turn.
        """
        size = len(turn.writes)
        combined = CombinedWrite(lambda: self._combined([write.operation for write in turn.writes]), size)
        try:
            yield combined
            turn.outcomes = combined.outcomes
        except BaseException as error:
            if size > 1 and _was_refused(error):
                turn.outcomes = combined.outcomes
                return
            if isinstance(error, (SQLAlchemyError, OSError)):
                turn.outcomes = [error] * size
            elif combined.was_sent:
                turn.outcomes = [_unknown(error)] * size
            raise
        finally:
            self._end(turn)

    def _combined(self, writes: list[Operation[int]]) -> Operation[list[Outcome]]:
        if len(writes) > 1:
            return self._combine(writes)
        (alone,) = writes
        return Operation(alone.statement, alone.parameters, lambda rows: [alone.result(rows)], alone.expected)

    def _end(self, turn: Turn) -> None:
        """Can be called again, to do what is left if an interrupt came in between."""
        category = turn.leader.category
        with self._lock:
            if self._turns.get(category) is turn:
                waiting = turn.waiting if turn.outcomes is not None else [*turn.writes[1:], *turn.waiting]
                turn.next = turn.next or (Turn(waiting) if waiting else None)
                if turn.next is not None:
                    self._begin(turn.next)
                else:
                    del self._turns[category]
        for write, outcome in zip(turn.writes[1:], (turn.outcomes or [])[1:], strict=False):
            if not write.answer.done():
                write.answer.set_result(outcome)

    def _begin(self, turn: Turn) -> None:
        if not turn.leader.answer.done():
            turn.leader.answer.set_result(turn)
        self._turns[turn.leader.category] = turn


def _was_refused(error: BaseException) -> bool:
    """Whether nothing was written, for a reason that only one of several writes may have."""
    if isinstance(error, DBAPIError):
        return not error.connection_invalidated and server_error(error).state is not None
    # A driver refuses a text that it cannot encode.
    return isinstance(error, (MessageDBError, UnicodeError))


def _unknown(error: BaseException) -> MessageDBError:
    unknown = MessageDBError(
        "the message may have been written or not: it was sent together with those of other calls, and the call that "
        f"sent them was interrupted by {type(error).__name__}; read the stream to find out"
    )
    unknown.__cause__ = error
    return unknown
