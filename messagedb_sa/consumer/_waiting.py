"""How a consumer waits: for some time, until it is woken, or until a connection receives a notification."""

from __future__ import annotations

import asyncio
import selectors
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from threading import Timer, current_thread, main_thread
from weakref import WeakKeyDictionary

from sqlalchemy import Connection
from sqlalchemy.util import greenlet_spawn

from messagedb_sa._clock import monotonic
from messagedb_sa._drivers.notifications import Listener, listener_of, raise_as_sqlalchemy
from messagedb_sa._forks import in_child
from messagedb_sa.consumer._signals import WAKE

# An event loop reads its clock once for everything that is due, so it lags a little.
_SAME_CLOCK_SECONDS = 1.0


class ThreadWaiter:
    """For threads. One thread waits at a time."""

    def __init__(self) -> None:
        # Not a lock: the thread that holds one may be the very thread that a signal handler interrupts.
        self._awaited, self._waker = _nonblocking_pair()
        # Between waits, signals are written to the socket with this number, -1 if they are not.
        self.signals_sent_to = -1

    def wait(self, seconds: float, connection: Connection | None = None) -> set[str]:
        """Wait ``seconds``, or until ``wake``, or until ``connection``, which must ``listen``, receives a notification.

        Returns the categories of the notifications; none if it was the proof that notifications arrive, which ends the
        wait too. A wake and notifications since the last wait count. Raises DBAPIError, with the connection
        invalidated, if the connection is lost.
        """
        until = monotonic() + seconds
        listener = listener_of(connection)
        with selectors.DefaultSelector() as selector, signals_sent_to(self._waker, self.signals_sent_to):
            selector.register(self._awaited, selectors.EVENT_READ)
            try:
                received: set[str] = listener.received() if listener else set()
                if listener:
                    selector.register(listener.fileno(), selectors.EVENT_READ)
                while not (self._was_woken() or _has_heard(listener, received)) and (left := until - monotonic()) > 0:
                    selector.select(left)
                    if listener:
                        received = listener.received()
            except Exception:
                if connection is not None:
                    raise_as_sqlalchemy(connection)
                raise
        return received

    def wake(self) -> None:
        """End the wait that is under way, or the next one at once. From any thread, and from a signal handler."""
        # If the buffer is full, it is awake already; after close nobody waits.
        with suppress(OSError):
            self._waker.send(WAKE)

    def close(self) -> None:
        """After the last wait."""
        self._awaited.close()
        self._waker.close()

    def _was_woken(self) -> bool:
        woken = False
        with suppress(BlockingIOError):
            while received := self._awaited.recv(4096):
                woken = woken or WAKE in received
        return woken


class TaskWaiter:
    """For asyncio tasks, with the methods of ThreadWaiter. One task waits at a time."""

    def __init__(self) -> None:
        self._woken = False
        self._waiting: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    async def wait(self, seconds: float, connection: Connection | None = None) -> set[str]:
        """As ``ThreadWaiter.wait``; ``connection`` is the ``sync_connection`` of an AsyncConnection."""
        loop, event = asyncio.get_running_loop(), asyncio.Event()
        until = monotonic() + seconds
        listener = listener_of(connection)
        # Before the flag is read: a wake that sets it afterwards finds the event to set.
        self._waiting = loop, event
        try:
            with listener.notifying(event.set) if listener else nullcontext(), signals_interrupt(loop):
                while True:
                    event.clear()
                    received: set[str] = listener.received() if listener else set()
                    left = until - monotonic()
                    if self._was_woken() or _has_heard(listener, received) or left <= 0:
                        return received
                    with _called_after(left, loop, event.set):
                        await event.wait()
        except Exception:
            # Only now, when the loop no longer watches the socket, whose number another one may get.
            if connection is not None:
                await greenlet_spawn(raise_as_sqlalchemy, connection)
            raise
        finally:
            self._waiting = None

    def wake(self) -> None:
        """As ``ThreadWaiter.wake``."""
        self._woken = True
        if self._waiting is not None:
            loop, event = self._waiting
            call_soon(loop, event.set)

    def close(self) -> None:
        """Nothing to close; both waiters have the same methods."""

    def _was_woken(self) -> bool:
        # Reset only if it was set: another thread may set it between the two steps.
        if self._woken:
            self._woken = False
            return True
        return False


