"""The command ``dev``: a PostgreSQL of one's own with a store in it."""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path
from select import select as readable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from messagedb_sa.cli._command import Commands
from messagedb_sa.cli._exit_codes import Failure
from messagedb_sa.cli._output import Column, Output

if TYPE_CHECKING:
    from sqlalchemy import Engine

commands = Commands()

_DATABASE = "message_store"
_PASSWORD_FILE = "password"
# After a crash of one of its processes, a server restarts the others.
_RECONNECT_SECONDS = 0.2


@commands.add("dev")
def dev(
    output: Output,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--folder",
            metavar="DIR",
            help="Keep the data here, for the next time. Default: throw it away.",
            show_default=False,
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            "--port",
            min=1,
            max=65535,
            help="Listen on this port of 127.0.0.1 too, with a password. Default: only on a Unix socket.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Run a PostgreSQL of your own with a store in it, until you press Ctrl-C."""
    from messagedb_sa.errors import PostgresNotStarted
    from messagedb_sa.testing import temporary_server

    password = _password_of(folder)
    settings = {} if port is None else {"listen_addresses": "127.0.0.1", "port": str(port)}
    try:
        with temporary_server(settings=settings, folder=folder, password=password) as url:
            _serve(url, folder, port, password, output)
    except KeyboardInterrupt:
        # That is how it ends.
        return
    except PostgresNotStarted as error:
        if port is not None and "Address already in use" in str(error):
            raise Failure(f"port {port} is in use: pass another --port, or leave it out") from error
        raise


def _serve(server: str, folder: Path | None, port: int | None, password: str, output: Output) -> None:
    from sqlalchemy import NullPool, create_engine, func, make_url, select, text

    from messagedb_sa import install

    socket = make_url(server)
    engine = create_engine(socket, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    quoted = engine.dialect.identifier_preparer.quote_identifier
    with engine.connect() as connection:
        if connection.scalar(text("SELECT 1 FROM pg_database WHERE datname = :name"), {"name": _DATABASE}) is None:
            connection.execute(text(f"CREATE DATABASE {quoted(_DATABASE)}"))
        # The password file may have been removed, or written for the first time.
        connection.execute(text(f"ALTER ROLE postgres PASSWORD '{password}'"))
        version = connection.scalar(select(func.current_setting("server_version")))
    if folder is not None:
        _write_password(folder, password)
    with_store = socket.set(database=_DATABASE)
    store = create_engine(with_store, poolclass=NullPool)
    install.upgrade(store)
    revision = install.current(store)
    url = with_store if port is None else with_store.set(host="127.0.0.1", port=port, password=password, query={})
    # Without a driver, so that psql and other languages take it too.
    shown = url.set(drivername="postgresql").render_as_string(hide_password=False)
    if output.json:
        output.values([Column("url"), Column("folder"), Column("revision")], [shown, folder and str(folder), revision])
    else:
        kept = "is thrown away at the end" if folder is None else f"is kept in {folder}"
        output.line(f"PostgreSQL {version} with a store ({revision}) runs until you press Ctrl-C. Its data {kept}.")
        output.line("In another terminal:")
        output.line("")
        output.line(f"  export MESSAGEDB_URL='{shown}'")
        output.line("  messagedb current")
    output.flush()
    _wait_for_its_end(engine, Path(str(socket.query["host"])))


def _wait_for_its_end(engine: Engine, socket_folder: Path) -> None:
    """Return never: raises KeyboardInterrupt, or Failure if the server ends by itself."""
    from sqlalchemy.exc import OperationalError

    while socket_folder.exists():
        try:
            with engine.connect() as connection:
                # It is readable when the server has closed it.
                driver: Any = connection.connection.driver_connection
                readable([driver], [], [])
                connection.invalidate()
        except OperationalError:
            time.sleep(_RECONNECT_SECONDS)
    raise Failure("the server has ended")


def _password_of(folder: Path | None) -> str:
    """The password of the superuser over TCP: the one that is kept with the data, or a new one."""
    if folder is not None:
        try:
            kept = (folder / _PASSWORD_FILE).read_text("utf-8").strip()
        except FileNotFoundError:
            kept = ""
        # Only of the form that we write, since it becomes a part of a statement.
        if kept.isascii() and kept.isalnum():
            return kept
    return secrets.token_hex(16)


def _write_password(folder: Path, password: str) -> None:
    path = folder / _PASSWORD_FILE
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(f"{password}\n")
