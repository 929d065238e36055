"""The socket beneath a driver's connection: how long it may be without an answer, and ending it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from sqlalchemy import Connection

# If nothing is acknowledged for half a minute, the kernel ends the connection, instead of after some fifteen minutes.
_LIMITS = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 30_000}
# Not every platform has all of them; macOS has another name for the first.
_OPTIONS = {
    getattr(socket, name): seconds
    for name, seconds in {**_LIMITS, "TCP_KEEPALIVE": 15}.items()
    if hasattr(socket, name) and not (name == "TCP_KEEPALIVE" and hasattr(socket, "TCP_KEEPIDLE"))
}


# In Connection.info, which lives as long as the driver's connection does.
_SOCKET = "messagedb_sa.socket"


def socket_of(connection: Connection) -> Socket:
    if _SOCKET not in connection.info:
        connection.info[_SOCKET] = Socket(connection.connection.driver_connection)
    found: Socket = connection.info[_SOCKET]
    return found


class Socket:
    """Has no handle of its own, so that the driver alone decides when it is closed."""

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        # libpq switches keepalive probes on, unless it is told not to. asyncpg leaves them off.
        self._is_libpq = hasattr(self._driver, "fileno")
        self._identity = _identity(self._number())
        self._is_limited = False
        self._before: list[tuple[int, int, int]] = []
        with self._handle() as handle:
            self._is_tcp = handle is not None and handle.family in (socket.AF_INET, socket.AF_INET6)

    def limit(self) -> None:
        """Limit how long it may be without an answer, until ``unlimit``. What was set already stays as it is."""
        if not self._is_tcp or self._is_limited:
            return
        with self._handle() as handle:
            if handle is None:
                return
            self._is_limited = True
            wanted = [(socket.IPPROTO_TCP, option, value) for option, value in _OPTIONS.items()]
            if not self._is_libpq:
                wanted.append((socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1))
            for level, option, value in wanted:
                with suppress(OSError):
                    now = handle.getsockopt(level, option)
                    if now == _defaults(handle.family)[level, option]:
                        handle.setsockopt(level, option, value)
                        self._before.append((level, option, now))

    def unlimit(self) -> None:
        before, self._before, self._is_limited = self._before, [], False
        if not before:
            return
        with self._handle() as handle:
            if handle is not None:
                for each in before:
                    with suppress(OSError):
                        handle.setsockopt(*each)

    def shut_down(self) -> None:
        """End the connection, from any thread. What waits for an answer fails, as if the server had ended it."""
        with self._handle() as handle, suppress(OSError):
            if handle is not None:
                handle.shutdown(socket.SHUT_RDWR)

    def _number(self) -> int:
        """The file descriptor, or -1 if it is closed or unknown."""
        try:
            if self._is_libpq:
                number: int = self._driver.fileno()
            else:
                # asyncpg has no public name for it.
                number = self._driver._transport.get_extra_info("socket").fileno()
        except Exception:  # noqa: BLE001 - each driver has its own error for a closed connection
            return -1
        return number

    @contextmanager
    def _handle(self) -> Iterator[socket.socket | None]:
        """A second handle of it, None if it is closed. Another thread may close it at any time, and its number may then
        be that of another file: so compare."""
        try:
            duplicate = os.dup(self._number())
        except OSError:
            yield None
            return
        if self._identity is None or _identity(duplicate) != self._identity:
            os.close(duplicate)
            yield None
            return
        with socket.socket(fileno=duplicate) as handle:
            yield handle


def _identity(number: int) -> tuple[int, int] | None:
    try:
        found = os.fstat(number)
    except OSError:
        return None
    return found.st_dev, found.st_ino


_known_defaults: dict[int, dict[tuple[int, int], int]] = {}


def _defaults(family: int) -> dict[tuple[int, int], int]:
    """The options of a new socket."""
    if family not in _known_defaults:
        with socket.socket(family, socket.SOCK_STREAM) as new:
            options = [*((socket.IPPROTO_TCP, option) for option in _OPTIONS), (socket.SOL_SOCKET, socket.SO_KEEPALIVE)]
            _known_defaults[family] = {each: new.getsockopt(*each) for each in options}
    return _known_defaults[family]
