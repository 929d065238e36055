"""Which global positions that are missing in ``$all`` can still come, and waiting until none can.

A message draws its number from the sequence while its transaction is open, so one with a higher number may be there
first, and a number that is missing is that of a message on its way, or one that never comes. What tells is the
RowExclusiveLock on the table: PostgreSQL takes it before the number is drawn and lets it go after the commit can be
seen. Whatever is below the last message there is was drawn before that, so by somebody who either holds the lock now or
is done. When those who hold it now are gone, everything up to that message is settled.

This needs a sequence that hands out its numbers one by one (CACHE 1, as Message DB makes it), and the primary server:
a standby knows nothing of the writers' locks.
"""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

from sqlalchemy import (
    Boolean,
    Double,
    Executable,
    Integer,
    Text,
    and_,
    bindparam,
    column,
    func,
    literal_column,
    or_,
    select,
    table,
    true,
)

from messagedb_sa.errors import CannotSettle
from messagedb_sa.message import Message
from messagedb_sa.schema import SCHEMA, messages

# Between two looks at the locks, doubled from the first to the second.
_SHORTEST_PAUSE_SECONDS = 0.001
_LONGEST_PAUSE_SECONDS = 0.05

_by_global_position = attrgetter("global_position")


class Writers(NamedTuple):
    """Who holds the lock: ``holding`` has the process id by virtual transaction, None for a prepared transaction.

    ``last`` is the last message's global position, seen before that; ``reading`` our own virtual transaction.
    """

    last: int
    isolation: str
    on_standby: bool
    reading: str
    holding: Mapping[str, int | None]


class Outcome(NamedTuple):
    """``settled``: up to where all is settled; None where time was up, with the process ids of ``in_the_way``."""

    settled: int | None
    waited: float
    in_the_way: list[int | None]


def before_missing(page: Sequence[Message], position: int) -> tuple[int, int | None]:
    """How many messages of the page, which is in order, come before the first number from ``position`` on that is
    missing in it; and that number, None where there is none."""
    known = bisect_left(page, position, key=_by_global_position)
    # Where none is missing, a message's number goes up as its index does.
    end = bisect_right(range(len(page)), position - known, known, key=lambda index: page[index].global_position - index)
    return end, None if end == len(page) else position + end - known


def settle(look: Callable[[float], Writers], missing: int, seconds: float) -> Outcome:
    """Wait until those who hold the lock now are gone, for up to ``seconds``.

    ``look`` is to execute WRITERS with this pause. ``missing`` is why; CannotSettle where waiting would not tell.
    """
    began = time.monotonic()
    first = look(0)
    if first.on_standby:
        raise CannotSettle(missing, "a standby server does not know who is writing on the primary")
    # In autocommit mode each statement is a transaction of its own, and sees what is new on any level.
    if not first.isolation.startswith("read ") and look(0).reading == first.reading:
        raise CannotSettle(missing, f"a transaction that is {first.isolation.upper()} sees nothing that is new")
    pause, waited, holding = _SHORTEST_PAUSE_SECONDS, 0.0, dict(first.holding)
    while holding and waited < seconds:
        still = look(min(pause, seconds - waited)).holding
        holding = {transaction: pid for transaction, pid in holding.items() if transaction in still}
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        waited = time.monotonic() - began
    return Outcome(None if holding else first.last, waited, list(holding.values()))


def writers(rows: Sequence[Any]) -> Writers:
    last, isolation, on_standby = rows[0][:3]
    found = {ours: {row[3]: row[4] for row in rows if row[5] is ours} for ours in (True, False)}
    return Writers(last, isolation, on_standby, next(iter(found[True])), found[False])


def _writers() -> Executable:
    locks = table(
        "pg_locks",
        column("locktype", Text),
        column("database", Integer),
        column("relation", Integer),
        column("virtualtransaction", Text),
        column("pid", Integer),
        column("mode", Text),
        column("granted", Boolean),
        schema="pg_catalog",
    )
    databases = table("pg_database", column("oid", Integer), column("datname", Text), schema="pg_catalog")
    own_pid = func.pg_backend_pid()
    # Every transaction holds this lock on itself.
    ours = and_(locks.c.locktype == "virtualxid", locks.c.pid == own_pid)
    writing = and_(
        locks.c.locktype == "relation",
        locks.c.database
        == select(databases.c.oid).where(databases.c.datname == func.current_database()).scalar_subquery(),
        locks.c.relation == func.to_regclass(f"{SCHEMA}.messages"),
        locks.c.mode == "RowExclusiveLock",
        locks.c.granted,
        locks.c.pid.is_distinct_from(own_pid),
    )
    # Materialized, asked for its column, and OFFSET 0: the locks are looked at after the pause. The last message is
    # that of the statement's snapshot, which is older than either.
    slept = (
        select(func.pg_sleep(bindparam("pause", type_=Double())).is_not(None).label("done"))
        .cte("slept")
        .prefix_with("MATERIALIZED")
    )
    found = (
        select(locks.c.virtualtransaction, locks.c.pid, (locks.c.locktype == "virtualxid").label("ours"))
        .where(slept.c.done, or_(ours, writing))
        .offset(literal_column("0"))
        .lateral("found")
    )
    return select(
        func.coalesce(select(func.max(messages.c.global_position)).scalar_subquery(), 0),
        func.current_setting("transaction_isolation"),
        func.pg_is_in_recovery(),
        found.c.virtualtransaction,
        found.c.pid,
        found.c.ours,
    ).select_from(slept.join(found, true()))


WRITERS = _writers()
"""Sleeps for ``pause`` seconds and looks: a row for each who holds the lock, and one for our own transaction."""
