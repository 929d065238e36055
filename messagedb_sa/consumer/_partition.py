"""A partition: what a consumer reads with a position of its own."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from messagedb_sa.message import Message
from messagedb_sa.store._consumer_streams import ConsumerKey
from messagedb_sa.store._operation import Page
from messagedb_sa.store._positions import Recorded

# Between two records of a consumer that catches up again and again.
_CAUGHT_UP_SECONDS = 0.05

# What a consumer of $all records is itself a message that it skips: with fewer, it would never come to an end.
_SKIPPED_AT_MOST = 1000


@dataclass(slots=True, eq=False)
class Partition:
    """The category, or the part of it that a member of a group or a slot gets."""

    key: ConsumerKey
    position_stream: str
    page: Page
    # The global positions of the last message that was handled, and of the last that is recorded as handled.
    position: int
    recorded: int
    # What the last record was, so that one by another consumer is noticed.
    last_record: Recorded
    record_by: float
    unrecorded: int = 0
    # Messages that were skipped since then.
    skipped: int = 0
    # Messages up to here have a transaction each.
    alone_until: int = 0
    # The message at ``position``, if this consumer has handled or skipped it.
    last: Message | None = None
    recorded_at: float = -inf
    # Whether it is no longer this consumer's.
    is_released: bool = False

    @property
    def is_ahead(self) -> bool:
        return self.position > self.recorded

    def catch_up(self) -> None:
        """There is nothing more to read: somebody may wait until that is recorded. While messages come one by one, not
        each is recorded, since a record takes as long as a write."""
        self.record_by = min(self.record_by, self.recorded_at + _CAUGHT_UP_SECONDS)

    def skip(self, message: Message) -> None:
        """Move past a skipped message. It does not make it necessary to record the position, unless there are many:
        others who look for the first message after the position would have to pass all of them."""
        self.skipped += 1
        if not self.is_ahead and self.skipped < _SKIPPED_AT_MOST:
            self.recorded = message.global_position
        self.position = message.global_position
        self.last = message
