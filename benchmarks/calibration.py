"""How quiet the machine is: the same small work again and again, between the rows.

If nobody else uses the machine, fixed work of the processor and a trivial round trip take the same time whenever they
are run.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Any

from database import connect

AT_ONCE = 3
TRIPS = 50
PROCESSOR, ROUND_TRIP = "fixed work of the processor took", "a round trip took"
QUIET = {PROCESSOR: 1.25, ROUND_TRIP: 1.6}
"""How many times its best time each takes at most, nine times out of ten, if the machine is quiet."""


@dataclass
class Calibration:
    repeat_seconds: float
    """The time that is left for repeating rows."""
    connection: Any = None
    best: dict[str, float] = field(default_factory=dict)
    """The shortest time of the whole run."""
    seconds: dict[str, list[float]] = field(default_factory=dict)
    """All times since this part of the run began."""
    row: str = ""
    """What is measured now."""
    repeated: list[str] = field(default_factory=list)
    wide: list[str] = field(default_factory=list)

    def begin_part(self, url: str) -> None:
        if self.connection is None:
            self.connection = connect(url)
        self.seconds = {PROCESSOR: [], ROUND_TRIP: []}
        self.repeated, self.wide = [], []
        self.take()

    def may_repeat(self, seconds: float) -> bool:
        """Whether there is time to measure a row again, which takes so long. If so, it is taken."""
        if self.repeat_seconds < seconds:
            return False
        self.repeat_seconds -= seconds
        self.repeated.append(self.row)
        self.take()
        return True

    def end(self) -> None:
        self.connection.close()

    def take(self) -> None:
        if self.connection is None:
            return
        with self.connection.cursor() as cursor:
            for _ in range(AT_ONCE):
                began = time.perf_counter()
                _fixed_work()
                worked = time.perf_counter()
                for _ in range(TRIPS):
                    cursor.execute("SELECT 1")
                self._add(PROCESSOR, worked - began)
                self._add(ROUND_TRIP, (time.perf_counter() - worked) / TRIPS)

    def _add(self, kind: str, seconds: float) -> None:
        self.seconds[kind].append(seconds)
        self.best[kind] = min(seconds, self.best.get(kind, seconds))

    @property
    def is_quiet(self) -> bool:
        return all(self._slow(kind) <= limit for kind, limit in QUIET.items())

    def _slow(self, kind: str) -> float:
        """The 90th percentile, as a multiple of the best time."""
        return quantiles(self.seconds[kind], n=10, method="inclusive")[-1] / self.best[kind]

    def facts(self) -> list[str]:
        times = ", and ".join(
            f"{kind} {median(self.seconds[kind]) / self.best[kind]:.2f} ({self._slow(kind):.2f} in the slowest tenth)"
            for kind in QUIET
        )
        used = "the machine was quiet" if self.is_quiet else "**others used the machine**"
        return [
            f"{used}: in multiples of the best time of the run, {times}",
            # A row that was repeated twice is named once.
            f"repeated: {'; '.join(dict.fromkeys(self.repeated)) or 'nothing'}",
            f"stayed wide: {'; '.join(self.wide) or 'nothing'}",
        ]


def _fixed_work() -> int:
    total = 0
    for number in range(100_000):
        total += number & 7
    return total


CALIBRATION = Calibration(repeat_seconds=0)
"""That of this run."""

take = CALIBRATION.take
