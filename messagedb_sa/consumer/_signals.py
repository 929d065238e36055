"""SIGINT and SIGTERM while consumers run: the signal stops all consumers, and then goes to the earlier handler."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType
from typing import Any

from messagedb_sa._forks import in_child

SIGNALS = (signal.SIGINT, signal.SIGTERM)

WAKE = b"\0"
"""A byte that wakes a reader to whom signals are sent by their numbers: no signal has this one."""

# For each running consumer: its stop function, and pass_on.
_running: dict[object, tuple[Callable[[], None], bool]] = {}
_earlier_handlers: dict[int, Any] = {}
# The process that handles them.
_process = 0
# The signals to raise again when all consumers have stopped.
_to_pass_on: list[int] = []


@contextmanager
def stopping(stop: Callable[[], None], *, pass_on: bool) -> Iterator[None]:
    """During the block, the first SIGINT or SIGTERM calls ``stop``. An ignored signal stays ignored.

    Does nothing outside the main thread, which alone can handle signals. When the last consumer has stopped, the signal
    is raised again for the earlier handler. An application's own handler, such as that of a web server, always gets it.
    The handlers of Python and asyncio, which end the program, get it only with ``pass_on``. A second signal goes to the
    earlier handler immediately.
    """
    if current_thread() is not main_thread():
        yield
        return
    key = object()
    if not _running:
        global _process
        _process = os.getpid()
        for each in SIGNALS:
            if signal.getsignal(each) not in (signal.SIG_IGN, None):
                _earlier_handlers[each] = signal.signal(each, _stop_all)
    _running[key] = stop, pass_on
    try:
        yield
    finally:
        # A forked child has forgotten it.
        _running.pop(key, None)
        if not _running:
            _restore()
            numbers, _to_pass_on[:] = list(_to_pass_on), []
            for number in numbers:
                signal.raise_signal(number)


def is_handled(number: int) -> bool:
    """Whether the signal, if it comes now or is pending, stops consumers. From any thread."""
    return number in SIGNALS and signal.getsignal(number) is _stop_all


def is_ending(number: int) -> bool:
    """Whether the signal would end the program now: no handler of the application is set. From any thread."""
    if number not in SIGNALS:
        return False
    handler = signal.getsignal(number)
    return _ends_the_program(_earlier_handlers.get(number) if handler is _stop_all else handler)


def end_program(number: int) -> None:
    """After a second signal, if Python does not get to call the handlers, since a C library does not return.

    Ends the program as the earlier handler would. From any thread. An application's own handler is waited for.
    """
    if is_handled(number) and _ends_the_program(_earlier_handlers.get(number)):
        os._exit(128 + number)


def _stop_all(number: int, frame: FrameType | None) -> None:
    if os.getpid() != _process:
        # It came before this forked child has let go of its parent's consumers.
        _forget()
        signal.raise_signal(number)
        return
    if not _ends_the_program(_earlier_handlers[number]) or any(pass_on for _, pass_on in _running.values()):
        _to_pass_on.append(number)
    _restore()
    for stop, _ in list(_running.values()):
        stop()


def _forget() -> None:
    _running.clear()
    _to_pass_on.clear()
    _restore()


# In a forked child, signals do what they did before its parent's consumers ran.
in_child(_forget, lambda forget: forget())


def _restore() -> None:
    while _earlier_handlers:
        number, handler = _earlier_handlers.popitem()
        # If other code has set a handler since, keep that one.
        if signal.getsignal(number) is _stop_all:
            signal.signal(number, handler)


def _ends_the_program(handler: Any) -> bool:
    """Whether the handler is Python's default or belongs to an asyncio event loop.

    An event loop's handler is that of asyncio.Runner, or one set by add_signal_handler(). The loop calls the callbacks
    of the latter in any case, so the signal need not be raised again for them.
    """
    if handler in (signal.SIG_DFL, signal.default_int_handler):
        return True
    module = getattr(getattr(handler, "func", handler), "__module__", None)
    return isinstance(module, str) and module.partition(".")[0] in ("asyncio", "uvloop")
