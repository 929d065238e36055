"""Transactions that write to the table of messages, with the errors of the store's own operations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from messagedb_sa._drivers.errors import reported_setting
from messagedb_sa.errors import MissingPrivilege
from messagedb_sa.store._operation import Operation
from messagedb_sa.transfer import _statements as statements
from messagedb_sa.transfer._results import TransferRefused


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """A transaction in which each statement sees what was committed before it, whatever the engine's own options."""
    with engine.execution_options(isolation_level="READ COMMITTED").begin() as connection:
        yield connection


def execute(connection: Connection, statement: Any, **parameters: Any) -> Sequence[Any]:
    """The rows, if there are any."""

    def setting(name: str) -> str | None:
        return None if connection.invalidated else reported_setting(connection.connection.dbapi_connection, name)

    try:
        result = connection.execute(statement, parameters)
        return result.all() if result.returns_rows else []
    except DBAPIError as error:
        ours = Operation(statement, parameters, list).error(error, setting)
        if ours is None:
            raise
        raise ours from error


@contextmanager
def as_owner() -> Iterator[None]:
    """For what a role that may write messages may not do: keep their global positions."""
    try:
        yield
    except MissingPrivilege as error:
        reason = "to keep global positions, connect as the owner of the store's tables, or with UPDATE on the table "
        raise TransferRefused([f"{error.reason}: {reason}messages and on its sequence"]) from error


def lock_messages(connection: Connection) -> None:
    """Keep all other writers out until the transaction ends."""
    with as_owner():
        execute(connection, statements.LOCK)


def advance_sequence(connection: Connection) -> None:
    with as_owner():
        execute(connection, statements.ADVANCE_SEQUENCE)
