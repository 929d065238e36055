"""Questions to a database that may hang: one at a time, and an answer that serves all who ask within a second."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Lock, Thread
from typing import Generic, TypeVar

from sqlalchemy import Connection, Engine

from messagedb_sa._clock import monotonic
from messagedb_sa._drivers.sockets import Socket, socket_of
from messagedb_sa._forks import in_child

T = TypeVar("T")

# How long an answer serves.
_FRESH_SECONDS = 1.0
# If there is no answer for so long, its connection is ended, so that the next attempt begins with another. Otherwise it
# would be up to the kernel, after a quarter of an hour, to find out that the network was cut.
_GIVE_UP_SECONDS = 10.0
# If there is not even a connection for so long, another attempt begins beside it: drivers and the resolver may wait for
# much longer, or without a limit, for a host that has vanished.
_CONNECT_SECONDS = 60.0


@dataclass(slots=True, eq=False)
class Attempt(Generic[T]):
    """``answer`` has what the database said, or the error."""

    owner: object
    began: float
    answer: Future[T]
    ended: float = 0.0
    task: object = None
    """What makes the attempt, if something must refer to it."""
    _socket: Socket | None = None

    def on(self, connection: Connection) -> Connection:
        """Call this with the connection that is asked."""
        self._socket = socket_of(connection)
        return connection

    def end(self, answer: T) -> None:
        self.ended = monotonic()
        self.answer.set_result(answer)

    def fail(self, error: BaseException) -> None:
        self.ended = monotonic()
        self.answer.set_exception(error)

    def is_connecting_for_too_long(self) -> bool:
        return self._socket is None and monotonic() - self.began > _CONNECT_SECONDS

    def end_if_hanging(self) -> None:
        """If it has been without an answer for too long, it will have an error soon."""
        if not self.answer.done() and self._socket is not None and monotonic() - self.began > _GIVE_UP_SECONDS:
            self._socket.shut_down()

    def unanswered_seconds(self) -> float:
        return monotonic() - self.began


class Attempts(Generic[T]):
    """``start`` begins an attempt, without waiting for it. Safe to share between threads and event loops."""

    def __init__(self, start: Callable[[Attempt[T]], object]) -> None:
        self._start = start
        self._forget()
        in_child(self, Attempts._forget)

    def _forget(self) -> None:
        self._lock = Lock()
        self._last: Attempt[T] | None = None

    def current(self, owner: object = None) -> Attempt[T]:
        """The one under way, or the last one if its answer is fresh, or a new one. ``owner``: without it, such as an
        event loop that may be closed, the one under way may never end."""
        with self._lock:
            last = self._last
            if last is not None and last.answer.done():
                serves = monotonic() < last.ended + _FRESH_SECONDS
            else:
                serves = last is not None and last.owner is owner and not last.is_connecting_for_too_long()
            if last is None or not serves:
                last = self._last = Attempt(owner, monotonic(), Future())
                try:
                    self._start(last)
                except Exception as error:  # noqa: BLE001 - raised again where the answer is wanted
                    # There are too many threads, or the program ends.
                    last.fail(error)
            return last


def in_thread(engine: Engine, ask: Callable[[Connection], T]) -> Callable[[Attempt[T]], None]:
    """What starts an attempt in a thread of its own, which does not keep the process from ending."""

    def run(attempt: Attempt[T]) -> None:
        try:
            with engine.connect() as connection:
                answer = ask(attempt.on(connection))
        except BaseException as error:  # noqa: BLE001 - raised again where the answer is wanted
            attempt.fail(error)
        else:
            attempt.end(answer)

    return lambda attempt: Thread(target=run, args=(attempt,), name="messagedb_sa.attempt", daemon=True).start()
