"""Messages as Arrow, Parquet and Arrow's files, straight from PostgreSQL. Calls need the extra ``arrow``."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Generator, Iterable
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from sqlalchemy import Engine

from messagedb_sa import Store
from messagedb_sa import _arguments as arguments
from messagedb_sa import stream_name as names
from messagedb_sa.errors import InvalidArgument, MessageDBError
from messagedb_sa.store._execute import run_alone
from messagedb_sa.transfer._arrow_statements import messages_statement
from messagedb_sa.transfer._files import File, written
from messagedb_sa.transfer._raw import SETTLE_SECONDS, SettledEnd, engine_of
from messagedb_sa.transfer._results import OnProgress, Transferred

if TYPE_CHECKING:
    from collections.abc import Callable

    import pyarrow as pa

_COMPRESSION = "zstd"

logger = logging.getLogger("messagedb_sa.transfer")


def to_arrow(
    store: Store,
    name: str,
    *,
    position: int | None = None,
    up_to: int | None = None,
    types: Iterable[str] | None = None,
    no_of_messages: int = -1,
    settle_seconds: float = SETTLE_SECONDS,
) -> pa.RecordBatchReader:
    """The messages of a stream, of a category, or of the whole store (``$all``), in order, for pandas, polars, DuckDB.

    They come as batches of some megabytes, in constant memory, straight from PostgreSQL (COPY in its binary format, by
    ADBC). The columns are those of a message, in the order of ``Message``: ``data`` and ``metadata`` are JSON text,
    null for NULL; ``time`` is a timestamp in microseconds and UTC, null if it is outside of the years 1 to 9999;
    positions are int64, all others are text.

    ``position`` is the first to read, ``up_to`` the last one, both inclusive: of a stream its positions, otherwise
    global positions. None means the beginning, and what is the end now. ``types`` selects messages of these types.
    ``no_of_messages`` is the most to return; -1 means no limit.

    ``$all`` has no holes, as in ``Store.read``: if a number is missing, the call first waits until the transactions
    that are writing at that moment have ended, for at most ``settle_seconds``. If that is not enough, the messages end
    before the missing number, and it logs a warning. On a standby server it then raises CannotSettle.

    ADBC opens a connection of its own, as the engine makes new ones. It does not see what your transaction has not
    committed. It ends when all is read, and when you close the reader, or let it go. Without the extra ``arrow``, the
    call raises MessageDBError. If the connection is lost, the call raises SQLAlchemy's OperationalError, and the reader
    OSError.
    """
    selection = _selected(store, name, position, up_to, types, no_of_messages, settle_seconds)
    if selection.unsettled is not None:
        logger.warning(
            "stopped reading $all before global position %d, where an open transaction may still write a message",
            selection.unsettled,
        )
    readers = _pyarrow().RecordBatchReader
    from messagedb_sa.transfer._arrow_batches import for_others

    schema, batches = selection.read()
    # The reader of a Python iterator does not end it when it is closed. One that reads the stream of that reader does.
    return readers.from_stream(readers.from_batches(schema, for_others(batches)))


def export_parquet(
    store: Store,
    name: str,
    file: File,
    *,
    position: int | None = None,
    up_to: int | None = None,
    types: Iterable[str] | None = None,
    no_of_messages: int = -1,
    settle_seconds: float = SETTLE_SECONDS,
    on_progress: OnProgress | None = None,
) -> Transferred:
    """Write the messages that ``to_arrow`` would return to a Parquet file, in constant memory.

    ``file`` is a path or an open binary file. A path gets the file when it is complete; until then, and if the export
    fails, it keeps what it had. The file is compressed with zstd. A row group has some megabytes of messages.

    Under the key ``messagedb``, the file's metadata says what is in it, as JSON: the ``database``, the ``name``, the
    range of positions (``position`` and ``up_to``), and the other arguments. ``unsettled`` is as in the result.

    ``on_progress`` is called after each batch with the position that was reached, and the last one to export.
    """
    selection = _selected(store, name, position, up_to, types, no_of_messages, settle_seconds)
    _pyarrow()

    def parquet(out: IO[bytes], schema: pa.Schema) -> Any:
        from pyarrow import parquet

        return parquet.ParquetWriter(out, schema, compression=_COMPRESSION)

    return _export(selection, file, parquet, on_progress)


def export_arrow(
    store: Store,
    name: str,
    file: File,
    *,
    position: int | None = None,
    up_to: int | None = None,
    types: Iterable[str] | None = None,
    no_of_messages: int = -1,
    settle_seconds: float = SETTLE_SECONDS,
    on_progress: OnProgress | None = None,
) -> Transferred:
    """Write the messages that ``to_arrow`` would return in Arrow's IPC format, in constant memory.

    ``file`` is a path or an open binary file. A path gets a file that can be read at any place. An open file, such as a
    pipe, and a path that ends with ``.arrows`` get the streaming format. Everything else is as in ``export_parquet``.
    """
    selection = _selected(store, name, position, up_to, types, no_of_messages, settle_seconds)
    _pyarrow()
    is_stream = not isinstance(file, (str, os.PathLike)) or Path(file).suffix == ".arrows"

    def ipc(out: IO[bytes], schema: pa.Schema) -> Any:
        from pyarrow import ipc

        options = ipc.IpcWriteOptions(compression=_COMPRESSION)
        return (ipc.new_stream if is_stream else ipc.new_file)(out, schema, options=options)

    return _export(selection, file, ipc, on_progress)


def _export(
    selection: _Selection,
    file: File,
    writer_on: Callable[[IO[bytes], pa.Schema], AbstractContextManager[Any]],
    on_progress: OnProgress | None,
) -> Transferred:
    exported = last = 0
    with written(file) as out:
        schema, batches = selection.read()
        with closing(batches), writer_on(out, schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
                exported += batch.num_rows
                last = batch["global_position"][-1].as_py()
                if on_progress is not None:
                    on_progress(batch[selection.by][-1].as_py(), selection.last)
    return Transferred(exported, last, selection.unsettled)


@dataclass(frozen=True)
class _Selection:
    """Checked arguments; ``last`` is the last position to read, of those that are settled."""

    engine: Engine
    name: str
    first: int
    last: int
    types: list[str] | None
    no_of_messages: int
    unsettled: int | None

    @property
    def by(self) -> str:
        return "global_position" if names.is_category(self.name) else "position"

    def read(self) -> tuple[pa.Schema, Generator[pa.RecordBatch, None, None]]:
        from messagedb_sa.transfer._arrow_batches import SCHEMA, started

        said = {
            "database": self.engine.url.database,
            "name": self.name,
            "position": self.first,
            "up_to": self.last,
            "types": self.types,
            "no_of_messages": self.no_of_messages,
            "unsettled": self.unsettled,
        }
        schema = SCHEMA.with_metadata({"messagedb": json.dumps(said)})
        statement = messages_statement(self.name, self.first, self.last, self.types, self.no_of_messages)
        return schema, started(self.engine, statement, schema)


def _selected(
    store: Store,
    name: str,
    position: int | None,
    up_to: int | None,
    types: Iterable[str] | None,
    no_of_messages: int,
    settle_seconds: float,
) -> _Selection:
    engine = engine_of("store", store)
    name = arguments.text("name", name)
    first = 0 if names.id(name) is not None else 1
    first = first if position is None else arguments.integer("position", position, minimum=0)
    wanted = None if up_to is None else arguments.integer("up_to", up_to, minimum=0)
    limit = arguments.integer("no_of_messages", no_of_messages, minimum=-1)
    settle_seconds = arguments.seconds("settle_seconds", settle_seconds)
    checked = None if types is None else _types(types)
    unsettled = None
    if name == arguments.ALL:
        with engine.connect() as connection:
            last, unsettled = run_alone(connection, SettledEnd(max(first, 1) - 1, settle_seconds))
    else:
        last = store.last_global_position(name) if names.is_category(name) else store.stream_version(name)
    if wanted is not None and wanted <= last:
        last, unsettled = wanted, None
    return _Selection(engine, name, first, last, checked, limit, unsettled)


def _types(types: Iterable[str]) -> list[str]:
    if isinstance(types, str):
        raise InvalidArgument("types", types, "must be a list of message types, such as ['Deposited']")
    checked = [arguments.text(f"types[{number}]", each) for number, each in enumerate(types)]
    if not checked:
        raise InvalidArgument("types", types, "must name at least one message type; None means all")
    return checked


def _pyarrow() -> Any:
    try:
        import adbc_driver_postgresql  # noqa: F401
        import pyarrow
    except ModuleNotFoundError as error:
        raise MessageDBError(
            f'{error.name} is not installed, which this needs: pip install "messagedb-sa[arrow]"'
        ) from error
    return pyarrow
