"""A server and its standby, which is real: it receives what the primary streams, and can be promoted."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from sqlalchemy import Connection, Engine, NullPool, create_engine, event, make_url, text

from messagedb_sa import install
from messagedb_sa.testing import _keeper, temporary_server
from messagedb_sa.testing._programs import find_programs
from messagedb_sa.testing._server import _SETTINGS

from .waits import wait_until

_NOTHING = Path("/nonexistent")


class Pair:
    """``url`` is the primary's, with an empty store on it. Engines that ``follow`` connect to ``current``."""

    def __init__(self, url: str, standby: Path) -> None:
        self.url = url
        self.primary = Path(str(make_url(url).query["host"]))
        self.standby = standby
        self.current = self.primary

    def follow(self, engine: Engine) -> None:
        """Let the engine connect to the server that is the current one then, as a proxy or a DNS name would do."""

        @event.listens_for(engine, "do_connect")
        def choose(dialect: Any, record: Any, arguments: Any, parameters: dict[str, Any]) -> None:
            parameters["host"] = str(self.current)

    def engine(self, folder: Path, **options: Any) -> Engine:
        """An engine on one of the two servers."""
        url = make_url(self.url).update_query_dict({"host": str(folder)})
        return create_engine(url, **{"poolclass": NullPool, **options})

    def asked(self, folder: Path, query: str) -> Any:
        with self._connected(folder) as connection:
            return connection.scalar(text(query))

    def catch_up(self) -> None:
        """Return when the standby has replayed everything."""
        end = self.asked(self.primary, "SELECT pg_current_wal_lsn()::text")
        query = f"SELECT coalesce(pg_last_wal_replay_lsn() >= '{end}'::pg_lsn, false)"
        wait_until(lambda: self.asked(self.standby, query), "the standby has caught up")

    def lag(self) -> None:
        """From now on the standby receives nothing."""
        self.catch_up()
        with self._connected(self.standby) as connection:
            connection.execute(text("ALTER SYSTEM SET primary_conninfo = ''"))
            connection.execute(text("SELECT pg_reload_conf()"))
        receivers = "SELECT count(*) FROM pg_stat_wal_receiver"
        wait_until(lambda: self.asked(self.standby, receivers) == 0, "the standby receives nothing")

    def kill_primary(self) -> None:
        """At once, as in a crash of its machine. Nobody can connect until there is another ``current`` one."""
        if self.current == self.primary:
            self.current = _NOTHING
        pid = int((self.primary / "data" / "postmaster.pid").read_text().splitlines()[0])
        os.kill(pid, signal.SIGQUIT)
        wait_until(lambda: not _runs(pid), "the primary has ended")

    def promote(self) -> None:
        self.asked(self.standby, "SELECT pg_promote()")
        wait_until(lambda: not self.asked(self.standby, "SELECT pg_is_in_recovery()"), "the standby is promoted")

    @contextmanager
    def _connected(self, folder: Path) -> Iterator[Connection]:
        engine = self.engine(folder, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            yield connection


@contextmanager
def primary_and_standby() -> Iterator[Pair]:
    with temporary_server(settings={"synchronous_commit": "on"}) as url:
        engine = create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
        install.upgrade(engine)
        account = _keeper.server_account()
        folder = Path(mkdtemp(prefix="messagedb-"))
        try:
            primary = Path(str(make_url(url).query["host"]))
            _back_up(engine, primary / "data", folder / "data")
            (folder / "data" / "standby.signal").touch()
            with (folder / "data" / "postgresql.auto.conf").open("a") as settings:
                settings.write(f"primary_conninfo = 'host={primary} port=5432 user=postgres'\n")
            if account is not None:
                for path in [folder, *folder.rglob("*")]:
                    os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)
            command: list[str | Path] = [_keeper.accessible_programs(find_programs(), folder, account) / "postgres"]
            command += ["-D", folder / "data"]
            for name, value in {**_SETTINGS, "unix_socket_directories": str(folder)}.items():
                command += ["-c", f"{name}={value}"]
            log = (folder / "log").open("a+b")
            with log, _keeper.running(command, log.fileno(), folder, account, signal.SIGQUIT, 10.0) as process:
                pair = Pair(url, folder)

                def is_streaming() -> bool:
                    assert process.poll() is None, _keeper.tail(log.fileno())
                    with suppress(Exception):
                        return bool(pair.asked(folder, "SELECT count(*) FROM pg_stat_wal_receiver"))
                    return False

                wait_until(is_streaming, "the standby receives what the primary streams")
                yield pair
        finally:
            shutil.rmtree(folder)


def _back_up(engine: Engine, source: Path, target: Path) -> None:
    """What pg_basebackup does, which not every installation has."""
    with engine.connect() as connection:
        # Renamed in PostgreSQL 15.
        is_old = connection.scalar(text("SELECT current_setting('server_version_num')::int")) < 150000
        start = "pg_start_backup('standby', true, false)" if is_old else "pg_backup_start('standby', true)"
        stop = "pg_stop_backup(false, false)" if is_old else "pg_backup_stop(false)"
        connection.execute(text(f"SELECT {start}"))
        for folder, _, files in os.walk(source):
            copy = target / Path(folder).relative_to(source)
            copy.mkdir(parents=True, mode=0o700)
            for name in files:
                # The server goes on meanwhile, and may remove one.
                with suppress(FileNotFoundError):
                    if name != "postmaster.pid":
                        shutil.copy2(Path(folder, name), copy / name)
        (target / "backup_label").write_text(connection.scalars(text(f"SELECT labelfile FROM {stop}")).one())


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # It may have ended, and not been waited for yet.
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return True
