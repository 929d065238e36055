"""The throwaway server for all measurements. It writes durably, and runs on its own core."""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from messagedb_sa.testing import temporary_server

SETTINGS = {
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "shared_buffers": "512MB",
    "max_wal_size": "4GB",
    # Fifty consumers that start have two connections each.
    "max_connections": "200",
    # Neither may start during a measurement. There is one checkpoint and one vacuum after each bulk load.
    "checkpoint_timeout": "1d",
    "autovacuum": "off",
}


def _own_cores() -> tuple[int, int] | None:
    if sys.platform != "linux":
        return None
    cores = sorted(os.sched_getaffinity(0))
    return (cores[0], cores[-1]) if len(cores) > 1 else None


def touch_memory() -> None:
    """Use some memory, and free it.

    The host of a virtual machine may provide memory only when it is first used. On the machine of these results that
    took 11 µs a page, while at other times a page took 2 µs. A server that grew into such memory became a quarter
    slower during a run.
    """
    page = mmap.PAGESIZE
    size = min(4 * 2**30, os.sysconf("SC_AVPHYS_PAGES") * page // 2)
    with mmap.mmap(-1, size) as memory:
        for at in range(0, size, page):
            memory[at] = 1


CORES = _own_cores()
"""The core of the client and the core of the server. None if each cannot have its own."""


@contextmanager
def server() -> Iterator[str]:
    """Run a server and yield its URL. If possible, it runs on the last core, and this process on the first."""
    if CORES is None:
        with temporary_server(settings=SETTINGS) as url:
            yield url
        return
    client, postgres = CORES
    allowed = os.sched_getaffinity(0)
    # If the scheduler decides, both are sometimes on one core, and a round trip takes 60 µs or 12 µs. The server
    # inherits the affinity of this process when it is started.
    os.sched_setaffinity(0, {postgres})
    try:
        with temporary_server(settings=SETTINGS) as url:
            os.sched_setaffinity(0, {client})
            yield url
    finally:
        os.sched_setaffinity(0, allowed)
