"""Database URLs: which driver a bare postgresql:// means."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy import URL


def with_driver(url: str | URL, driver: str = "psycopg2") -> URL:
    """The URL with ``driver`` where it names none: which one SQLAlchemy takes depends on its version.

    The form ``postgres://``, which SQLAlchemy does not know but many hosts hand out, is taken as well.
    """
    from sqlalchemy import make_url

    parsed = make_url(url)
    bare = parsed.drivername in ("postgresql", "postgres")
    return parsed.set(drivername=f"postgresql+{driver}") if bare else parsed
