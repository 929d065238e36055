"""Read a whole category in a separate process, which prints the time and the memory that it took.

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
    """The most bytes in use, minus those before the first read, with modules imported and a connection open."""


def iterated(contender: str, url: str, category: str) -> Iteration:
    command = [sys.executable, __file__, contender, url, category]
    return Iteration(**json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))


# Each function imports only what it needs, since the memory of the process is measured.


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
    """The memory of the process: VmRSS is what it has now, VmHWM is the most that it ever had."""
    if sys.platform == "linux":
        # Not getrusage: its maximum includes the memory from before this program was executed.
        status = Path("/proc/self/status").read_text()
        ((kilobytes, _),) = [line.split()[1:] for line in status.splitlines() if line.startswith(f"{field}:")]
        return int(kilobytes) * 1024
    import resource

    # On macOS this is in bytes. For both fields it is the maximum so far, so the difference is only a lower bound.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main(*sys.argv[1:])
