"""Tests of entities without a database: as an application writes them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from datetime import datetime, timezone
from typing import Any

import pytest

from messagedb_sa import Entity, InvalidArgument, NewMessage, Store
from messagedb_sa.testing import given

from .support import Account, Deposited, Opened, Refused, Withdrawn, account, deposit, plus, total, types, withdraw


def test_given_events_when_a_decision_is_made_then_events() -> None:
    given(account(), Opened("Ada"), Deposited(10)).when(withdraw(5)).then(Withdrawn(5))
    given(account()).when(lambda state: [Opened("Ada"), ("Noted", [1])]).then(Opened("Ada"), ("Noted", [1]))


def test_nothing_is_then_without_events() -> None:
    given(account(), Deposited(1)).when(lambda state: None).then()
    with pytest.raises(AssertionError, match=r'^expected\n  nothing\ndecided\n  Deposited {"cents": 5}$'):
        given(account()).when(deposit(5)).then()


def test_an_error_is_raised_as_it_is() -> None:
    with pytest.raises(Refused, match="the balance is 10"):
        given(account(), Deposited(10)).when(withdraw(11))


def test_the_state_after_the_decision_can_be_tested() -> None:
    scenario = given(account(), Opened("Ada"), Deposited(10)).when(withdraw(3))
    assert (scenario.state.owner, scenario.state.balance, scenario.state.seen) == ("Ada", 7, ["0@1", "1@2", "2@3"])
    assert scenario.when(withdraw(7)).then(Withdrawn(7)).state.balance == 0
    # Each step leaves the one before as it was.
    assert scenario.state.balance == 7
    scenario.state.seen.clear()
    assert len(scenario.state.seen) == 3


def test_the_function_may_change_the_state_that_it_gets() -> None:
    def decide(state: Account) -> Deposited:
        state.balance = 1_000
        return Deposited(1)

    assert given(account()).when(decide).then(Deposited(1)).state.balance == 1


def test_the_assertion_shows_what_was_expected_and_what_was_decided() -> None:
    with pytest.raises(AssertionError) as error:
        given(account(), Deposited(10)).when(withdraw(5)).then(Withdrawn(6), Opened("Ada"))
    assert str(error.value) == (
        'expected\n  TakenOut {"cents": 6}\n  Opened {"owner": "Ada"}\ndecided\n  TakenOut {"cents": 5}'
    )


@pytest.mark.parametrize(
    ("decided", "expected", "is_same"),
    [
        (("T", {"a": 1, "b": 2}), ("T", {"b": 2, "a": 1}), True),
        (("T", {"a": 1}), ("T", {"a": True}), False),
        (("T", {"a": (1, 2)}), ("T", {"a": [1, 2]}), True),
        (("T", None), ("T", {}), False),
        (("T", {}), ("U", {}), False),
        (("T", {}, {"by": "Ada"}), ("T", {}), True),
        (("T", {}, {"by": "Ada"}), ("T", {}, {"by": "Ada"}), True),
        (("T", {}, {"by": "Ada"}), ("T", {}, {"by": "Bob"}), False),
        (("T", {}), ("T", {}, {"by": "Bob"}), False),
        (Deposited(1), ("Deposited", {"cents": 1}), True),
        (Deposited(1), NewMessage("Deposited", {"cents": 1}), True),
    ],
)
def test_events_are_compared_as_they_would_be_stored(decided: Any, expected: Any, is_same: bool) -> None:
    scenario = given(account()).when(lambda state: decided)
    if is_same:
        scenario.then(expected)
    else:
        with pytest.raises(AssertionError, match=r"^expected\n"):
            scenario.then(expected)


def test_then_needs_a_decision() -> None:
    with pytest.raises(AssertionError, match="needs a decision"):
        given(account(), Deposited(1)).then(Deposited(1))


def test_it_goes_the_way_of_a_store(store: Store) -> None:
    events: list[Any] = [Opened("Ada"), ("TakenOut", {"amount": 1}), ("Noted", (1, 2.5, None)), ("T", 1e16, {"a": 1})]
    scenario = given(account(), *events)
    store.write_batch("account-1", [types.new_message(events[0]), *events[1:]])
    for made, real in zip(scenario.messages, store.read("account-1", no_of_messages=-1), strict=True):
        assert made.type == real.type
        assert made.position == real.position
        assert made.metadata == real.metadata
    real_messages = Store(store.engine, types=types).read("account-1")
    assert [each.data for each in scenario.messages] == [each.data for each in real_messages]
    assert type(scenario.messages[3].data) is type(real_messages[3].data)
    assert scenario.state.balance == -100
    assert scenario.messages[0].time == datetime(2000, 1, 1, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("event", "text"),
    [
        ("Deposited", r"events\[0\]='Deposited'"),
        (("Deposited", {"cents": "5"}), r"events\[0\].data="),
        (7, r"events\[0\]=7"),
        (("T", {"a": float("nan")}), r"events\[0\].data=.*nan"),
        (("T", {}, 7), r"events\[0\].metadata=7"),
    ],
)
def test_what_a_store_refuses_is_refused(event: Any, text: str) -> None:
    with pytest.raises(InvalidArgument, match=text):
        given(account(), event)
    with pytest.raises(InvalidArgument, match=text.replace("events", r"function\(state\)")):
        given(account()).when(lambda state: [event])
    with pytest.raises(InvalidArgument, match=text):
        given(account()).when(lambda state: None).then(event)


def test_what_is_not_an_entity_or_a_function_is_refused() -> None:
    wrong: Any = "account"
    with pytest.raises(InvalidArgument, match=r"^entity='account': must be an Entity"):
        given(wrong)
    decided: Any = Deposited(1)
    with pytest.raises(InvalidArgument, match=r"^function=.*must be a function of the state"):
        given(account()).when(decided)


def test_the_types_may_be_those_of_the_store() -> None:
    entity = Entity("account", Account)
    given(entity, Deposited(1), types=types).when(withdraw(1)).then(Withdrawn(1))
    with pytest.raises(InvalidArgument, match="must be registered in the types"):
        given(entity, ("Deposited", {"cents": 1}))


def test_a_state_that_no_snapshot_can_hold_is_an_error() -> None:
    entity: Entity[Any] = Entity("thing", dict, lambda state, message: {"n": {1, 2}}, snapshot_every=100)
    with pytest.raises(InvalidArgument, match=r"state=.*JSON"):
        given(entity, ("T", {}))
    entity = Entity("thing", dict, lambda state, message: {"n": (1, 2)}, snapshot_every=100)
    with pytest.raises(InvalidArgument, match=r"state=.*must be read as it was written, but its \['n'\]"):
        given(entity, ("T", {}))
    given(account(snapshot_every=100), Deposited(1)).when(withdraw(1)).then(Withdrawn(1))


def test_a_coroutine_function_is_run() -> None:
    async def decide(state: int) -> list[tuple[str, dict[str, int]]]:
        await asyncio.sleep(0)
        return [("Added", {"n": state + 1})]

    assert given(total(), ("Added", {"n": 1})).when(decide).then(("Added", {"n": 2})).state == 3

    async def test() -> None:
        with pytest.raises(InvalidArgument, match="make that test a plain function"):
            given(total()).when(decide)

    asyncio.run(test())


def test_it_uses_no_cache() -> None:
    entity = total(cache=1)
    given(entity).when(plus(1))
    assert not entity._cache._of_process.own.by_key  # type: ignore[union-attr]


def test_importing_it_does_not_import_sqlalchemy() -> None:
    program = "import sys, messagedb_sa.testing; print([each for each in sys.modules if 'sqlalchemy' in each])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
