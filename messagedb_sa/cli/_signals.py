"""Ctrl-C and SIGTERM end the command at once, also while it waits for the database."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from select import select
from types import FrameType
from typing import Any


class Terminated(KeyboardInterrupt):
    """SIGTERM came."""


def handle_signals() -> None:
    """Let SIGTERM clean up as Ctrl-C does. A signal that the parent process ignores, as nohup does, stays ignored."""
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def let_signals_through(driver: Any) -> None:
    """Make psycopg2, the module, wait in Python, which then handles signals. By itself it waits in C."""

    def wait(connection: Any) -> None:
        limit = None
        if connection.status == extensions.STATUS_SETUP:
            # Only where libpq itself waits does it end the wait for a connection.
            of_the_url = extensions.parse_dsn(connection.dsn).get("connect_timeout")
            seconds = int(of_the_url or os.environ.get("PGCONNECT_TIMEOUT") or 0)
            limit = time.monotonic() + seconds if seconds > 0 else None
        try:
            while (state := connection.poll()) != extensions.POLL_OK:
                reads = [connection.fileno()] if state == extensions.POLL_READ else []
                writes = [connection.fileno()] if state == extensions.POLL_WRITE else []
                left = None if limit is None else limit - time.monotonic()
                if left is not None and left <= 0:
                    raise driver.OperationalError("timeout expired")
                select(reads, writes, [], left)
        except KeyboardInterrupt:
            # Or else the server would go on until the end of the query.
            with suppress(driver.Error):
                connection.cancel()
            raise

    extensions: Any = driver.extensions
    extensions.set_wait_callback(wait)
