"""What a store is made on: an engine, connection or session, or a URL. What does not fit is refused, with a way out."""

from __future__ import annotations

from collections.abc import Callable
from inspect import isclass, iscoroutine, isroutine
from typing import Any, TypeVar

from sqlalchemy import URL, Dialect, Engine
from sqlalchemy.exc import ArgumentError, UnboundExecutionError

from messagedb_sa._drivers.supported import ASYNCHRONOUS, SYNCHRONOUS, driver_of, how_to_install
from messagedb_sa._drivers.urls import with_driver
from messagedb_sa.errors import InvalidArgument, MessageDBError

E = TypeVar("E")

# By name, since SQLAlchemy's module of the asynchronous ones cannot be imported without greenlet.
_SYNCHRONOUS = frozenset({"Engine", "Connection", "Session", "scoped_session", "sessionmaker"})
_ASYNCHRONOUS = frozenset(
    {"AsyncEngine", "AsyncConnection", "AsyncSession", "async_scoped_session", "async_sessionmaker"}
)


def unfit_bind(bind: object, *, asynchronous: bool) -> InvalidArgument:
    """The error for what is not an engine, a connection or a session of this kind."""
    if asynchronous:
        kinds, store = "an AsyncEngine, an AsyncConnection or an AsyncSession", "AsyncStore"
    else:
        kinds, store = "an Engine, a Connection or a Session", "Store"
    way_out = f"call {store}.from_url(url)" if isinstance(bind, (str, URL)) else _way_out(bind)
    return InvalidArgument("bind", bind, f"must be {kinds} of SQLAlchemy{way_out and f'; {way_out}'}")


def _way_out(bind: object) -> str:
    if isinstance(bind, Engine) and bind.dialect.is_async:
        return "make it with create_async_engine, and pass that to AsyncStore"
    cls = bind if isclass(bind) else type(bind)
    # Drivers have a class Connection too.
    names = {base.__name__ for base in cls.__mro__ if base.__module__.startswith("sqlalchemy.")}
    if names & (_SYNCHRONOUS | _ASYNCHRONOUS):
        store = "AsyncStore" if names & _ASYNCHRONOUS else "Store"
        is_made_first = isclass(bind) or names & {"sessionmaker", "async_sessionmaker"}
        return f"call it, and pass what it returns to {store}" if is_made_first else f"pass this to {store}"
    if iscoroutine(bind):
        return "await it, and pass the result"
    if cls.__name__.endswith("GeneratorContextManager"):
        return "enter it, and pass what it gives: with engine.begin() as connection"
    if cls.__module__.partition(".")[0] in (*SYNCHRONOUS, *ASYNCHRONOUS):
        return "pass the engine that this connection of the driver comes from"
    if isroutine(bind):
        return "call it, and pass what it returns"
    return ""


def engine_of(session: Any) -> Engine:
    """The engine of a Session, an AsyncSession, or a scoped one."""
    try:
        engine: Engine = session.get_bind().engine
    except UnboundExecutionError as error:
        reason = "must be bound to one engine for all its classes, such as Session(engine)"
        raise InvalidArgument("bind", session, reason) from error
    return engine


def check_dialect(bind: object, dialect: Dialect) -> None:
    """Refuse other databases, drivers that we do not know, and an Engine that only an AsyncEngine can use."""
    if dialect.name != "postgresql":
        raise InvalidArgument("bind", bind, f"must be on PostgreSQL, not on {dialect.name}")
    drivers = ASYNCHRONOUS if dialect.is_async else SYNCHRONOUS
    if driver_of(dialect.driver) not in drivers:
        reason = f"must use the driver {' or '.join(drivers)}, not {dialect.driver}, which is not supported"
        raise InvalidArgument("bind", bind, reason)
    # A Connection or Session of an asynchronous engine is what SQLAlchemy's run_sync passes to a function.
    if dialect.is_async and isinstance(bind, Engine):
        raise InvalidArgument("bind", bind, f"must be on a synchronous driver; {_way_out(bind)}")


def engine_from_url(
    make: Callable[..., E], url: object, options: dict[str, Any], *, default: str, asynchronous: bool
) -> E:
    """The engine that SQLAlchemy's function makes; ``default`` is the driver of a URL without one."""
    example = "must be a URL, such as postgresql://user@host/database"
    if not isinstance(url, (str, URL)):
        way_out = _way_out(url)
        raise InvalidArgument("url", url, f"{example}{way_out and f'; {way_out}'}")
    try:
        parsed = with_driver(url, default)
    except (ArgumentError, ValueError) as error:
        # ValueError: the port is not a number.
        raise InvalidArgument("url", url, example) from error
    backend, _, driver = parsed.drivername.partition("+")
    if backend != "postgresql":
        raise InvalidArgument("url", url, f"must begin with postgresql://, not with {backend}://")
    drivers, others = (ASYNCHRONOUS, SYNCHRONOUS) if asynchronous else (SYNCHRONOUS, ASYNCHRONOUS)
    if driver not in drivers and not (asynchronous and driver_of(driver) in drivers):
        reason = f"must use the driver {' or '.join(drivers)}, not {driver}"
        if driver_of(driver) in others:
            reason += f"; for that, call {'Store' if asynchronous else 'AsyncStore'}.from_url(url)"
        raise InvalidArgument("url", url, reason)
    try:
        return make(parsed, **options)
    except ImportError as error:
        name = driver_of(driver)
        raise MessageDBError(f"the driver {name} is not installed: {how_to_install(name)}") from error
