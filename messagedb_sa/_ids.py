"""New message ids: UUIDs of version 7."""

from __future__ import annotations

import os
import time

# By random digit, one with the two bits of the variant (RFC 9562, section 4.1), and with the last two of the digit.
_VARIANT = {f"{digit:x}": f"{0b1000 | digit & 0b11:x}" for digit in range(16)}
# As many as 48 and 12 bits can count.
_TICKS = 1 << 60


def new_ids(number: int) -> list[str]:
    """New UUIDs of version 7 (RFC 9562, section 5.7), in ascending order.

    They begin with the time, so new ids go to the end of the index. Random ids would go to all its pages. The first 48
    bits count milliseconds, the next 12 bits count 4096ths of a millisecond (section 6.2, method 3), and 62 bits are
    random. A clock that stands before 1970, or after 10889, counts as at that end of the range.
    """
    ticks = min(max((time.time_ns() << 12) // 1_000_000, 0), _TICKS - number)
    randoms = os.urandom(8 * number).hex()
    ids = []
    for tick, at in enumerate(range(0, 16 * number, 16), ticks):
        t, variant = f"{tick:015x}", _VARIANT[randoms[at]]
        ids.append(f"{t[:8]}-{t[8:12]}-7{t[12:]}-{variant}{randoms[at + 1 : at + 4]}-{randoms[at + 4 : at + 16]}")
    return ids
