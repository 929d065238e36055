"""Classes of every supported kind, with instances and the JSON that they are stored as."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Annotated, Any
from uuid import UUID

import attrs
import msgspec
import pydantic
import pydantic.dataclasses
import pytest

from messagedb_sa import InvalidArgument

ID = "7d3a3b5e-6c3c-4f0e-9f5f-0a6f5a2f1a11"


WHEN = datetime(2026, 11, 23, 12, 30, tzinfo=timezone.utc)


class Colour(Enum):
    RED = "red"


class Size(IntEnum):
    SMALL = 1


@dataclass(frozen=True)
class Deposited:
    amount: int
    note: str | None = None


@dataclass(frozen=True)
class Line:
    item: str
    price: Decimal


@dataclass(frozen=True)
class Ordered:
    id: UUID
    at: datetime
    colour: Colour
    lines: list[Line]
    by_number: dict[int, date]


@attrs.frozen
class Withdrawn:
    amount: int = attrs.field(converter=int)
    _reason: str = "none"


@attrs.define
class Moved:
    at: datetime
    line: Line
    _secret: int = 7


class Struct(msgspec.Struct, rename="camel"):
    when_it_was: datetime
    tags: set[str] = set()


class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True, extra="forbid")

    when: datetime
    in_cents: int = pydantic.Field(alias="inCents")
    price: Decimal

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def in_euros(self) -> float:
        return self.in_cents / 100


@pydantic.dataclasses.dataclass
class Checked:
    amount: Annotated[int, pydantic.Field(gt=0)]
    on: date


INSTANCES: list[tuple[object, dict[str, Any]]] = [
    (Deposited(5), {"amount": 5, "note": None}),
    (
        Ordered(UUID(ID), WHEN, Colour.RED, [Line("lamp", Decimal("9.90"))], {7: date(2026, 1, 2)}),
        {
            "id": ID,
            "at": "2026-11-23T12:30:00Z",
            "colour": "red",
            "lines": [{"item": "lamp", "price": "9.90"}],
            "by_number": {"7": "2026-01-02"},
        },
    ),
    (Withdrawn(3, "rent"), {"amount": 3, "_reason": "rent"}),
    (
        Moved(WHEN, Line("lamp", Decimal(1)), 8),
        {"at": "2026-11-23T12:30:00Z", "line": {"item": "lamp", "price": "1"}, "_secret": 8},
    ),
    (Struct(WHEN, {"a"}), {"whenItWas": "2026-11-23T12:30:00Z", "tags": ["a"]}),
    (
        Model(when=WHEN, inCents=990, price=Decimal("9.90")),
        {"when": "2026-11-23T12:30:00Z", "inCents": 990, "price": "9.90"},
    ),
    (Checked(5, date(2026, 1, 2)), {"amount": 5, "on": "2026-01-02"}),
]


@dataclass
class Opened:
    first: str
    last: str
    country: str


def refused(call: Callable[[], object]) -> InvalidArgument:
    with pytest.raises(InvalidArgument) as caught:
        call()
    return caught.value
