"""The clock by which we wait."""

from __future__ import annotations

import time
from functools import partial

# Libraries that stop or move the time in tests, such as freezegun, replace time.monotonic too, also where a module has
# it as an attribute. Waits that compare times would then never end. These libraries leave clock_gettime alone. On
# macOS, time.monotonic is CLOCK_UPTIME_RAW, elsewhere CLOCK_MONOTONIC.
monotonic = (
    partial(time.clock_gettime, getattr(time, "CLOCK_UPTIME_RAW", time.CLOCK_MONOTONIC))
    if hasattr(time, "clock_gettime")
    else time.monotonic
)
"""Seconds on a clock that nobody sets, as time.monotonic."""
