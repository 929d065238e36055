"""Slots: the fixed parts of a category that processes share among themselves, each held by one process at a time.

A slot is held by a session's advisory lock in PostgreSQL, so that a process that dies, however it does, leaves its
slots free as soon as the server sees its connection gone. Who is there is seen by a second lock, which all of them
share.

A connection pooler may lend one session to several processes, which then would all hold its locks. So the session is
signed by who took it last, and the others find out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from uuid import uuid4

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Integer,
    String,
    bindparam,
    cast,
    column,
    false,
    func,
    literal_column,
    select,
    table,
    true,
)

from messagedb_sa.errors import SlotsLost
from messagedb_sa.operations import Operation

# PostgreSQL shows the two halves of a lock's 64 bits.
_locks = table(
    "pg_locks",
    column("locktype"),
    column("database"),
    column("classid"),
    column("objid"),
    column("objsubid"),
    column("pid", Integer),
    column("granted"),
    schema="pg_catalog",
)
_databases = table("pg_database", column("oid"), column("datname"), schema="pg_catalog")
_key = cast(_locks.c.classid, BigInteger).op("<<")(literal_column("32")).op("|")(cast(_locks.c.objid, BigInteger))
_number: Any = bindparam("key", type_=BigInteger())
_HOLDERS = select(
    _key, _locks.c.pid, _locks.c.pid == func.pg_backend_pid(), func.current_setting("messagedb_sa.slots", true())
).where(
    _locks.c.locktype == literal_column("'advisory'"),
    _locks.c.objsubid == literal_column("1"),
    _locks.c.granted,
    _locks.c.database
    == select(_databases.c.oid).where(_databases.c.datname == func.current_database()).scalar_subquery(),
    _key == func.any(bindparam("keys", type_=ARRAY(BigInteger()))),
)
_ARRIVE = select(
    func.pg_try_advisory_lock_shared(_number),
    func.set_config("messagedb_sa.slots", bindparam("signature", type_=String()), false()),
    # A host that vanishes is given up within half a minute, not after the two hours that are usual.
    *(
        func.set_config(f"tcp_keepalives_{name}", value, false())
        for name, value in (("idle", "15"), ("interval", "5"), ("count", "3"))
    ),
)
_TAKE = select(func.pg_try_advisory_lock(_number))
_LEAVE = select(func.pg_advisory_unlock_all())
_RELEASE = select(func.pg_advisory_unlock(_number))

_Run = Callable[[Operation[Any]], Any]


class Slots:
    """The slots of one process. ``run`` executes on the session that is to hold their locks, and on no other.

    ``keys`` are the locks' 64-bit keys by slot, ``presence`` is that of the lock that all processes share.
    """

    def __init__(self, run: _Run, keys: Sequence[int], presence: int) -> None:
        self.held: list[int] = []
        self._are_lost = False
        self._run = run
        self._keys = keys
        self._presence = presence
        self._signature = str(uuid4())
        self._run(Operation(_ARRIVE, {"key": presence, "signature": self._signature}, list))

    def share(self, give_up: Callable[[int], None]) -> list[int]:
        """Give up what is above this process's fair share, take what is free below it; the slots that were taken.

        ``give_up`` is called with a slot while its lock is still held. Raises SlotsLost.
        """
        operation = Operation(_HOLDERS, {"keys": [*self._keys, self._presence]}, list)
        holders: list[tuple[int, int, bool, str | None]] = self._run(operation)
        own = {key for key, _, is_own, _ in holders if is_own}
        signatures = {signature for *_, signature in holders}
        if own != {self._presence, *(self._keys[slot] for slot in self.held)} or signatures != {self._signature}:
            self._are_lost = True
            raise SlotsLost(sorted(self.held))
        quota = self._quota(sorted((pid, is_own) for key, pid, is_own, _ in holders if key == self._presence))
        while len(self.held) > quota:
            slot = self.held[-1]
            give_up(slot)
            self.held.pop()
            self._on(_RELEASE, self._keys[slot])
        held_by_any = {key for key, *_ in holders}
        free = [slot for slot, key in enumerate(self._keys) if key not in held_by_any]
        taken: list[int] = []
        for slot in free:
            if len(self.held) >= quota:
                break
            if self._on(_TAKE, self._keys[slot]):
                self.held.append(slot)
                taken.append(slot)
        return taken

    def leave(self) -> None:
        """Free them now, not when the server sees the session's end. Locks that are lost are somebody else's."""
        if not self._are_lost:
            self._run(Operation(_LEAVE, {}, list))

    def _quota(self, processes: list[tuple[int, bool]]) -> int:
        rank = next(number for number, (_, is_own) in enumerate(processes) if is_own)
        each, over = divmod(len(self._keys), len(processes))
        return each + (rank < over)

    def _on(self, statement: Any, key: int) -> bool:
        return bool(self._run(Operation(statement, {"key": key}, lambda rows: rows[0][0])))
