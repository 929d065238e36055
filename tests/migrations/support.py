"""Alembic's command line, Message DB's own releases, and what a database's catalog holds."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from alembic.config import CommandLine, Config
from sqlalchemy import Engine, NullPool, create_engine, text

from messagedb_sa.testing import temporary_database

from ..support import as_role, exit_code, fork

HOST_ENV = """
from alembic import context
from sqlalchemy import MetaData, create_engine
from messagedb_sa.schema import include_name

if context.is_offline_mode():
    context.configure(dialect_name="postgresql", literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()
else:
    with create_engine(context.config.get_main_option("sqlalchemy.url")).connect() as connection:
        context.configure(connection, target_metadata=MetaData(), include_schemas=True, include_name=include_name)
        with context.begin_transaction():
            context.run_migrations()
"""


def alembic(*arguments: str, cwd: Path, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    """Alembic's command line in a forked child process, which has imported everything already: that takes longest."""
    with TemporaryFile("w+") as out, TemporaryFile("w+") as err:

        def main() -> None:
            for number, file in ((1, out), (2, err)):
                os.dup2(file.fileno(), number)
            # As in a new process: pytest has set up all of these.
            sys.stdout, sys.stderr = out, err
            warnings.simplefilter("ignore")
            logging.root.handlers.clear()
            logging.root.setLevel(logging.WARNING)
            logging.getLogger("alembic").setLevel(logging.NOTSET)
            logging.disable(logging.NOTSET)
            os.chdir(cwd)
            os.environ.pop("MESSAGEDB_URL", None)
            os.environ.update(environment)
            code = 0
            try:
                command_line = CommandLine("alembic")
                options = command_line.parser.parse_args(arguments)
                config = Config("alembic.ini", ini_section=options.name, cmd_opts=options, stdout=sys.stdout)
                command_line.run_cmd(config, options)
            except SystemExit as error:
                code = 1 if error.code else 0
            finally:
                out.flush()
                err.flush()
            os._exit(code)

        code = exit_code(fork(main))
        out.seek(0)
        err.seek(0)
        done = subprocess.CompletedProcess(arguments, code, out.read(), err.read())
    if check:
        assert done.returncode == 0, done.stderr
    return done


def url_of(engine: Engine) -> str:
    return engine.url.render_as_string(hide_password=False)


def in_ini(url: str) -> str:
    return url.replace("%", "%%")


# ---- as SQL


def executed(engine: Engine, sql: str) -> None:
    """As psql does it: the script's own BEGIN and COMMIT count."""
    connection = engine.raw_connection()
    try:
        connection.dbapi_connection.autocommit = True  # type: ignore[union-attr]
        connection.cursor().execute(sql)
    finally:
        connection.close()


def catalog(engine: Engine) -> list[tuple[object, ...]]:
    with engine.connect() as connection:
        functions = connection.execute(
            text(
                "SELECT proname, pg_get_functiondef(oid), proacl::text FROM pg_proc"
                " WHERE pronamespace = 'message_store'::regnamespace"
            )
        )
        relations = connection.execute(
            text(
                "SELECT relname, relkind::text, relacl::text, pg_get_viewdef(oid) FROM pg_class"
                " WHERE relnamespace = 'message_store'::regnamespace"
            )
        )
        columns = connection.execute(
            text(
                "SELECT table_name, column_name, ordinal_position, data_type, column_default, is_nullable"
                " FROM information_schema.columns WHERE table_schema = 'message_store'"
            )
        )
        return sorted((tuple(row) for rows in (functions, relations, columns) for row in rows), key=str)


RELEASES = ["1.1.6", "1.2.3", "1.2.6", "1.3.1"]


def install_as_upstream_does(engine: Engine, database: Path) -> None:
    """The files in the order of install.sh, without the extension for random UUIDs, which are built in since 13."""
    folders = ("schema", "tables", "types", "functions", "indexes", "views", "roles", "privileges")
    files = [path for folder in folders for path in sorted((database / folder).glob("*.sql"))]
    assert len(files) > 20
    with engine.begin() as connection:
        cursor = connection.connection.cursor()
        for path in files:
            cursor.execute(path.read_text())


@contextmanager
def database_of_a_guest(server_url: str, guest: str, given: str) -> Iterator[Engine]:
    """A database, as the role ``guest``, who may create nothing in public. It is ``given`` "a schema" of the store's
    name, or "create on the database"."""
    with temporary_database(server_url) as url:
        admin = create_engine(url, poolclass=NullPool)
        with admin.begin() as connection:
            connection.execute(text("REVOKE CREATE ON SCHEMA public FROM public"))
            if given == "a schema":
                connection.execute(text(f"CREATE SCHEMA message_store AUTHORIZATION {guest}"))
            else:
                connection.execute(text(f"GRANT CREATE ON DATABASE {admin.url.database} TO {guest}"))
        yield as_role(admin, guest)
        with admin.begin() as connection:
            connection.execute(text(f"DROP OWNED BY {guest}"))
