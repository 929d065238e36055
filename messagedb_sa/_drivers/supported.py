"""The drivers that this package supports, and what to install for each."""

from __future__ import annotations

SYNCHRONOUS = ("psycopg2", "psycopg")
ASYNCHRONOUS = ("psycopg", "asyncpg")

_PACKAGES = {
    "psycopg2": "psycopg2-binary",
    "psycopg": '"messagedb-sa[psycopg]"',
    "asyncpg": '"messagedb-sa[asyncpg]"',
}


def driver_of(name: str) -> str:
    """The driver, by SQLAlchemy's name for it: psycopg 3 is one driver, whose asynchronous dialect has another name."""
    return "psycopg" if name == "psycopg_async" else name


def how_to_install(driver: str) -> str:
    return f"pip install {_PACKAGES[driver]}"
