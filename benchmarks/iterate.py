"""Read a category from end to end in a process of its own, which tells how long it took and how much memory.

Run as a program: ``iterate.py ours|message-db-py URL CATEGORY``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Iteration:
    messages: int
    seconds: float
    memory: int
    """Bytes, at most, above those of the process with the same modules and an open connection before it began."""


def iterated(contender: str, url: str, category: str) -> Iteration:
    command = [sys.executable, __file__, contender, url, category]
    return Iteration(**json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))


# Each imports what it needs and no more, since the process's memory is measured.


def ours(url: str, category: str) -> Iterator[object]:
    from sqlalchemy import create_engine

    from messagedb_sa import Store

    store = Store(create_engine(url))
    store.version()
    yield None
    yield from store.iter_category(category)


def message_db_py(url: str, category: str) -> Iterator[object]:
    from database import libpq_url
    from message_db.client import MessageDB  # type: ignore[import-untyped]
    from message_db.connection import ConnectionPool  # type: ignore[import-untyped]

    client = MessageDB(connection_pool=ConnectionPool.from_url(libpq_url(url)))
    yield None
    position = 1
    while page := client.read_category(category, position, 1000):
        yield from page
        position = page[-1]["global_position"] + 1


CONTENDERS: dict[str, Callable[[str, str], Iterator[Any]]] = {"ours": ours, "message-db-py": message_db_py}


def main(contender: str, url: str, category: str) -> None:
    messages = CONTENDERS[contender](url, category)
    next(messages)
    idle = resident_bytes("VmRSS")
    began = time.perf_counter()
    number = sum(1 for _ in messages)
    seconds = time.perf_counter() - began
    print(json.dumps({"messages": number, "seconds": seconds, "memory": resident_bytes("VmHWM") - idle}))


def resident_bytes(field: str) -> int:
    """VmRSS is what the process has now, VmHWM the most that it ever had."""
    if sys.platform == "linux":
        # getrusage's maximum counts what this process was before it became this program.
        status = Path("/proc/self/status").read_text()
        ((kilobytes, _),) = [line.split()[1:] for line in status.splitlines() if line.startswith(f"{field}:")]
        return int(kilobytes) * 1024
    import resource

    # Bytes on macOS. There it is the most so far in either case, and the difference a lower bound.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main(*sys.argv[1:])
