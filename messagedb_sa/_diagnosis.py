"""What ``install.diagnose`` finds: each check of a store and of its session, with its remedy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from alembic.script import ScriptDirectory
from sqlalchemy import Connection, select

from messagedb_sa import _diagnosis_statements as statements
from messagedb_sa import functions
from messagedb_sa._drivers.notifications import process_told
from messagedb_sa._privileges import CONSUME, READ, WRITE, grants, quoted
from messagedb_sa._revisions import MIGRATIONS, sql_of, version_table_schema
from messagedb_sa.schema import VERSION_TABLE

_UPGRADE = "Run messagedb upgrade, messagedb_sa.install.upgrade(engine), or alembic -n messagedb upgrade head"

# Of PostgreSQL: the versions that this package is tested on.
_OLDEST, _NEWEST = 14, 18
# PostgreSQL's own default of max_locks_per_transaction.
_LOCKS = 64
# A table below that is analysed in a moment, if it grows.
_SMALL_BYTES = 1_000_000
# Below so many milliseconds, a timeout disturbs consumers in what they do usually.
_SHORTEST_TIMEOUTS = {
    "statement_timeout": 10_000,
    "transaction_timeout": 60_000,
    "idle_in_transaction_session_timeout": 60_000,
    "idle_session_timeout": 60_000,
}
_TIMEOUT_EFFECTS = {
    "statement_timeout": "a longer statement fails, also those of handlers",
    "transaction_timeout": "a transactional consumer whose handler takes longer loses its connection",
    "idle_in_transaction_session_timeout": "a transactional consumer whose handler takes longer loses its connection",
    "idle_session_timeout": "a consumer that waits for messages loses its connection, and connects again each time",
}
_SETTINGS = ("search_path", "default_transaction_isolation", "default_transaction_read_only")
_OF_SERVER = ("max_locks_per_transaction", "max_connections", "max_prepared_transactions", "autovacuum", "track_counts")


class Finding(NamedTuple):
    """What a check found.

    ``code`` names the check, and stays the same from version to version. ``found`` is what it found, with the values.
    ``remedy`` is what to do, None if there is nothing to do; with the severity "ok" it is what you may want to do.
    ``sql`` has the statements to run for that, each without a semicolon; the owner of the store may run them, unless
    the remedy names another role. Run them in one session, each by itself: some do not run in a
    transaction.
    """

    code: str
    severity: Literal["ok", "warning", "error"]
    found: str
    remedy: str | None = None
    sql: tuple[str, ...] = ()


class _Setting(NamedTuple):
    shown: str
    number: str
    source: str


class Diagnosis:
    """All checks, on one connection. None of its statements fails for want of a privilege."""

    def __init__(self, connection: Connection, long_transaction_seconds: float) -> None:
        self._connection = connection
        self._limit = long_transaction_seconds
        self._server: Any = connection.execute(statements.SERVER).one()
        names = [*_SETTINGS, *_OF_SERVER, *_SHORTEST_TIMEOUTS]
        rows = connection.execute(statements.SETTINGS, {"names": names})
        self._settings: Mapping[str, _Setting] = {name: _Setting(*values) for name, *values in rows}
        self._role = quoted(self._server.role)
        self._login = quoted(self._server.login)

    def findings(self) -> Iterator[Finding]:
        for check in (
            self._server_version,
            self._encoding,
            self._read_only,
            self._pooler,
            self._isolation,
            self._timeouts,
            self._search_path,
            self._sql_condition,
            self._max_locks,
        ):
            yield from check()
        if not self._server.has_messages:
            yield Finding("store", "error", "this database has no store", _UPGRADE)
            return
        privileges = list(self._connection.execute(statements.PRIVILEGES).one())
        yield from self._store(may_call=privileges[0] and privileges[3])
        yield from self._privileges(privileges)
        yield from self._indexes()
        yield from self._sequence(may_read=all(privileges[:3]))
        yield from self._notifications()
        yield from self._autovacuum()
        yield from self._transactions()
        yield from self._prepared()

    # ---- the server and the session

    def _server_version(self) -> Iterator[Finding]:
        version, found = self._server.version_number // 10_000, f"PostgreSQL {self._server.version}"
        if version < _OLDEST:
            yield Finding("server_version", "error", found, f"Upgrade it to PostgreSQL {_OLDEST} to {_NEWEST}")
        elif version > _NEWEST:
            remedy = f"Ask for a newer version of this package: this one is tested on {_OLDEST} to {_NEWEST}"
            yield Finding("server_version", "warning", found, remedy)
        else:
            yield Finding("server_version", "ok", found)

    def _encoding(self) -> Iterator[Finding]:
        found = f"the database's encoding is {self._server.encoding}"
        if self._server.encoding == "UTF8":
            yield Finding("encoding", "ok", found)
        else:
            yield Finding(
                "encoding",
                "warning",
                f"{found}: characters that it does not have are refused",
                "Copy the store into a database that was made with ENCODING 'UTF8' TEMPLATE template0",
            )

    def _read_only(self) -> Iterator[Finding]:
        default = self._settings["default_transaction_read_only"]
        if self._server.is_standby:
            yield Finding(
                "read_only",
                "warning",
                "the server is a standby: nothing can be written, consumers do not run, and reads of $all may raise "
                "CannotSettle",
                "Connect to the primary server for all that",
            )
        elif default.shown == "on":
            remedy, sql = self._change("default_transaction_read_only", default, "off")
            found = "default_transaction_read_only is on: nothing can be written, and consumers do not run"
            # So that the statement after it may be executed.
            sql = ("SET default_transaction_read_only = off", *sql) if sql else ()
            yield Finding("read_only", "warning", found, remedy, sql)
        else:
            yield Finding("read_only", "ok", "the server is a primary, and the session may write")

    def _pooler(self) -> Iterator[Finding]:
        told = process_told(self._connection)
        if told == self._server.process:
            yield Finding("pooler", "ok", "no connection pooler between this session and the server")
            return
        yield Finding(
            "pooler",
            "warning",
            f"a connection pooler is in between: the server's process is {self._server.process}, and the driver was "
            f"told {told}. In transaction mode, slots do not work, and consumers and subscriptions poll",
            "Connect workers to the server itself, or to the pooler in session mode",
        )

    def _isolation(self) -> Iterator[Finding]:
        default = self._settings["default_transaction_isolation"]
        found = f"default_transaction_isolation is {default.shown}"
        if default.shown == "read committed":
            yield Finding("isolation", "ok", found)
            return
        remedy, sql = self._change("default_transaction_isolation", default, "read committed")
        found += ": such transactions can fail to serialize, cannot check a condition, and cannot wait for gaps of $all"
        yield Finding("isolation", "warning", found, remedy, sql)

    def _timeouts(self) -> Iterator[Finding]:
        known = {name: self._settings[name] for name in _SHORTEST_TIMEOUTS if name in self._settings}
        short = {name: each for name, each in known.items() if 0 < int(each.number) < _SHORTEST_TIMEOUTS[name]}
        for name, each in short.items():
            longest = f"{_SHORTEST_TIMEOUTS[name] // 1000}s"
            remedy, sql = self._change(name, each, longest)
            yield Finding("timeouts", "warning", f"{name} is {each.shown}: {_TIMEOUT_EFFECTS[name]}", remedy, sql)
        if not short:
            yield Finding("timeouts", "ok", ", ".join(f"{name} is {each.shown}" for name, each in known.items()))

    def _search_path(self) -> Iterator[Finding]:
        path = self._settings["search_path"].shown or "empty"
        if self._server.is_in_search_path:
            yield Finding("search_path", "ok", f"message_store is in the search_path: {path}")
            return
        sql = (self._for_login("search_path", "message_store, public"),)
        yield Finding(
            "search_path",
            "ok",
            f"message_store is not in the search_path: {path}. This package does not need it",
            "If clients in other languages log in as this role, add it: they call the functions without the schema",
            sql,
        )

    def _sql_condition(self) -> Iterator[Finding]:
        value = self._server.sql_condition
        if value in (None, "", "off"):
            yield Finding("sql_condition", "ok", "message_store.sql_condition is off: a condition is refused")
            return
        name = "message_store.sql_condition"
        yield Finding(
            "sql_condition",
            "warning",
            f"{name} is {value}: whoever reads may pass SQL as a condition",
            "Switch it on by SET LOCAL only in the transactions that need it",
            (self._for_login(name, "off"),),
        )

    def _max_locks(self) -> Iterator[Finding]:
        each, connections, prepared = (int(self._settings[name].number) for name in _OF_SERVER[:3])
        found = f"max_locks_per_transaction is {each}: {each * (connections + prepared):,} locks for all transactions"
        if each >= _LOCKS:
            yield Finding("max_locks", "ok", found)
            return
        yield Finding(
            "max_locks",
            "warning",
            f"{found}. A write to several streams takes one for each category",
            "Raise it, as a superuser, and restart the server",
            (f"ALTER SYSTEM SET max_locks_per_transaction = {_LOCKS}",),
        )

    def _change(self, name: str, setting: _Setting, value: str) -> tuple[str, tuple[str, ...]]:
        """The remedy for a setting. One that the client sends takes precedence over all that the server has."""
        if setting.source in ("client", "session", "command line", "environment variable"):
            where = {"client": "the connection's own options", "session": "this session"}.get(setting.source, "server")
            return f"Set it to {value!r} where it is set: {where}", ()
        remedy = "Change it for the role that logs in; connections that are open keep the old value"
        return remedy, (self._for_login(name, f"'{value}'"),)

    def _for_login(self, name: str, value: str) -> str:
        """Takes precedence over what is set for the server, the database, or the role."""
        return f"ALTER ROLE {self._login} IN DATABASE {quoted(self._server.database)} SET {name} = {value}"

    # ---- the store

    def _store(self, *, may_call: bool) -> Iterator[Finding]:
        script = ScriptDirectory(str(MIGRATIONS))
        revisions = [each.revision for each in script.walk_revisions()][::-1]
        schema = version_table_schema(self._connection)
        row: Any = self._connection.execute(statements.STORE, {"version_schema": schema}).one()
        version = None
        if may_call and self._server.has_version:
            version = self._connection.scalar(select(functions.message_store_version()))
        store = "a store" if version is None else f"Message DB {version}"
        if not row.has_version_table:
            found = f"{store}, which was not installed by this package: what it adds to Message DB is missing"
            yield Finding("store", "warning", found, f"{_UPGRADE}. All messages are kept")
            return
        if row.may_read_version:
            revision = self._connection.scalar(statements.version_in(schema))
        else:
            # The objects tell, as far as a revision adds any.
            made = [revisions[0], *(each for each in statements.REVISION_OBJECTS if getattr(row, each))]
            revision = made[-1]
        table = f"{quoted(schema)}.{VERSION_TABLE}"
        unseen = "" if row.may_read_version else f", by its objects, since {self._role} may not read {table}"
        if revision not in revisions:
            remedy = "Use the version of this package that installed it, or a newer one"
            yield Finding("store", "warning", f"{store} at {revision}, which this package does not know", remedy)
        elif revision != revisions[-1]:
            found = f"{store} at {revision}, behind {revisions[-1]}{unseen}"
            yield Finding("store", "warning", found, _UPGRADE)
        else:
            yield Finding("store", "ok", f"{store} at {revision}, the newest revision{unseen}")

    def _privileges(self, has: list[bool]) -> Iterator[Finding]:
        tasks = (
            ("privileges_read", "error", statements.READ_PRIVILEGES, READ, "read messages"),
            ("privileges_write", "warning", statements.WRITE_PRIVILEGES, WRITE, "write messages, and consume"),
            (
                "privileges_consume",
                "warning",
                statements.CONSUME_PRIVILEGES,
                CONSUME,
                "keep positions in the table, nor list those that are there",
            ),
        )
        *has, has_positions = has
        severity: Any
        for code, severity, names, needed, task in tasks:
            these, has = has[: len(names)], has[len(names) :]
            if code == "privileges_consume" and not has_positions:
                yield Finding(code, "ok", "there is no table consumer_positions: consumers keep positions in streams")
                continue
            missing = [name for name, granted in zip(names, these, strict=True) if not granted]
            if not missing:
                yield Finding(code, "ok", f"role {self._server.role!r} has {', '.join(names)}")
                continue
            found = f"role {self._server.role!r} cannot {task}: it lacks {', '.join(missing)}"
            remedy = f"If it should, run this as the owner, or GRANT message_store TO {self._role}"
            yield Finding(code, severity, found, remedy, tuple(grants(self._role, needed)))

    def _indexes(self) -> Iterator[Finding]:
        found = {name: values for name, *values in self._connection.execute(statements.ALL_INDEXES)}
        troubles = [*self._missing_and_wrong(found), *_invalid(found)]
        yield from troubles
        if not troubles:
            yield Finding("indexes", "ok", f"present, valid and right: {', '.join(found)}")

    def _missing_and_wrong(self, found: Mapping[str, Any]) -> Iterator[Finding]:
        # The index of positions comes with the table.
        expected = dict(statements.INDEXES)
        if "consumer_positions_pkey" not in found:
            del expected["messages_recorded"]
        for name, definition in expected.items():
            create = definition.replace(" INDEX ", " INDEX CONCURRENTLY ", 1)
            severity: Literal["warning", "error"] = "warning" if name == "messages_recorded" else "error"
            sql: tuple[str, ...]
            if name == "messages_pkey":
                sql = ("ALTER TABLE message_store.messages ADD PRIMARY KEY (global_position)",)
            else:
                sql = (create,)
            if name not in found:
                yield Finding("indexes", severity, f"the index {name} is missing", "Make it", sql)
            elif _normal(found[name][0]) != _normal(definition):
                drop = (
                    "ALTER TABLE message_store.messages DROP CONSTRAINT messages_pkey"
                    if name == "messages_pkey"
                    else f"DROP INDEX CONCURRENTLY message_store.{name}"
                )
                text = f"the index {name} is not Message DB's: {found[name][0]}"
                yield Finding("indexes", severity, text, "Make it again", (drop, *sql))

    def _sequence(self, *, may_read: bool) -> Iterator[Finding]:
        name = f"message_store.{statements.SEQUENCE}"
        options = self._connection.execute(statements.SEQUENCE_OPTIONS).one_or_none()
        if options is None:
            yield Finding("sequence", "error", f"the sequence {name} is missing", "Restore it from a backup")
            return
        cache, increment = options
        troubled = False
        if (cache, increment) != (1, 1):
            troubled = True
            yield Finding(
                "sequence",
                "error",
                f"{name} has CACHE {cache} and INCREMENT {increment}: numbers are not given out one by one, and "
                "readers of $all may miss messages",
                "Set both to 1",
                (f"ALTER SEQUENCE {name} INCREMENT 1 CACHE 1",),
            )
        if not may_read:
            yield Finding(
                "sequence",
                "ok",
                f"role {self._server.role!r} may not see whether {name} is ahead of the table",
                "To see it, grant it to read",
                tuple(grants(self._role, READ)),
            )
            return
        following, last = self._connection.execute(statements.SEQUENCE_NEXT).one()
        if last is not None and last >= following:
            yield Finding(
                "sequence",
                "error",
                f"{name} gives {following} next, but the last message has global position {last}: writes fail, or "
                "come before what readers of $all have read",
                "Set it behind the last message while nobody writes",
                (f"SELECT setval('{name}', (SELECT max(global_position) FROM message_store.messages))",),
            )
        elif not troubled:
            yield Finding("sequence", "ok", f"{name} gives {following} next, and the last message has {last or 'none'}")

    def _notifications(self) -> Iterator[Finding]:
        row = self._connection.execute(statements.NOTIFICATION_TRIGGER).one_or_none()
        if row is None:
            remedy = "To wake consumers at once: messagedb upgrade --notify, or install.upgrade(engine, notify=True)"
            yield Finding("notifications", "ok", "notifications are off: consumers poll", remedy)
            return
        enabled, calls_ours, body = row
        usage = self._server.queue_usage
        switch_on = (sql_of("0003", "notify_on"),)
        if not calls_ours:
            found = f"the trigger {statements.TRIGGER} calls another function than message_store.notify_category"
            sql = (sql_of("0003", "notify_off"), *switch_on)
            yield Finding("notifications", "error", found, "Make it again", sql)
        elif body not in (made := sql_of("0003", "function_notify_category")):
            found = "the function message_store.notify_category is not this package's"
            yield Finding("notifications", "error", found, "Replace it", (made,))
        elif enabled not in ("O", "A"):
            found = f"the trigger {statements.TRIGGER} is disabled: consumers poll"
            yield Finding("notifications", "warning", found, "Enable it", switch_on)
        elif usage >= 0.5:
            yield Finding(
                "notifications",
                "warning",
                f"the queue of notifications is {usage:.0%} full: messages are written without one",
                "End the session that listens and stays in a transaction: old_transactions names it",
            )
        else:
            yield Finding("notifications", "ok", f"notifications are on; their queue is {usage:.0%} full")

    def _autovacuum(self) -> Iterator[Finding]:
        tuples, size, is_off = self._connection.execute(statements.TABLE).one()
        off = [name for name in ("autovacuum", "track_counts") if self._settings[name].shown != "on"]
        if is_off:
            yield Finding(
                "autovacuum",
                "warning",
                "autovacuum is off for message_store.messages: its statistics become old, and plans bad",
                "Switch it on",
                ("ALTER TABLE message_store.messages RESET (autovacuum_enabled)",),
            )
        if off:
            yield Finding(
                "autovacuum",
                "warning",
                f"{' and '.join(off)} of the server: off. Statistics become old, and plans bad",
                "Switch it on, as a superuser",
                (*(f"ALTER SYSTEM SET {name} = on" for name in off), "SELECT pg_reload_conf()"),
            )
        if not (is_off or off):
            yield Finding("autovacuum", "ok", "autovacuum is on")
        if tuples < 0 and size >= _SMALL_BYTES:
            yield Finding(
                "statistics",
                "warning",
                f"message_store.messages has {size:,} bytes and was never analysed: plans and estimates are bad",
                "Analyse it",
                ("ANALYZE message_store.messages",),
            )
        else:
            known = "has not been analysed yet" if tuples < 0 else f"has about {tuples:,.0f} messages"
            yield Finding("statistics", "ok", f"message_store.messages {known}, and {size:,} bytes")

    # ---- what others do

    def _transactions(self) -> Iterator[Finding]:
        rows = self._connection.execute(statements.TRANSACTIONS).all()
        old = [row for row in rows if row.seconds is not None and row.seconds >= self._limit]
        for code, effect, writes in (
            ("open_writers", "has written and is open: readers of $all wait for it", True),
            ("old_transactions", "is open: rows that were deleted or updated since stay in all tables", False),
        ):
            ours = [each for each in old if each.writes is writes]
            for each in ours:
                name = each.application_name or "without an application_name"
                yield Finding(
                    code,
                    "warning",
                    f"process {each.pid} ({name}) {effect}. Open for {each.seconds:,.0f} s, {each.state}: {each.query}",
                    "Let it commit. If it is stuck, end it; that rolls it back",
                    (f"SELECT pg_terminate_backend({each.pid})",),
                )
            if not ours:
                yield self._no_old(code, [each for each in rows if each.seconds is None and each.writes is writes])

    def _no_old(self, code: str, unseen: list[Any]) -> Finding:
        what = "has written and is open" if code == "open_writers" else "is open"
        found = f"no transaction that {what} is older than {self._limit:g} s"
        if not unseen:
            return Finding(code, "ok", found)
        processes = ", ".join(str(each.pid) for each in unseen)
        return Finding(
            code,
            "ok",
            f"{found}. Role {self._server.role!r} may not see since when these processes are in one: {processes}",
            "To see it, run this as a superuser",
            (f"GRANT pg_read_all_stats TO {self._role}",),
        )

    def _prepared(self) -> Iterator[Finding]:
        old = [row for row in self._connection.execute(statements.PREPARED) if row[1] >= self._limit]
        for gid, seconds in old:
            yield Finding(
                "prepared_transactions",
                "warning",
                f"the transaction {gid!r} was prepared {seconds:,.0f} s ago: if it has written, readers of $all wait "
                "for it",
                "Ask its transaction manager whether to COMMIT PREPARED or to ROLLBACK PREPARED",
                ("ROLLBACK PREPARED '" + gid.replace("'", "''") + "'",),
            )
        if not old:
            yield Finding("prepared_transactions", "ok", f"no prepared transaction is older than {self._limit:g} s")


def _invalid(found: Mapping[str, Any]) -> Iterator[Finding]:
    for name, (_, is_valid, is_ready) in found.items():
        if not (is_valid and is_ready):
            yield Finding(
                "indexes",
                "error" if name in statements.INDEXES else "warning",
                f"the index {name} is invalid: it is not used, and what made it has failed or is at work",
                "If nobody is making it at the moment, make it again",
                (f"REINDEX INDEX CONCURRENTLY message_store.{quoted(name)}",),
            )


def _normal(definition: str) -> str:
    """PostgreSQL leaves out the schemas that are in the search_path."""
    return definition.replace("message_store.", "")
