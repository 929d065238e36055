"""Writes to one category that arrive while another is under way, combined into one transaction. No I/O here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from threading import Lock
from typing import TypeAlias

from sqlalchemy.exc import DBAPIError

from messagedb_sa import stream_name as names
from messagedb_sa.driver import refusal
from messagedb_sa.operations import Operation

# A position; an error; or None where nothing was done, and the write is to be made by itself.
Outcome: TypeAlias = "int | BaseException | None"


class Turn:
    """A write that waits. ``answer`` is its outcome, or the turns that this one is to write, itself the first."""

    def __init__(self, operation: Operation[int]) -> None:
        self.operation = operation
        self.category = names.category(operation.parameters["stream_name"])
        self.answer: Future[Outcome | list[Turn]] = Future()
        # It can't be cancelled: others may depend on it.
        self.answer.set_running_or_notify_cancel()


class Batch:
    """Turns that are written together. ``outcomes`` are theirs, once they are known."""

    operation: Operation[list[Outcome]]

    def __init__(self, size: int) -> None:
        self.outcomes: list[Outcome] = [None] * size


class Combiner:
    """One writer a category at a time, as the category's lock in the database would have it; who comes in the meantime
    is written by the first of those that wait, all in one statement.

    ``combine`` makes that statement. Safe to share between threads.
    """

    def __init__(self, combine: Callable[[Sequence[Operation[int]]], Operation[list[Outcome]]]) -> None:
        self._combine = combine
        self._lock = Lock()
        # Those that wait, by the categories that are being written to.
        self._waiting: dict[str, list[Turn]] = {}

    def arrive(self, operation: Operation[int]) -> Turn:
        turn = Turn(operation)
        with self._lock:
            waiting = self._waiting.get(turn.category)
            if waiting is not None:
                waiting.append(turn)
                return turn
            self._waiting[turn.category] = []
        turn.answer.set_result([turn])
        return turn

    def abandon(self, turn: Turn) -> None:
        """Nobody waits for it any more: it is not written, if it is not being written already."""
        with self._lock:
            waiting = self._waiting.get(turn.category, [])
            if turn in waiting:
                waiting.remove(turn)
                return
        answer = turn.answer.result()
        if isinstance(answer, list):
            # Its turn had come: it is the next one's then.
            others = answer[1:]
            if others:
                others[0].answer.set_result(others)
            else:
                self._next(turn.category)

    @contextmanager
    def written(self, turns: list[Turn]) -> Iterator[Batch]:
        """The block executes the batch's operation and keeps what comes back as its outcomes.

        Where the server refuses them together, nothing was written, and each is to be written by itself. Where it can't
        be known what was written, each has the error, as it would alone.
        """
        batch = Batch(len(turns))
        try:
            batch.operation = self._together([turn.operation for turn in turns])
            yield batch
        except BaseException as error:
            # Alone it would meet the same refusal again.
            if len(turns) == 1 or _may_have_written(error):
                batch.outcomes = [error] * len(turns)
            if not isinstance(error, Exception):
                raise
        finally:
            self._next(turns[0].category)
            for turn, outcome in zip(turns[1:], batch.outcomes[1:], strict=True):
                turn.answer.set_result(outcome)

    def _together(self, writes: list[Operation[int]]) -> Operation[list[Outcome]]:
        if len(writes) > 1:
            return self._combine(writes)
        (alone,) = writes
        return Operation(alone.statement, alone.parameters, lambda rows: [alone.result(rows)], alone.expected)

    def _next(self, category: str) -> None:
        with self._lock:
            waiting = self._waiting.pop(category)
            if waiting:
                self._waiting[category] = []
        if waiting:
            waiting[0].answer.set_result(waiting)


def _may_have_written(error: BaseException) -> bool:
    """Whether the server did not say that it refused: an interrupt, a lost connection."""
    if isinstance(error, DBAPIError):
        return error.connection_invalidated or refusal(error).state is None
    return not isinstance(error, Exception)
