"""Times without time zone as PostgreSQL's text: Python converts it in less than half the time that psycopg2 takes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

# Python 3.10 takes only three or six digits after the decimal point, while PostgreSQL leaves out zeros at the end.
_TAKES_THE_TEXT = sys.version_info >= (3, 11)
_OID = 1114
_IN_UTC = b"+00:00"


def leave_times(cursor: Any) -> None:
    """Let this cursor return them as bytes, if it is psycopg2's; whatever the application registered for them."""
    if _TAKES_THE_TEXT and hasattr(cursor, "string_types"):
        cursor.string_types = _unconverted()


@lru_cache(maxsize=1)
def _unconverted() -> dict[int, Any]:
    from psycopg2.extensions import BYTES  # type: ignore[import-untyped]

    return {_OID: BYTES}


def utc_of_texts(times: Sequence[bytes]) -> list[datetime]:
    """Aware times in UTC. Raises ValueError for times that Python does not have, and for a DateStyle other than ISO."""
    texts = (_IN_UTC + b"\n").join(times) + _IN_UTC
    return list(map(datetime.fromisoformat, texts.decode().split("\n")))
