"""What one look at a store has found, for ``messagedb status``."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from messagedb_sa.cli._consumers import COLUMNS as CONSUMER_COLUMNS
from messagedb_sa.cli._consumers import values_of as consumer_values
from messagedb_sa.cli._output import Column

if TYPE_CHECKING:
    from messagedb_sa import CategorySummary, ConsumerStatus, Message, OpenWriter
    from messagedb_sa.install import Finding

# Bounds of what one look reads. More is shown as "more than".
MAX_LAG = 100_000
MAX_PARKED = 1_000


class Status(NamedTuple):
    """What one look has found. ``trouble`` is what the last attempt failed of, if this is from an earlier one."""

    at: datetime
    database: str
    findings: list[Finding]
    categories: list[CategorySummary]
    last: Message | None
    per_minute: float
    consumers: list[ConsumerStatus]
    parked: Counter[tuple[str, str | None]]
    writers: list[OpenWriter]
    trouble: str | None = None

    def found(self, code: str) -> str:
        return next(each.found for each in self.findings if each.code == code)

    @property
    def messages(self) -> int:
        return sum(each.messages for each in self.categories)

    @property
    def is_estimate(self) -> bool:
        return any(each.is_estimate for each in self.categories)

    def codes(self, severity: str) -> list[str]:
        return list(dict.fromkeys(each.code for each in self.findings if each.severity == severity))


def as_row(found: Status) -> tuple[list[Column], list[Any]]:
    """For programs: one object."""
    names = [each.name for each in CONSUMER_COLUMNS]
    known: dict[str, Any] = {
        "time": found.at,
        "database": found.database,
        "server": found.found("server_version"),
        "store": found.found("store"),
        "notifications": found.found("notifications"),
        "messages": found.messages,
        "is_estimate": found.is_estimate,
        "per_minute": round(found.per_minute, 1),
        "last_message": None if found.last is None else found.last.as_json_dict(),
        "categories": [each._asdict() for each in found.categories],
        "consumers": [dict(zip(names, consumer_values(each), strict=True)) for each in found.consumers],
        "parked": [
            {"category": category, "identifier": identifier, "messages": number}
            for (category, identifier), number in found.parked.items()
        ],
        "open_writers": [each._asdict() for each in found.writers],
        "warnings": found.codes("warning"),
        "errors": found.codes("error"),
        "trouble": found.trouble,
    }
    return [*map(Column, known)], [*known.values()]
