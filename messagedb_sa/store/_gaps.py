"""Gaps in ``$all``: which missing global positions may still be committed, and waiting until none can.

A message draws its number from the sequence while its transaction is open, so a higher number may become visible first.
A missing number belongs to a message that is not committed yet, or it is never used. The RowExclusiveLock on the table
tells which: PostgreSQL takes it before the number is drawn, and releases it after the commit has become visible. Every
number below the last visible message was drawn earlier, by a transaction that holds the lock now or has ended. When
those that hold it now have ended, everything up to that message is settled.

This needs a sequence that hands out its numbers one by one (CACHE 1, as Message DB creates it), and the primary server:
a standby does not know the writers' locks.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

from sqlalchemy import Double, Executable, and_, bindparam, func, literal_column, or_, select, true

from messagedb_sa._clock import monotonic
from messagedb_sa._drivers.catalog import locks, this_database
from messagedb_sa.errors import CannotSettle
from messagedb_sa.message import Message
from messagedb_sa.schema import SCHEMA, messages

# Between two looks at the locks; doubled each time, from the first to the second.
_SHORTEST_PAUSE_SECONDS = 0.001
_LONGEST_PAUSE_SECONDS = 0.05

_by_global_position = attrgetter("global_position")


class Writers(NamedTuple):
    """The transactions that hold the lock.

    ``last`` is the last visible message's global position, seen before the locks. ``own`` is our own virtual
    transaction. ``holding`` has the process id by virtual transaction, None for a prepared transaction.
    """

    last: int
    isolation: str
    on_standby: bool
    own: str
    holding: Mapping[str, int | None]


class Outcome(NamedTuple):
    """``settled``: everything up to here is settled; None if time ran out. ``blockers`` are then the process ids."""

    settled: int | None
    waited: float
    blockers: list[int | None]


def before_gap(page: Sequence[Message], position: int) -> tuple[int, int | None]:
    """The number of messages before the first gap, and the missing number, None without a gap.

    ``page`` is in order; numbers below ``position`` are ignored.
    """
    known = bisect_left(page, position, key=_by_global_position)
    # As long as none is missing, a message's number grows as its index does.
    end = bisect_right(range(len(page)), position - known, known, key=lambda index: page[index].global_position - index)
    return end, None if end == len(page) else position + end - known


def settle(look: Callable[[float], Writers], missing: int, seconds: float) -> Outcome:
    """Wait up to ``seconds`` until the transactions that hold the lock now have ended.

    ``look`` executes WRITERS with this pause. Raises CannotSettle, about the position ``missing``, if waiting would
    not help.
    """
    began = monotonic()
    first = look(0)
    if first.on_standby:
        raise CannotSettle(missing, "a standby server does not know which transactions write on the primary")
    # In autocommit mode each statement is its own transaction, and sees what is new at any isolation level.
    if not first.isolation.startswith("read ") and look(0).own == first.own:
        raise CannotSettle(missing, f"a transaction that is {first.isolation.upper()} sees no new messages")
    pause, waited, holding = _SHORTEST_PAUSE_SECONDS, 0.0, dict(first.holding)
    while holding and waited < seconds:
        still = look(min(pause, seconds - waited)).holding
        holding = {transaction: pid for transaction, pid in holding.items() if transaction in still}
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        waited = monotonic() - began
    return Outcome(None if holding else first.last, waited, list(holding.values()))


def writers(rows: Sequence[Any]) -> Writers:
    last, isolation, on_standby = rows[0][:3]
    found = {ours: {row[3]: row[4] for row in rows if row[5] is ours} for ours in (True, False)}
    return Writers(last, isolation, on_standby, next(iter(found[True])), found[False])


_own_pid = func.pg_backend_pid()
IS_OF_WRITER = and_(
    locks.c.locktype == "relation",
    locks.c.database == this_database,
    locks.c.relation == literal_column(f"'{SCHEMA}.messages'::regclass"),
    locks.c.mode == "RowExclusiveLock",
    locks.c.granted,
    locks.c.pid.is_distinct_from(_own_pid),
)
"""Whether it is the lock of a transaction, other than our own, that has written messages or is about to."""


def _writers() -> Executable:
    # Every transaction holds this lock on itself.
    ours = and_(locks.c.locktype == "virtualxid", locks.c.pid == _own_pid)
    # MATERIALIZED, the reference to its column and OFFSET 0 force the order: the locks are read after the pause. The
    # last message is that of the statement's snapshot, which is older than both.
    slept = (
        select(func.pg_sleep(bindparam("pause", type_=Double())).is_not(None).label("done"))
        .cte("slept")
        .prefix_with("MATERIALIZED")
    )
    found = (
        select(locks.c.virtualtransaction, locks.c.pid, (locks.c.locktype == "virtualxid").label("ours"))
        .where(slept.c.done, or_(ours, IS_OF_WRITER))
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
"""Sleeps for ``pause`` seconds, then reads the locks: a row for each holder, and one for our own transaction."""
