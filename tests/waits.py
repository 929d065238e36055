"""Waiting in tests: for what is said, and with a bound that only a hang reaches."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy import Engine, select, text

from messagedb_sa import functions
from messagedb_sa._drivers.notifications import AWAIT, AWAIT_NO_MORE

# In seconds. Less than pytest's own limit for a test, which says nothing of what was waited for.
HANG = 240.0

_BLOCKED = text(
    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


def wait_until(condition: Callable[[], object], what: str = "what the test waits for happens") -> None:
    for _ in _looks(condition, what):
        time.sleep(0.002)


async def wait_in_task_until(condition: Callable[[], object], what: str = "what the test waits for happens") -> None:
    """As ``wait_until``, while the other tasks run."""
    for _ in _looks(condition, what):
        await asyncio.sleep(0.002)


def _looks(condition: Callable[[], object], what: str) -> Iterator[None]:
    last = time.monotonic() + HANG
    while not condition():
        assert time.monotonic() < last, f"waited in vain until {what}"
        yield


@contextmanager
def awaited(engine: Engine, *names: str) -> Iterator[None]:
    """For the block, somebody awaits messages in these categories, by default in all: writers notify of them."""
    wanted = sorted(names or ["$all"])
    with engine.connect() as connection:
        assert sorted(connection.scalars(AWAIT, {"names": wanted})) == wanted
        yield
        # It would go back to its pool with the connection.
        connection.execute(AWAIT_NO_MORE, {"names": wanted})


def wait_until_blocked(engine: Engine, number: int = 1) -> None:
    """Return when so many sessions wait for an advisory lock, such as a category's."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        wait_until(lambda: connection.scalar(_BLOCKED) >= number, f"{number} sessions wait for a lock")


@contextmanager
def category_locked(engine: Engine, stream_name: str) -> Iterator[None]:
    """For the block, nobody can write to the stream's category."""
    with engine.begin() as connection:
        connection.execute(select(functions.acquire_lock(stream_name)))
        yield


@contextmanager
def released_together(engine: Engine, stream_name: str, number: int) -> Iterator[None]:
    """The block starts so many writers of the stream's category. They go on when all of them wait for its lock."""
    with category_locked(engine, stream_name):
        yield
        wait_until_blocked(engine, number)
