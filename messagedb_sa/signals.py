"""SIGINT and SIGTERM, while consumers run: they stop all of them, and then do what they did before."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

# By consumer, how it is stopped, and whether the signal is meant for more than it.
_running: dict[object, tuple[Callable[[], None], bool]] = {}
_before: dict[int, Any] = {}
_passed_on: list[int] = []


@contextmanager
def stopping(stop: Callable[[], None], *, pass_on: bool) -> Iterator[None]:
    """Within the block a first SIGINT or SIGTERM calls ``stop``, in the main thread; what is ignored stays ignored.

    When the last of those that it stopped is done, whoever handled the signal before gets it: an application's own
    handler, such as a web server's, always; Python's and asyncio's, which would end the program, with ``pass_on``. A
    second signal goes to them at once.
    """
    if current_thread() is not main_thread():
        yield
        return
    key = object()
    if not _running:
        for each in _SIGNALS:
            if signal.getsignal(each) not in (signal.SIG_IGN, None):
                _before[each] = signal.signal(each, _stop_all)
    _running[key] = stop, pass_on
    try:
        yield
    finally:
        del _running[key]
        if not _running:
            _restore()
            passed_on, _passed_on[:] = list(_passed_on), []
            for number in passed_on:
                signal.raise_signal(number)


def _stop_all(number: int, frame: FrameType | None) -> None:
    if not _ends_the_program(_before[number]) or any(pass_on for _, pass_on in _running.values()):
        _passed_on.append(number)
    _restore()
    for stop, _ in list(_running.values()):
        stop()


def _restore() -> None:
    while _before:
        number, handler = _before.popitem()
        # Whoever set another one meanwhile knows nothing of ours.
        if signal.getsignal(number) is _stop_all:
            signal.signal(number, handler)


def _ends_the_program(handler: Any) -> bool:
    """Python's own handlers, and an event loop's: that of asyncio's Runner, and what add_signal_handler() sets, whose
    callbacks the loop calls in any case."""
    if handler in (signal.SIG_DFL, signal.default_int_handler):
        return True
    module = getattr(getattr(handler, "func", handler), "__module__", None)
    return isinstance(module, str) and module.partition(".")[0] in ("asyncio", "uvloop")
