"""The database option: where the URL comes from, and the engine and the store that are made of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from configparser import Error as ConfigParserError
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from messagedb_sa.cli._exit_codes import ExitCode, Failure
from messagedb_sa.cli._signals import let_signals_through

if TYPE_CHECKING:
    from sqlalchemy import URL, Engine

    from messagedb_sa import Store

_INI = "alembic.ini"


class Database:
    """The database that the command is for. Nothing is read or connected before it is needed."""

    def __init__(self, url: str | None, config: Path | None, name: str = "--url") -> None:
        self._option = url
        self._name = name
        self._config = config
        self._url: URL | None = None

    @property
    def url(self) -> URL:
        """With a driver for blocking code. Raises Failure if there is none, or if it is wrong."""
        if self._url is None:
            self._url = self._find()
        return self._url

    @property
    def shown(self) -> str:
        """The URL without its passwords."""
        from messagedb_sa._drivers.urls import shown

        return shown(self.url) if self._url is not None else "the database"

    @contextmanager
    def engine(self) -> Iterator[Engine]:
        from sqlalchemy import create_engine

        if self.url.get_driver_name() == "psycopg2":
            let_signals_through(self.url.get_dialect().import_dbapi())
        # PostgreSQL shows the name to others who look at what is going on. A name of your own takes precedence.
        engine = create_engine(self.url, connect_args={"fallback_application_name": "messagedb"})
        try:
            yield engine
        finally:
            engine.dispose()

    @contextmanager
    def store(self) -> Iterator[Store]:
        from messagedb_sa import Store

        with self.engine() as engine:
            yield Store(engine)

    def _find(self) -> URL:
        from messagedb_sa._drivers.urls import for_blocking_code
        from messagedb_sa._url_sources import VARIABLE, first_url, urls_of

        config_file = self._config or (Path(_INI) if Path(_INI).is_file() else None)

        def sources() -> Iterator[tuple[str, str | None]]:
            yield self._name, self._option
            # Whoever names a file means that one. The file that happens to be here comes last.
            if self._config is None:
                yield VARIABLE, os.environ.get("MESSAGEDB_URL")
            if config_file is not None:
                # Slow to import, and often not needed.
                from alembic.config import Config

                if not config_file.is_file():
                    raise Failure(f"--config {config_file}: there is no such file", ExitCode.USAGE)
                for source, url in urls_of(Config(str(config_file), ini_section="messagedb")):
                    yield f"{config_file}: {source}", url

        try:
            _, url = first_url(
                sources(),
                f"pass --url postgresql://…, or set MESSAGEDB_URL, or set sqlalchemy.url in {self._config or _INI}",
            )
        except (ValueError, ConfigParserError) as error:
            # The parser's own text may quote a line of the file, and so a password.
            text = str(error) if isinstance(error, ValueError) else f"{config_file} is not an ini file"
            raise Failure(text, ExitCode.USAGE) from None
        return for_blocking_code(url)
