"""Database URLs: which driver a bare postgresql:// means."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy import URL


def with_driver(url: str | URL) -> URL:
    """The URL with psycopg2 where it names no driver: SQLAlchemy 2.1 would take psycopg 3, which need not be there.

    The form ``postgres://``, which SQLAlchemy does not know but many hosts hand out, is taken as well.
    """
    from sqlalchemy import make_url

    parsed = make_url(url)
    return parsed.set(drivername="postgresql+psycopg2") if parsed.drivername in ("postgresql", "postgres") else parsed
