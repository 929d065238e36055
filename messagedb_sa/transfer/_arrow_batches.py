"""Reads messages from PostgreSQL as Arrow's batches, with ADBC. Needs the extra ``arrow``."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing, suppress

import adbc_driver_manager as adbc
import adbc_driver_postgresql
import pyarrow as pa
from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

from messagedb_sa._drivers.libpq import connection_string
from messagedb_sa.transfer._arrow_statements import PREPARE

# Measured: with twice as many, a process needs more than 200 MB if messages are small, and is not faster.
BATCH_BYTES = 4 * 2**20

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("stream_name", pa.string(), nullable=False),
        pa.field("type", pa.string(), nullable=False),
        pa.field("position", pa.int64(), nullable=False),
        pa.field("global_position", pa.int64(), nullable=False),
        pa.field("data", pa.string()),
        pa.field("metadata", pa.string()),
        pa.field("time", pa.timestamp("us", "UTC")),
    ]
)


def started(engine: Engine, statement: str, schema: pa.Schema) -> Generator[pa.RecordBatch, None, None]:
    """The batches of a statement that runs already. Close it, or let it go, to end the connection."""
    batches = _batches(engine, statement, schema)
    next(batches)
    return batches


def for_others(batches: Generator[pa.RecordBatch, None, None]) -> Generator[pa.RecordBatch, None, None]:
    """The batches, with an error that Arrow's C interface has, too: other libraries get its text."""
    try:
        yield from batches
    except OperationalError as error:
        raise OSError(str(error.orig).strip()) from None


def _batches(engine: Engine, statement: str, schema: pa.Schema) -> Generator[pa.RecordBatch, None, None]:
    """First yields an empty batch, when the statement runs."""
    executed = None
    try:
        with (
            adbc_driver_postgresql.connect(_connection_string(engine)) as database,
            adbc.AdbcConnection(database) as connection,
        ):
            # PREPARE holds until the transaction ends.
            connection.set_autocommit(False)
            with adbc.AdbcStatement(connection) as preparing:
                preparing.set_sql_query(PREPARE)
                preparing.execute_update()
            with adbc.AdbcStatement(connection) as reading:
                reading.set_options(**{"adbc.postgresql.batch_size_hint_bytes": str(BATCH_BYTES)})
                reading.set_sql_query(statement)
                executed = statement
                stream, _ = reading.execute_query()
                try:
                    yield pa.RecordBatch.from_arrays([], schema=pa.schema([]))
                    for batch in pa.RecordBatchReader.from_stream(stream):
                        # A database in SQL_ASCII has any bytes as text.
                        batch.validate(full=True)
                        yield pa.RecordBatch.from_arrays(batch.columns, schema=schema)
                except GeneratorExit:
                    # The server may work for long until it has something to send, and notices that nobody reads.
                    with suppress(adbc.Error):
                        reading.cancel()
                    raise
    except (adbc.Error, pa.ArrowException, OSError, engine.dialect.loaded_dbapi.Error) as error:
        raise OperationalError(executed, None, error) from error


def _connection_string(engine: Engine) -> str:
    # A new connection: a password that the application makes for each of them, such as a token, may have expired.
    pool = engine.pool.recreate()
    try:
        with closing(pool.connect()) as connection:
            return connection_string(connection.driver_connection, client_encoding="UTF8")
    finally:
        pool.dispose()
