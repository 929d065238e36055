"""An account as an entity, and what the tests of entities share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from messagedb_sa import Entity, Message, MessageTypes, Store, applies

types = MessageTypes()


@types.register
@dataclass(frozen=True)
class Opened:
    owner: str


@types.register
@dataclass(frozen=True)
class Deposited:
    cents: int


@types.register(name="TakenOut", version=2)
@dataclass(frozen=True)
class Withdrawn:
    cents: int


@types.upcast("TakenOut", from_version=1)
def in_cents(data: dict[str, Any]) -> dict[str, Any]:
    return {"cents": data["amount"] * 100}


class Refused(Exception):
    pass


@dataclass
class Account:
    owner: str | None = None
    balance: int = 0
    seen: list[str] = field(default_factory=list)
    """Where each event was: its position, and its global one."""

    @applies(Opened)
    def opened(self, message: Message[Opened]) -> None:
        self.owner = message.data.owner
        self.note(message)

    @applies(Deposited)
    def deposited(self, message: Message[Deposited]) -> None:
        self.balance += message.data.cents
        self.note(message)

    @applies(Withdrawn)
    def withdrawn(self, message: Message[Withdrawn]) -> None:
        self.balance -= message.data.cents
        self.note(message)

    @applies("Renamed")
    def renamed(self, message: Message) -> None:
        self.owner = message.data["to"]
        self.note(message)

    def note(self, message: Message) -> None:
        self.seen.append(f"{message.position}@{message.global_position}")


def account(**options: Any) -> Entity[Account]:
    return Entity("account", Account, types=types, **options)


def deposit(cents: int) -> Any:
    return lambda state: Deposited(cents)


def withdraw(cents: int) -> Any:
    def decide(state: Account) -> Withdrawn:
        if cents > state.balance:
            raise Refused(f"the balance is {state.balance}")
        return Withdrawn(cents)

    return decide


def fill(store: Store, number: int, id: str = "1") -> None:
    """Deposits of 1 cent each."""
    store.write_batch(f"account-{id}", [("Deposited", {"cents": 1})] * number)


def add(state: int, message: Message) -> int:
    """The simplest entity: the sum of the numbers."""
    return state + int(message.data["n"])


def total(**options: Any) -> Entity[int]:
    return Entity("total", int, add, **options)


def plus(n: int) -> Any:
    return lambda state: ("Added", {"n": n})
