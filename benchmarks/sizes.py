"""How much is measured: all of it, or little of everything to see that it runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    rounds: float
    """How many rounds, as a part of those in the full run."""
    grouped: int
    """Messages in the category that a consumer group reads."""
    iterated: int
    """Messages in the category that is read from end to end."""
    repetitions: int
    """How often that is done, and how often the threads write."""
    writes_per_thread: int
    growth: tuple[int, ...]
    """Messages in the store."""

    def scaled(self, rounds: float) -> int:
        return max(3, round(rounds * self.rounds))


FULL = Sizes(
    rounds=1.0,
    grouped=400_000,
    iterated=1_000_000,
    repetitions=7,
    writes_per_thread=200,
    growth=(10_000, 1_000_000, 5_000_000),
)
QUICK = Sizes(
    rounds=0.05,
    grouped=100_000,
    iterated=20_000,
    repetitions=2,
    writes_per_thread=20,
    growth=(10_000, 20_000, 50_000),
)
