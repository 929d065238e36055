"""Connections in a forked child process, which shares their sockets with its parent."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from typing import Any


def disconnect_in_child(connection: Any) -> None:
    """In a forked child: make the driver's connection a lost one there, and leave the parent's as it is.

    Closing it would end the parent's session, and a statement would mix with the parent's. So its file descriptor gets
    another socket, which leads nowhere.
    """
    with suppress(Exception):
        number = _fileno(getattr(connection, "driver_connection", connection))
        nowhere, other_end = socket.socketpair()
        with nowhere, other_end:
            os.dup2(nowhere.fileno(), number)


def _fileno(driver: Any) -> int:
    # asyncpg has no method for it.
    has_it = driver._transport.get_extra_info("socket") if hasattr(driver, "_transport") else driver
    number: int = has_it.fileno()
    return number
