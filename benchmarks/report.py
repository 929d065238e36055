"""Write reports: tables of results, and the facts about the machine and the versions."""

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
from calibration import CALIBRATION
from database import cursor
from measure import Ratio
from server import CORES, SETTINGS

HOW = "<!-- how -->"
"""Stands between the results, which the page on performance shows, and how they were measured."""
BUSY = """
*Others used the machine meanwhile. The ratios count; the times are those of a busy machine.*
"""

_began = time.monotonic()


def progress(text: str) -> None:
    """Say what is measured now."""
    CALIBRATION.row = text
    print(f"[{time.monotonic() - _began:6.0f} s] {text}", flush=True)


def duration(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.{1 if seconds < 0.1 else 0}f} ms"
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, numbers_from: int = 1) -> str:
    """A Markdown table. The columns from ``numbers_from`` on are aligned as numbers."""
    lines = [header, ["---" if i < numbers_from else "---:" for i in range(len(header))], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def page(title: str, results: str, how: str) -> str:
    return f"# {title}\n\n{results}\n{HOW}\n\n{how}"


def shown(ratio: Ratio | None) -> str:
    if ratio is None:
        return ""
    return f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f}{', wide' if ratio.is_wide else ''})"


def at_most(ratio: Ratio, limit: float) -> str:
    # The bounds are compared with the rounded values that the report shows.
    return verdict(f"at most {limit:g}", round(ratio.value, 2) <= limit)


def at_least(ratio: Ratio, limit: float) -> str:
    return verdict(f"at least {limit:g}", round(ratio.value, 2) >= limit)


def verdict(bound: str, kept: bool) -> str:
    return bound if kept else f"**falls short**: {bound}"


def finished(report: str, url: str, seconds: float) -> str:
    """The report, with what a reader must know to trust its numbers, and to compare them with others."""
    if not CALIBRATION.is_quiet:
        report = report.replace(f"\n{HOW}", f"{BUSY}\n{HOW}", 1)
    return f"{report.rstrip()}\n\n{_facts(url, seconds)}"


def _facts(url: str, seconds: float) -> str:
    where = "one for the client and one for the server" if CORES else "assigned by the scheduler"
    with cursor(url) as open_cursor:
        open_cursor.execute("SHOW server_version")
        ((postgresql,),) = open_cursor.fetchall()
    packages = ("SQLAlchemy", "psycopg2-binary", "msgspec", "message-db-py", "eventsourcing", "psycopg", "asyncpg")
    versions = [f"Python {platform.python_version()}", f"PostgreSQL {postgresql}"]
    versions += [f"{name} {version(name)}" for name in packages]
    versions += [f"{upstream.PACKAGE} {upstream.VERSION} (the official SQL)"]
    settings = ", ".join(f"{name} {value}" for name, value in SETTINGS.items())
    lines = (
        f"{datetime.now(timezone.utc):%Y-%m-%d}, in {duration(seconds)}",
        ", ".join(versions),
        f"{platform.system()} {platform.release()}, {_processor()}, {os.cpu_count()} cores: {where}",
        f"a throwaway server, connected through its Unix socket: {settings}",
        *CALIBRATION.facts(),
    )
    return "\n".join(f"- {line}" for line in lines) + "\n"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else None
    return found[1] if found else platform.processor() or platform.machine()
