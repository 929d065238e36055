"""Database URLs: with a driver, of PostgreSQL, for blocking code, and without passwords."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from messagedb_sa._drivers.supported import ASYNCHRONOUS, how_to_install

if TYPE_CHECKING:
    from sqlalchemy import URL

# libpq takes passwords as query parameters too: password, sslpassword.
_PASSWORDS = re.compile(r"(://[^:@/]*):.*@|([?&](?:ssl)?password=)[^&'\"]*", flags=re.IGNORECASE)

_FORM = "such as postgresql+psycopg2://user:password@localhost/app"

_SAME = ("host", "port", "user", "password", "passfile", "service", "target_session_attrs")
_LIBPQ = {"ssl": "sslmode", "database": "dbname", **{name: name for name in _SAME}}


def with_driver(url: str | URL, driver: str = "psycopg2") -> URL:
    """The URL with ``driver`` if it names none: SQLAlchemy's own default depends on its version.

    Also accepts the form ``postgres://``, which many hosts hand out and SQLAlchemy does not know.
    """
    from sqlalchemy import make_url

    parsed = make_url(url)
    bare = parsed.drivername in ("postgresql", "postgres")
    return parsed.set(drivername=f"postgresql+{driver}") if bare else parsed


def checked(url: str) -> URL:
    """The URL ``with_driver``, for which there is a dialect and a driver.

    Raises ValueError with a text to which the caller adds where the URL was set.
    """
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    try:
        parsed = with_driver(url)
    except (ArgumentError, ValueError):
        # Not the URL: if it cannot be parsed, it is not known which part of it is the password.
        raise ValueError(f"must be a database URL, {_FORM}") from None
    if "@" in (parsed.host or ""):
        # What was taken for the host is a part of the password.
        raise ValueError(f"must be a database URL, {_FORM}: write each @ in a user name or password as %40")
    if parsed.get_backend_name() != "postgresql":
        raise ValueError(f"{shown(parsed)} must be the URL of a PostgreSQL database, {_FORM}")
    try:
        parsed.get_dialect().import_dbapi()
    except NoSuchModuleError:
        raise ValueError(f"{shown(parsed)} must have a driver that SQLAlchemy knows, {_FORM}") from None
    except ModuleNotFoundError as error:
        install = f": {how_to_install(error.name)}" if error.name in ASYNCHRONOUS else ""
        raise ValueError(f"{shown(parsed)} needs {error.name}, which is not installed{install}") from None
    return parsed


def with_database_first(url: URL) -> URL:
    """The URL without the parameter dbname or database, which would take precedence: its database is in the path."""
    named = [str(url.query[name]) for name in ("dbname", "database") if name in url.query]
    return url.difference_update_query(("dbname", "database")).set(database=named[0]) if named else url


def for_blocking_code(url: URL) -> URL:
    """The URL with psycopg2 or psycopg if its driver is asynchronous."""
    if not url.get_dialect().is_async:
        return url
    if url.get_driver_name() != "asyncpg":
        return url.set(drivername="postgresql+psycopg")
    # Of asyncpg's parameters, only these have a meaning to libpq, and ssl has another name there.
    query = {_LIBPQ[name]: value for name, value in url.query.items() if name in _LIBPQ}
    return url.set(drivername="postgresql+psycopg2", query=query)


def for_asynchronous_code(url: URL) -> URL:
    """The URL with an asynchronous driver: psycopg, or asyncpg if psycopg is not installed."""
    if url.get_dialect().is_async or url.get_driver_name() == "psycopg":
        return url
    try:
        import psycopg  # noqa: F401
    except ImportError:
        names = {ours: theirs for theirs, ours in _LIBPQ.items()}
        query = {names[name]: value for name, value in url.query.items() if name in names}
        return url.set(drivername="postgresql+asyncpg", query=query)
    return url.set(drivername="postgresql+psycopg")


def shown(url: URL) -> str:
    return without_passwords(url.render_as_string(hide_password=True))


def without_passwords(text: str) -> str:
    """The text with ``***`` for the passwords of the URLs in it."""
    return _PASSWORDS.sub(lambda found: f"{found[1]}:***@" if found[2] is None else f"{found[2]}***", text)
