"""Timing side by side: what is compared takes turns, so that the machine's moods fall on all alike."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from random import Random
from statistics import median, quantiles
from threading import Barrier, Thread
from typing import Any

_random = Random(1)


@dataclass(frozen=True)
class Call:
    """What is timed is ``do`` alone; ``prepare`` makes its argument beforehand, from a number that goes up."""

    do: Callable[[Any], object]
    prepare: Callable[[int], Any] = int


@dataclass(frozen=True)
class Ratio:
    """The median of the rounds' ratios, and their quartiles."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Samples:
    """Seconds a call, by who made it; the lists run by rounds."""

    seconds: Mapping[str, list[float]]

    def median(self, name: str) -> float:
        return median(self.seconds[name])

    def ratio(self, name: str, other: str) -> Ratio:
        """How many times as long as ``other`` it takes: in each round, and then the middle of those."""
        ratios = [mine / its for mine, its in zip(self.seconds[name], self.seconds[other], strict=True)]
        low, value, high = quantiles(ratios, n=4, method="inclusive")
        return Ratio(value, low, high)


def in_random_order(names: Mapping[str, Any]) -> list[str]:
    return _random.sample(list(names), len(names))


class Comparison:
    """Calls that take turns. Each round each makes ``block`` calls at a stretch, in random order; a sample is the time
    of one of them.

    Before its stretch each makes a call that does not count. ``answer`` is the number of messages that a call has to
    return.
    """

    def __init__(self, calls: Mapping[str, Call], block: int, answer: int | None = None) -> None:
        self.calls = calls
        self.samples = Samples({name: [] for name in calls})
        self._block = block
        self._answer = answer
        self._numbers = {name: count() for name in calls}

    def run(self, rounds: int) -> Samples:
        """So many rounds more, after one that does not count; all samples so far."""
        # A process that holds all that is compared has more for Python's collector to walk through than one that holds
        # one.
        gc.collect()
        gc.freeze()
        for number in range(rounds + 1):
            for name in in_random_order(self.calls):
                taken = _stretch(self.calls[name], self._block, self._numbers[name], self._answer)
                if number > 0:
                    self.samples.seconds[name].append(taken)
        gc.unfreeze()
        return self.samples


def _stretch(call: Call, block: int, numbers: count[int], answer: int | None) -> float:
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


def seconds_of_threads(write: Callable[[str], object], streams: Sequence[str], writes: int) -> float:
    """How long it takes a thread for each stream to write so often to it, all at the same time."""
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
    return time.perf_counter() - began
