"""Slots: the fixed parts of a category that processes divide among themselves, each held by one process at a time.

A slot is held by a session's advisory lock in PostgreSQL. If a process dies in any way, its slots are free as soon as
the server notices that its connection is gone. A second lock, which all the processes share, shows which of them exist.

A connection pooler may lend one session to several processes, which would then all hold its locks. So each process
signs the session, and finds out if another one has signed it since.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from uuid import uuid4

from sqlalchemy import ARRAY, BigInteger, String, bindparam, cast, false, func, literal_column, select, true

from messagedb_sa._drivers.catalog import locks, settings, this_database
from messagedb_sa.errors import SlotsLost
from messagedb_sa.store._operation import Operation

# PostgreSQL shows a lock's 64 bits as two halves.
_key = cast(locks.c.classid, BigInteger).op("<<")(literal_column("32")).op("|")(cast(locks.c.objid, BigInteger))
_number: Any = bindparam("key", type_=BigInteger())
_HOLDERS = select(
    _key, locks.c.pid, locks.c.pid == func.pg_backend_pid(), func.current_setting("messagedb_sa.slots", true())
).where(
    locks.c.locktype == literal_column("'advisory'"),
    locks.c.objsubid == literal_column("1"),
    locks.c.granted,
    locks.c.database == this_database,
    _key == func.any(bindparam("keys", type_=ARRAY(BigInteger()))),
)
_VANISHED = {
    "tcp_keepalives_idle": "15",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "30s",
}
_ARRIVE = select(
    func.pg_try_advisory_lock_shared(_number),
    func.set_config("messagedb_sa.slots", bindparam("signature", type_=String()), false()),
    # If a host vanishes, the server notices it within half a minute, instead of the usual two hours. The timeout is for
    # when it has sent something, such as a notification, that is not acknowledged: then it sends no keepalive probes.
    *(func.set_config(name, value, false()) for name, value in _VANISHED.items()),
)
_TAKE = select(func.pg_try_advisory_lock(_number))
# The session may go back to a pool: leave its settings as they were.
_LEAVE = select(
    func.pg_advisory_unlock_all(),
    func.set_config("messagedb_sa.slots", "", false()),
    *(
        func.set_config(name, select(settings.c.reset_val).where(settings.c.name == name).scalar_subquery(), false())
        for name in _VANISHED
    ),
)
_RELEASE = select(func.pg_advisory_unlock(_number))

_Run = Callable[[Operation[Any]], Any]


class Slots:
    """The slots of one process. ``run`` executes on the session that holds their locks, and on no other.

    ``keys`` are the 64-bit keys of the slots' locks, ``presence`` is that of the lock that all processes share.
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
        """Give up what exceeds this process's fair share, or take what is free up to it; returns the slots taken.

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
        """Free them now, not when the server notices the session's end. Lost locks belong to another process."""
        if not self._are_lost:
            self._run(Operation(_LEAVE, {}, list))

    def _quota(self, processes: list[tuple[int, bool]]) -> int:
        rank = next(number for number, (_, is_own) in enumerate(processes) if is_own)
        each, over = divmod(len(self._keys), len(processes))
        return each + (rank < over)

    def _on(self, statement: Any, key: int) -> bool:
        return bool(self._run(Operation(statement, {"key": key}, lambda rows: rows[0][0])))
