"""Watches a consumer that is asked to stop: if the network or the server is frozen, it would wait for ever."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Thread
from weakref import WeakSet

from sqlalchemy import Connection, NullPool

from messagedb_sa._clock import monotonic
from messagedb_sa._drivers.sockets import Socket, socket_of
from messagedb_sa.consumer import _signals

STOP_SECONDS = 5.0
"""How long a consumer that is asked to stop waits for the answer to a statement of its own. Then it ends the connection
and stops without recording its position. Handlers may take as long as they like."""

LOOK_SECONDS = STOP_SECONDS / 20
# If Python does not get to call a signal's handler for so long after a second signal, a C library has not returned.
_SECOND_SIGNAL_SECONDS = 1.0


class Watch:
    """Of one run of a consumer. ``look`` is for another thread, or the event loop; all else is for the consumer."""

    def __init__(self) -> None:
        # The connection for reading and recording.
        self.own: Socket | None = None
        # The connection of the transaction that a handler works in.
        self._lent: Socket | None = None
        # Those of the pool that it was. They keep their limits until the end of the run, since setting them takes time.
        self._limited: WeakSet[Socket] = WeakSet()
        # The one whose answer is awaited, and the number of the statement.
        self._awaited: Socket | None = None
        self._number = 0
        self._seen = 0
        self._since = 0.0
        self._asked_at = 0.0
        self.is_urgent = False
        self.has_given_up = False

    def begin(self, awaited: Socket | None) -> Socket | None:
        """A statement of the consumer's own begins. Pass what it returns to ``end``."""
        self._asked_at = monotonic()
        before, self._awaited = self._awaited, awaited
        self._number += 1
        return before

    def end(self, before: Socket | None) -> None:
        self._awaited = before
        self._number += 1

    def asked_at(self) -> float | None:
        """Since when an answer is awaited, None if none is. For any thread."""
        at = self._asked_at
        return None if self._awaited is None else at

    @contextmanager
    def transaction(self, connection: Connection) -> Iterator[Callable[[], object]]:
        """A connection that is lent to a handler. Call what it yields when the handler has returned or raised."""
        lent, before = socket_of(connection), self._awaited
        lent.limit()
        self._limited.add(lent)
        self._lent = lent
        try:
            yield lambda: self.begin(lent)
        finally:
            self._lent = None
            self.end(before)
            if isinstance(connection.engine.pool, NullPool):
                # It does not stay in the pool: there may be another pool beneath it.
                lent.unlimit()

    def close(self) -> None:
        """At the end of the run."""
        for each in self._limited:
            each.unlimit()

    def look(self) -> None:
        """Call this often when the consumer is asked to stop."""
        number, awaited, now = self._number, self._awaited, monotonic()
        if awaited is None or number != self._seen:
            self._seen, self._since = number, now
        if self.is_urgent:
            awaited = awaited or self._lent
        if awaited is not None and (now - self._since >= STOP_SECONDS or self.is_urgent or self.has_given_up):
            self.has_given_up = True
            for each in (awaited, self.own):
                if each is not None:
                    each.shut_down()


class WatchThread:
    """Calls ``look`` when the consumer is asked to stop, by ``wake`` or by a signal.

    Drivers on libpq wait in C, where Python does not call the handlers of signals: so signals are sent here too.
    """

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._received, self.sender = socket.socketpair()
        self.sender.setblocking(False)
        self._thread = Thread(target=self._run, name="messagedb_sa.consumer", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """From any thread, and from a signal handler."""
        # After close nobody watches.
        with suppress(OSError):
            self.sender.send(_signals.WAKE)

    def close(self) -> None:
        self.sender.close()
        self._thread.join()
        self._received.close()

    def _run(self) -> None:
        is_stopping = False
        second: tuple[int, float] | None = None
        while True:
            self._received.settimeout(LOOK_SECONDS if is_stopping else None)
            try:
                received = self._received.recv(4096)
                if not received:
                    return
            except TimeoutError:
                received = b""
            for number in received:
                if is_stopping and _signals.is_ending(number):
                    self._watch.is_urgent = True
                    second = second or (number, monotonic())
                is_stopping = is_stopping or number == 0 or _signals.is_handled(number)
            if is_stopping:
                self._watch.look()
            if second is not None and monotonic() - second[1] >= _SECOND_SIGNAL_SECONDS:
                _signals.end_program(second[0])
