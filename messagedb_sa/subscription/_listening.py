"""One connection that listens for all subscriptions of an engine, and wakes those that may have something to read."""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Lock
from typing import Any, Protocol

from messagedb_sa._forks import PerProcess
from messagedb_sa.consumer._host import Host
from messagedb_sa.consumer._log import first_line
from messagedb_sa.consumer._options import POLL_SECONDS
from messagedb_sa.consumer._session import ConnectionLost, LastingSession, Unavailable
from messagedb_sa.errors import MessageDBError

logger = logging.getLogger("messagedb_sa.subscription")

# Until it is woken, or a notification arrives.
_LONG_SECONDS = 3600.0


class Listener(Protocol):
    awaits: str
    """The category that it must be notified of, or ALL."""

    def notify(self, categories: set[str] | None) -> None:
        """There may be something new in these categories; None: in all of them. From any thread."""


class NotConnected(ConnectionLost):
    what = "cannot connect"


class Listening:
    """Runs while there are listeners. If it cannot listen, they poll.

    Its connection is made when the first of them waits, and closed when the last one leaves. Blocking code on a host,
    as a consumer is.
    """

    def __init__(self, key: Any, host: Host) -> None:
        self.key = key
        self._host = host
        self._session = LastingSession(host, _log)
        self.listeners: dict[Listener, None] = {}
        # What runs it, a thread or a task.
        self.runner: Any = None
        self.has_ended = False
        # Whether the server has no notifications for it, so that another attempt would not help.
        self.is_in_vain = False

    def is_notified_of(self, listener: Listener) -> bool:
        """Whether it misses nothing by waiting until it is notified."""
        return not self.has_ended and self._session.is_notified_of(listener.awaits)

    @property
    def is_settling(self) -> bool:
        """As ``LastingSession.is_settling``."""
        return self._session.is_settling

    @property
    def is_ending(self) -> bool:
        return self.has_ended or self._host.stopping

    def doubt(self) -> None:
        """A listener has found a message without a notification."""
        self._session.is_notified = False

    def add(self, listener: Listener) -> None:
        self.listeners[listener] = None
        self._host.wake()

    def leave(self, listener: Listener) -> None:
        """From any thread, and while garbage is collected, so it takes no lock."""
        self.listeners.pop(listener, None)
        if self.has_ended:
            return
        if self.listeners:
            self._host.wake()
        else:
            self._host.stop()

    def abandon(self) -> None:
        """In a forked child process, which has neither the thread nor the task that ran it."""
        self.has_ended = True
        self._session.abandon()

    def run(self) -> None:
        try:
            with self._host.waiting():
                try:
                    self._listen()
                finally:
                    self._session.close()
        except Unavailable:
            # It was asked to stop.
            pass
        except Exception as error:  # noqa: BLE001 - nobody waits for its end; the subscriptions have errors of their own
            self.is_in_vain = True
            _log(logging.WARNING, f"stops listening, subscriptions poll: {first_line(error)}")
        finally:
            _listenings.own.forget(self)
            self.has_ended = True
            self._notify(None)

    def _listen(self) -> None:
        lost: ConnectionLost | None = None
        while not self._host.stopping:
            try:
                if lost is None:
                    self._session.start()
                elif not self._session.reopen(lost, lambda: None):
                    return
                if not self._session.listens:
                    self.is_in_vain = True
                    return
                # What was written before it began to listen.
                self._notify(None)
                while not self._host.stopping:
                    # Each that joins or leaves wakes it.
                    if self._session.expect({listener.awaits for listener in list(self.listeners)}):
                        self._notify(None)
                    if categories := self._session.wait(POLL_SECONDS if self._session.is_settling else _LONG_SECONDS):
                        self._session.is_notified = True
                        self._notify(categories)
            except MessageDBError:
                raise
            except ConnectionLost as error:
                lost = error
            except Exception as error:  # noqa: BLE001 - drivers report failed connections differently
                lost = NotConnected(error)
            # From now on they poll.
            self._session.is_notified = False
            self._notify(None)

    def _notify(self, categories: set[str] | None) -> None:
        for each in list(self.listeners):
            each.notify(categories)


class _Listenings:
    """Those of this process that run: one for each key, an engine or an engine and an event loop."""

    def __init__(self) -> None:
        # So that two threads do not begin two for one key. What ends one may be called by a signal handler that
        # interrupts the thread with the lock, and takes none.
        self._lock = Lock()
        self._running: dict[Listening, None] = {}

    def join(
        self, key: Any, listener: Listener, make_host: Callable[[], Host], start: Callable[[Callable[[], None]], Any]
    ) -> Listening:
        with self._lock:
            for found in list(self._running):
                if found.key == key and not found.is_ending:
                    found.add(listener)
                    return found
            found = Listening(key, make_host())
            # Before it runs, so that it finds somebody to wake.
            found.add(listener)
            self._running[found] = None
            try:
                found.runner = start(found.run)
            except BaseException:
                self.forget(found)
                found.leave(listener)
                raise
            return found

    def forget(self, listening: Listening) -> None:
        self._running.pop(listening, None)

    def abandon(self) -> None:
        for each in list(self._running):
            each.abandon()


_listenings = PerProcess(_Listenings, _Listenings.abandon)


def join(
    key: Any, listener: Listener, make_host: Callable[[], Host], start: Callable[[Callable[[], None]], Any]
) -> Listening:
    """The one of this engine and event loop, which the listener has joined. It begins if there is none: ``start`` runs
    it in a thread or a task, and returns that."""
    return _listenings.own.join(key, listener, make_host, start)


def _log(level: int, text: str) -> None:
    logger.log(level, "subscriptions: %s", text)
