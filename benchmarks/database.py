"""Plain psycopg2: URLs, connections, and cursors for statements that are not measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import psycopg2  # type: ignore[import-untyped]
from sqlalchemy import make_url


def libpq_url(url: str) -> str:
    """The URL without SQLAlchemy's driver name, as psycopg2 accepts it."""
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def connect(url: str) -> Any:
    """A psycopg2 connection in autocommit mode."""
    connection = psycopg2.connect(libpq_url(url))
    connection.autocommit = True
    return connection


@contextmanager
def cursor(url: str) -> Iterator[Any]:
    with closing(connect(url)) as connection:
        yield connection.cursor()
