"""The throwaway server that everything is measured on: durable, and on a core of its own."""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from messagedb_sa.postgres import temporary_server

SETTINGS = {
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "shared_buffers": "512MB",
    "max_wal_size": "4GB",
    # Neither is to begin on its own in the middle of a measurement; there is one of each after a bulk load.
    "checkpoint_timeout": "1d",
    "autovacuum": "off",
}


def _own_cores() -> tuple[int, int] | None:
    if sys.platform != "linux":
        return None
    cores = sorted(os.sched_getaffinity(0))
    return (cores[0], cores[-1]) if len(cores) > 1 else None


def touch_memory() -> None:
    """Use some memory, and give it back.

    The host of a virtual machine may give memory only when it is used: at 11 µs a page on the machine of these figures,
    where at other times it took 2. A server that grew into such memory got a quarter slower in the middle of a run.
    """
    page = mmap.PAGESIZE
    size = min(4 * 2**30, os.sysconf("SC_AVPHYS_PAGES") * page // 2)
    with mmap.mmap(-1, size) as memory:
        for at in range(0, size, page):
            memory[at] = 1


CORES = _own_cores()
"""The client's core and the server's, None where they can't have one each."""


@contextmanager
def server() -> Iterator[str]:
    """A server's URL. Where the system allows, it has the last core, and this process the first."""
    if CORES is None:
        with temporary_server(settings=SETTINGS) as url:
            yield url
        return
    client, postgres = CORES
    allowed = os.sched_getaffinity(0)
    # Left to the scheduler, the two share a core or not, and a round trip takes 60 µs or 12: what is started
    # inherits what this process may use.
    os.sched_setaffinity(0, {postgres})
    try:
        with temporary_server(settings=SETTINGS) as url:
            os.sched_setaffinity(0, {client})
            yield url
    finally:
        os.sched_setaffinity(0, allowed)
