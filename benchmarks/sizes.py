"""How much is measured: in a full run, and in a quick run that only shows whether everything works."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    rounds: float
    """The number of rounds, as a fraction of those in the full run."""
    repeat_seconds: float
    """How long rows may be repeated whose spread is too wide, in the whole run."""
    grouped: int
    """Messages in the category that a consumer group reads."""
    iterated: int
    """Messages in the category that is read completely."""
    consumed: int
    """Messages in the category that consumers handle."""
    bulk: int
    """Messages that are written at once."""
    repetitions: int
    """How often work is done of which one time takes long."""
    counted_seconds: float
    """For how long it is counted what consumers handle in transactions."""
    idle_seconds: float
    """For how long it is counted what idle consumers do."""
    writes_per_thread: int
    growth: tuple[int, ...]
    """The numbers of messages in the store at which calls are measured."""

    def scaled(self, rounds: float) -> int:
        return max(3, round(rounds * self.rounds))


FULL = Sizes(
    rounds=1.0,
    repeat_seconds=60,
    grouped=1_000_000,
    iterated=200_000,
    consumed=100_000,
    bulk=100_000,
    repetitions=7,
    counted_seconds=1.0,
    idle_seconds=12,
    writes_per_thread=100,
    growth=(10_000, 100_000, 1_000_000),
)
QUICK = Sizes(
    rounds=0.05,
    repeat_seconds=0,
    grouped=50_000,
    iterated=20_000,
    consumed=20_000,
    bulk=2_000,
    repetitions=2,
    counted_seconds=0.2,
    idle_seconds=1,
    writes_per_thread=20,
    growth=(10_000, 20_000, 30_000),
)
