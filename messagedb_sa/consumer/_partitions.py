"""The partitions that are this consumer's now: slots taken and given up, and what is due to each."""

from __future__ import annotations

import logging
from contextlib import nullcontext, suppress
from math import inf

from messagedb_sa import stream_name as names
from messagedb_sa._clock import monotonic
from messagedb_sa.consumer._host import Host
from messagedb_sa.consumer._log import ConsumerLog, first_line, logger
from messagedb_sa.consumer._options import Settings
from messagedb_sa.consumer._partition import Partition
from messagedb_sa.consumer._positions import Positions, Superseded
from messagedb_sa.consumer._session import ConnectionLost, ConsumerSession, Unavailable
from messagedb_sa.consumer._slots import Slots
from messagedb_sa.errors import PositionConflict
from messagedb_sa.store._consumer_status import backlogs
from messagedb_sa.store._consumer_streams import ConsumerKey, position_stream

# How often a process looks for others that share its slots.
_SHARE_SECONDS = 1.0


class Stopped(BaseException):
    """The consumer was asked to stop while a message waited for its next attempt."""


class Released(BaseException):
    """The partition went to another process while a message of it waited for its next attempt."""


class Partitions:
    """``due`` is when ``keep_up`` must be called next, ``share_at`` when the slots must be shared again."""

    def __init__(
        self, host: Host, settings: Settings, session: ConsumerSession, positions: Positions, log: ConsumerLog
    ) -> None:
        self._host = host
        self._settings = settings
        self._session = session
        self._positions = positions
        self._log = log
        self._slots: Slots | None = None
        self.current: list[Partition] = []
        # Those that were ours when the connection was lost.
        self._before: dict[ConsumerKey, Partition] = {}
        self.due = inf
        self.share_at = inf

    def assign(self) -> None:
        """After connecting: the partition of a consumer without slots, or the beginning of sharing slots."""
        self._positions.begin()
        self._before |= {partition.key: partition for partition in self.current}
        if not self._settings.has_slots:
            self.current = [self._partition(self._settings.group_member)]
            return
        category, identifier, size = self._settings.category, self._settings.identifier, self._settings.group_size or 0
        keys = [names.hash_64(self._positions.stream_of(slot)) for slot in range(size)]
        all_slots = ConsumerKey(f"{identifier or ''}-{size}-slots")
        self._slots = Slots(self._session.run, keys, names.hash_64(position_stream(category, all_slots)))
        self.current = []
        self.share_at = monotonic()

    def _partition(self, member: int | None) -> Partition:
        key = self._settings.key(member)
        partition = self._positions.partition(member, self._before.get(key))
        self._before.pop(key, None)
        return partition

    def leave(self) -> None:
        """Free the slots, and forget the partitions."""
        self.free_slots()
        self.current, self._before = [], {}

    def free_slots(self) -> None:
        """Do this before the session that holds their locks is closed: it may go back to a pool."""
        slots, self._slots = self._slots, None
        if slots is not None:
            self._session.is_ending = True
            with suppress(Exception, ConnectionLost, Unavailable):
                slots.leave()

    def abandon(self) -> None:
        """In a forked child process: they are the parent's."""
        self._slots, self.current = None, []
        self.due = self.share_at = inf

    def backlog(self) -> int:
        """The number of messages that are still to be read."""
        after = {partition.key: partition.position for partition in self.current}
        return sum(each.size for each in self._session.run(backlogs(self._settings.category, after)))

    # What is due

    def expect_record(self, partition: Partition) -> None:
        """Call this before messages are handed over: from then on, the partition's position can be due first."""
        self.due = min(self.due, partition.record_by)

    def catch_up(self, partition: Partition) -> None:
        """There is nothing more to read in the partition: record that, also while another one has work."""
        if partition.is_ahead:
            partition.catch_up()
            self.expect_record(partition)

    def keep_up(self) -> bool:
        """Do what is due; returns whether the partitions changed."""
        now = monotonic()
        before = self.current
        for partition in before:
            overdue = now >= partition.record_by or partition.unrecorded >= self._settings.record_every
            if partition.is_ahead and overdue:
                try:
                    self._positions.record(partition)
                except Superseded as superseded:
                    self.resolve(partition, superseded.conflict)
        if now >= self.share_at:
            self._share()
        self.due = min(self.next_due(), now + self._settings.record_seconds)
        return before is not self.current

    def next_due(self) -> float:
        ahead = (partition.record_by for partition in self.current if partition.is_ahead)
        return min(self.share_at, *ahead, inf)

    def pause(self, until: float, partition: Partition) -> None:
        """Wait until this time of ``monotonic``, and meanwhile do what is due.

        Raises Stopped, and Released if the partition is given up.
        """
        while not self._host.stopping:
            if partition.is_released:
                raise Released
            now = monotonic()
            if now >= until:
                return
            self._host.wait(min(until, self.due) - now)
            if monotonic() >= self.due:
                self.keep_up()
        raise Stopped

    def record_all(self, error: BaseException | None = None) -> None:
        """Record every position that is ahead. If ``error`` is being raised, log a second one instead of hiding it."""
        self._session.is_ending = error is not None
        for partition in self.current:
            if not partition.is_ahead:
                continue
            try:
                with nullcontext() if self._settings.has_slots else self._session.usable():
                    self._positions.record(partition)
            except Superseded as superseded:
                if error is None and not self._settings.has_slots:
                    raise superseded.conflict from superseded.__cause__
                self._log(logging.WARNING, f"could not record its position: {superseded.conflict}", partition)
            except Unavailable as failed:
                self._log(
                    logging.WARNING, f"stops without recording its position: {first_line(failed.error)}", partition
                )
            except (Exception, ConnectionLost) as failed:
                if error is None:
                    raise
                reason = failed.error if isinstance(failed, ConnectionLost) else failed
                self._log(logging.WARNING, f"could not record its position: {first_line(reason)}", partition)

    def resolve(self, partition: Partition, conflict: PositionConflict) -> None:
        """Another consumer recorded a position of this partition: raise the conflict, or continue from that position
        if this process holds the slot."""
        self._drop(partition)
        if not self._settings.has_slots:
            raise conflict
        # We hold the lock, so the slot is ours. Another process has lost it without noticing, and continued.
        self._log(logging.WARNING, f"continues from what another consumer recorded: {conflict}", partition)
        self.current = [*self.current, self._partition(partition.key.group_member)]

    # Slots

    def _share(self) -> None:
        assert self._slots is not None
        for slot in self._slots.share(self._give_up):
            self._log(logging.INFO, f"takes slot {slot}")
            self.current = [*self.current, self._partition(slot)]
        self.share_at = monotonic() + _SHARE_SECONDS

    def _give_up(self, slot: int) -> None:
        (partition,) = (each for each in self.current if each.key.group_member == slot)
        try:
            if partition.is_ahead:
                self._positions.record(partition)
        except Superseded as superseded:
            logger.debug("%s", superseded.conflict)
        self._log(logging.INFO, f"gives up slot {slot}", partition)
        self._drop(partition)

    def _drop(self, partition: Partition) -> None:
        partition.is_released = True
        self.current = [each for each in self.current if each.key != partition.key]