def _has_heard(listener: Listener | None, received: set[str]) -> bool:
    return bool(received) or (listener is not None and listener.has_proof)


def _nonblocking_pair() -> tuple[socket.socket, socket.socket]:
    receiver, sender = socket.socketpair()
    receiver.setblocking(False)
    sender.setblocking(False)
    return receiver, sender


@contextmanager
def _called_after(seconds: float, loop: asyncio.AbstractEventLoop, callback: Callable[[], object]) -> Iterator[None]:
    """If the block takes so many seconds, the loop calls ``callback``."""
    if abs(loop.time() - monotonic()) < _SAME_CLOCK_SECONDS:
        timer = loop.call_later(seconds, callback)
        try:
            yield
        finally:
            timer.cancel()
        return
    # The loop's clock is not the real one, and may stand still.
    thread = Timer(seconds, call_soon, (loop, callback))
    thread.daemon = True
    thread.start()
    try:
        yield
    finally:
        thread.cancel()


def call_soon(loop: asyncio.AbstractEventLoop, callback: Callable[[], object]) -> None:
    """From any thread."""
    # The loop may have been closed at this very moment.
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(callback)


@contextmanager
def signals_sent_to(sender: socket.socket, instead_of: int = -1) -> Iterator[None]:
    """Within the block, each signal writes its number to the socket, so that it ends a wait for the other socket.

    Without this, Python calls the handler of a signal that arrives just before a system call only after that call. Does
    nothing outside the main thread, and if an event loop or the application has set such a socket already, other than
    ``instead_of``.
    """
    if current_thread() is not main_thread():
        yield
        return
    _wakeup_fds.add(sender, instead_of)
    try:
        yield
    finally:
        _wakeup_fds.remove(sender)


class _WakeupFds:
    """Those of our sockets that signals are sent to, with the number that each took the place of."""

    def __init__(self) -> None:
        self._before: dict[int, int] = {}
        # A forked child has its parent's sockets, and would wake the parent.
        in_child(self, _WakeupFds._remove_all)

    def add(self, sender: socket.socket, instead_of: int = -1) -> None:
        number = sender.fileno()
        before = signal.set_wakeup_fd(number, warn_on_full_buffer=False)
        if before in (-1, instead_of):
            self._before[number] = before
        elif before != number:
            signal.set_wakeup_fd(before)

    def remove(self, sender: socket.socket) -> None:
        number = sender.fileno()
        if number in self._before:
            self._put_back({number}, self._before.pop(number))

    def _remove_all(self) -> None:
        self._put_back(set(self._before), -1)
        self._before.clear()

    def _put_back(self, numbers: set[int], before: int) -> None:
        now = signal.set_wakeup_fd(before, warn_on_full_buffer=False)
        if now not in numbers:
            # Other code has set its own since: keep that one.
            signal.set_wakeup_fd(now)


_wakeup_fds = _WakeupFds()


class _Interrupts:
    """Sockets that end the sleep of an event loop, for all waits on that loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.users = 0
        self.receiver, self.sender = _nonblocking_pair()
        loop.add_reader(self.receiver, self.receiver.recv, 4096)

    def close(self, loop: asyncio.AbstractEventLoop) -> None:
        _wakeup_fds.remove(self.sender)
        loop.remove_reader(self.receiver)
        self.receiver.close()
        self.sender.close()


_interrupts: WeakKeyDictionary[asyncio.AbstractEventLoop, _Interrupts] = WeakKeyDictionary()


@contextmanager
def signals_interrupt(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """As ``signals_sent_to``, for the waits of an event loop. The blocks of a loop may overlap, and share sockets."""
    if current_thread() is not main_thread():
        yield
        return
    interrupts = _interrupts.get(loop)
    if interrupts is None:
        interrupts = _interrupts[loop] = _Interrupts(loop)
    interrupts.users += 1
    try:
        # Also if another block has: since then, the application may have set its own socket and taken it away.
        _wakeup_fds.add(interrupts.sender)
        yield
    finally:
        interrupts.users -= 1
        if not interrupts.users:
            del _interrupts[loop]
            interrupts.close(loop)
