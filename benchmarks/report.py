"""What was measured, as text: the tables, and the facts about where they come from."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import upstream
from database import cursor
from server import CORES, SETTINGS

_began = time.monotonic()


def progress(text: str) -> None:
    print(f"[{time.monotonic() - _began:6.0f} s] {text}", flush=True)


def duration(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.{1 if seconds < 0.1 else 0}f} ms"
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, numbers_from: int = 1) -> str:
    """Markdown; the columns from that one on are aligned as numbers."""
    lines = [header, ["---" if i < numbers_from else "---:" for i in range(len(header))], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def facts(url: str, seconds: float) -> str:
    """What a reader has to know to compare these numbers with others."""
    where = "the client has a core of its own, and the server another" if CORES else "left to the scheduler"
    with cursor(url) as asking:
        asking.execute("SHOW server_version")
        ((postgresql,),) = asking.fetchall()
    packages = ("SQLAlchemy", "psycopg2-binary", "msgspec", "message-db-py", "eventsourcing", "psycopg")
    versions = [f"Python {platform.python_version()}", f"PostgreSQL {postgresql}"]
    versions += [f"{name} {version(name)}" for name in packages]
    versions += [f"{upstream.PACKAGE} {upstream.VERSION} (the official SQL)"]
    settings = ", ".join(f"{name} {value}" for name, value in SETTINGS.items())
    lines = (
        f"{datetime.now(timezone.utc):%Y-%m-%d}, in {duration(seconds)}",
        ", ".join(versions),
        f"{platform.system()} {platform.release()}, {_processor()}, {os.cpu_count()} cores: {where}",
        f"a throwaway server, reached by its Unix socket: {settings}",
    )
    return "\n".join(f"- {line}" for line in lines) + "\n"


def _processor() -> str:
    known = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", known.read_text(), re.MULTILINE) if known.exists() else None
    return found[1] if found else platform.processor() or platform.machine()
