"""Time several calls alternately, so that a slow phase of the machine affects all of them equally."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from random import Random
from statistics import median, quantiles
from threading import Barrier, Thread
from typing import Any

from calibration import CALIBRATION
from sizes import Sizes

ROW_SECONDS = 6
FEWEST_ROUNDS = 3
REPETITIONS = 2
WIDE = 0.1
"""A row is wide if the interval that has its true median with 95% certainty is wider than this part of the median."""

_random = Random(1)


@dataclass(frozen=True)
class Call:
    """A call to measure. Only ``do`` is timed. ``prepare`` makes its argument before, from the number of the call."""

    do: Callable[[Any], object]
    prepare: Callable[[int], Any] = int


@dataclass(frozen=True)
class Ratio:
    """The median of the ratios of all rounds, with the lower and upper quartile."""

    value: float
    low: float
    high: float
    is_wide: bool


@dataclass(frozen=True)
class Samples:
    """Seconds a call, by the name of the call. Each list has one item a round."""

    seconds: Mapping[str, list[float]]

    def median(self, name: str) -> float:
        return median(self.seconds[name])

    def ratio(self, name: str, other: str) -> Ratio:
        """How many times as long as ``other`` the call ``name`` takes: the ratio of each round, and their median."""
        ratios = [ours / theirs for ours, theirs in zip(self.seconds[name], self.seconds[other], strict=True)]
        low, value, high = quantiles(ratios, n=4, method="inclusive")
        return Ratio(value, low, high, _is_wide(ratios))

    def is_wide(self) -> bool:
        """Whether any ratio to the first call is wide; if there is only one call, whether its time is."""
        first, *others = self.seconds
        return any(self.ratio(name, first).is_wide for name in others) if others else _is_wide(self.seconds[first])


def _is_wide(values: Sequence[float]) -> bool:
    in_order = sorted(values)
    # The ranks between which the median is, whatever the distribution.
    rank = max(0, math.floor(len(values) / 2 - 0.98 * math.sqrt(len(values))))
    return in_order[-1 - rank] - in_order[rank] > WIDE * median(in_order)


def in_random_order(names: Mapping[str, Any]) -> list[str]:
    return _random.sample(list(names), len(names))


def alternately(calls: Mapping[str, Callable[[], float]], rounds: int, *, first_counts: bool = False) -> Samples:
    """Measure a row: the calls alternately, in rounds. Each call returns the seconds that it took.

    The first round does not count, unless you say so. The row ends early after ROW_SECONDS. If it is wide then, it is
    measured again, at most twice, and as long as the run has time for that; all rounds count.
    """
    samples = Samples({name: [] for name in calls})
    CALIBRATION.take()
    if not first_counts:
        for name in in_random_order(calls):
            calls[name]()
    for repetition in range(1 + REPETITIONS):
        began = time.monotonic()
        for number in range(1, rounds + 1):
            for name in in_random_order(calls):
                samples.seconds[name].append(calls[name]())
            if number >= FEWEST_ROUNDS and time.monotonic() - began > ROW_SECONDS:
                break
        if not samples.is_wide():
            return samples
        if repetition == REPETITIONS or not CALIBRATION.may_repeat(time.monotonic() - began):
            break
    CALIBRATION.wide.append(CALIBRATION.row)
    return samples


class Comparison:
    """Measures calls alternately, in rounds.

    In each round, in random order, each call is made ``block`` times in sequence; the sample is the mean time. One more
    call before them is not timed. ``answer`` is the number of messages that a call must return, or None for no check.
    """

    def __init__(self, calls: Mapping[str, Call], block: int, answer: int | None = None) -> None:
        self.calls = calls
        self._block = block
        self._answer = answer
        self._numbers = {name: count() for name in calls}

    def run(self, rounds: int) -> Samples:
        # All clients are in this process, so the garbage collector would have more objects to examine than in a process
        # with only one of them.
        gc.collect()
        gc.freeze()
        samples = alternately({name: partial(self._seconds, name) for name in self.calls}, rounds)
        gc.unfreeze()
        return samples

    def _seconds(self, name: str) -> float:
        return _sample(self.calls[name], self._block, self._numbers[name], self._answer)


def _sample(call: Call, block: int, numbers: count[int], answer: int | None) -> float:
    arguments = [call.prepare(next(numbers)) for _ in range(block + 1)]
    do = call.do
    returned = do(arguments.pop(0))
    if answer is not None:
        assert isinstance(returned, list)
        assert len(returned) == answer, f"{len(returned)} messages instead of {answer}"
    del returned
    gc.collect()
    began = time.perf_counter()
    for argument in arguments:
        do(argument)
    return (time.perf_counter() - began) / block


def of_threads(
    writers: Mapping[str, Callable[[str], object]], streams: Callable[[str], Sequence[str]], sizes: Sizes
) -> Samples:
    """Seconds a write of concurrent threads. Each writes to its own stream, of the streams of the writer's name."""
    calls = {
        name: partial(_seconds_of_threads, write, streams(name), sizes.writes_per_thread)
        for name, write in writers.items()
    }
    return alternately(calls, sizes.repetitions)


def _seconds_of_threads(write: Callable[[str], object], streams: Sequence[str], writes: int) -> float:
    ready = Barrier(len(streams) + 1)

    def work(stream: str) -> None:
        ready.wait()
        for _ in range(writes):
            write(stream)

    threads = [Thread(target=work, args=(stream,)) for stream in streams]
    for thread in threads:
        thread.start()
    ready.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    return (time.perf_counter() - began) / (len(streams) * writes)
