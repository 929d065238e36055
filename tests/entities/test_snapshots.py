"""Snapshots: written by decisions, read by loads, in the form of Eventide's entity-snapshot-postgres."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any
from uuid import uuid4

import attrs
import msgspec
import pydantic
import pytest
from pydantic.alias_generators import to_camel
from sqlalchemy import Engine, text

from messagedb_sa import Consumer, Entity, InvalidArgument, Message, MessageTypes, Store, applies

from ..store.support import usable
from ..support import NESTED, insert, nested_is_refused, statements_of
from .support import account, add, deposit, fill, plus, total, types


def snapshots(store: Store, id: str = "1") -> list[Message]:
    return store.read_stream(f"account:snapshot-{id}")


def test_a_decision_writes_one_when_so_many_events_have_come(each_store: Store) -> None:
    entity = account(snapshot_every=3)
    for _ in range(7):
        each_store.decide(entity, "1", deposit(1))
    assert [each.data["entityVersion"] for each in snapshots(each_store)] == [2, 5]
    assert [each.type for each in snapshots(each_store)] == ["Recorded", "Recorded"]
    assert each_store.load(entity, "1") == each_store.load(account(), "1")


def test_a_load_writes_none(store: Store) -> None:
    fill(store, 10)
    store.load(account(snapshot_every=3), "1")
    assert snapshots(store) == []
    store.decide(account(snapshot_every=3), "1", deposit(1))
    assert [each.data["entityVersion"] for each in snapshots(store)] == [10]


def test_snapshot_and_tail_come_in_one_round_trip(store: Store) -> None:
    entity = account(snapshot_every=100)
    fill(store, 2_000)
    store.decide(entity, "1", deposit(1))
    fill(store, 50)
    sent = statements_of(store.engine)
    assert store.load(entity, "1").state.balance == 2_051
    assert len(sent) == 1


def test_a_long_tail_is_read_page_by_page(store: Store) -> None:
    entity = account(snapshot_every=1)
    store.decide(entity, "1", deposit(1))
    fill(store, 1_500)
    sent = statements_of(store.engine)
    assert store.load(entity, "1") == store.load(account(), "1")
    assert len(sent) == 2 + 2


def test_without_snapshots_a_load_with_them_is_one_round_trip_too(store: Store) -> None:
    fill(store, 3)
    sent = statements_of(store.engine)
    assert store.load(account(snapshot_every=100), "1").state.balance == 3
    assert len(sent) == 1


# The form is Eventide's


@dataclass
class Thing:
    some_attribute: str = ""
    some_time: datetime | None = None
    nested_values: list[dict[str, int]] = field(default_factory=list)

    @applies("Happened")
    def happened(self, message: Message) -> None:
        self.some_attribute = message.data["some"]
        self.some_time = datetime(2026, 11, 25, tzinfo=timezone.utc)
        self.nested_values = [{"one_two": 1}]


thing = Entity("thing", Thing, snapshot_every=1)


def test_it_is_written_as_eventide_writes_it(store: Store) -> None:
    store.decide(thing, "7", lambda state: ("Happened", {"some": "text"}))
    (event,) = store.read_stream("thing-7")
    (snapshot,) = store.read_stream("thing:snapshot-7")
    assert snapshot.type == "Recorded"
    assert snapshot.data == {
        "entityData": {
            "someAttribute": "text",
            "someTime": "2026-11-25T00:00:00Z",
            "nestedValues": [{"oneTwo": 1}],
        },
        "entityVersion": 0,
        "time": event.time.strftime("%Y-%m-%dT%H:%M:%S.") + f"{event.time.microsecond // 1000:03}Z",
    }
    assert snapshot.metadata == {"lastMessageId": event.id}


# As Ruby wrote them: MessageData::Hash of entity_data, entity_version and time, camelized, without metadata.
RUBY = (
    '{"entityData":{"someAttribute":"from Ruby","someTime":"2000-01-01T00:00:00.011Z","nestedValues":[{"oneTwo":3}]},'
    '"entityVersion":%s,"time":"2026-11-25T21:20:51.123Z"}'
)


def test_one_that_eventide_wrote_is_read(each_store: Store, store: Store) -> None:
    store.write_batch("thing-7", [("Happened", {"some": "old"})] * 4)
    insert(store, "thing:snapshot-7", 0, "Recorded", RUBY % 3)
    sent = statements_of(each_store.engine)
    state, version = each_store.load(thing, "7")
    assert version == 3
    assert state == Thing("from Ruby", datetime(2000, 1, 1, microsecond=11_000, tzinfo=timezone.utc), [{"one_two": 3}])
    assert len(sent) == 1


def test_without_a_time_it_is_read_too(store: Store) -> None:
    store.write("total-1", "Added", {"n": 1})
    insert(store, "total:snapshot-1", 0, "Recorded", '{"entityData": 5, "entityVersion": 0}')
    assert store.load(total(snapshot_every=9), "1") == (5, 0)


def test_a_class_with_eventides_names_is_read(store: Store) -> None:
    class Model(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(alias_generator=to_camel, populate_by_name=True)
        some_attribute: str = ""

        @applies("Happened")
        def happened(self, message: Message) -> None:
            self.some_attribute = message.data["some"]

    entity = Entity("thing", Model, snapshot_every=1)
    store.decide(entity, "1", lambda state: ("Happened", {"some": "text"}))
    assert store.load(entity, "1").state.some_attribute == "text"
    insert(store, "thing:snapshot-1", 1, "Recorded", '{"entityData": {"someAttribute": "Ruby"}, "entityVersion": 0}')
    assert store.load(entity, "1").state.some_attribute == "Ruby"


@pytest.mark.parametrize(
    ("category", "stream"),
    [
        ("account", "account:snapshot-a-b"),
        ("account:v2", "account:v2+snapshot-a-b"),
        ("account:a+b", "account:a+b+snapshot-a-b"),
    ],
)
def test_its_stream_is_of_the_categorys_snapshots(store: Store, category: str, stream: str) -> None:
    entity = Entity(category, int, add, snapshot_every=1)
    assert store.decide(entity, "a-b", plus(3)).state == 3
    assert [each.data["entityVersion"] for each in store.read_stream(stream)] == [0]
    assert store.load(entity, "a-b") == (3, 0)


@pytest.mark.parametrize(
    "state",
    [
        {"USD": 1, "a_b": 2},
        {"aB": 1},
        {"a-b": 1},
        {"": 1, "_": 2, "__a": 3, "a_": 4, "A": 5},
        {"a_1": {"b_c": [{"D": None}]}},
        {"one_two": {"three_four": [1.5, True, None, "five_six"]}},
    ],
    ids=json.dumps,
)
def test_keys_that_eventides_casing_would_change_come_back_as_they_are(store: Store, state: Any) -> None:
    entity: Entity[dict[str, Any]] = Entity("doc", dict, lambda state, message: message.data, snapshot_every=1)
    store.decide(entity, "1", lambda _: ("Put", state))
    assert len(store.read("doc:snapshot")) == 1
    store.write("doc-1", "Put", {})
    assert _in_last_snapshot(store, "doc") == state


def _in_last_snapshot(store: Store, category: str) -> Any:
    """The state in the snapshot alone: what comes after it changes nothing."""
    entity: Entity[dict[str, Any]] = Entity(category, dict, lambda state, message: None, snapshot_every=9)
    return store.load(entity, "1").state


# Classes of states


@attrs.define
class OfAttrs:
    n: int = 0


class OfMsgspec(msgspec.Struct):
    n: int = 0


class OfPydantic(pydantic.BaseModel):
    n: int = 0


class Own:
    def __init__(self, n: int = 0) -> None:
        self.n = n


with_own = MessageTypes()
with_own.register(Own, encode=lambda own: {"number": own.n}, decode=lambda data: Own(data["number"]))


@pytest.mark.parametrize("cls", [OfAttrs, OfMsgspec, OfPydantic, Own])
def test_the_state_may_be_of_any_class_that_is_made_json(store: Store, cls: Any) -> None:
    def change(state: Any, message: Message) -> None:
        state.n += message.data["n"]

    entity = Entity("thing", cls, change, snapshot_every=1, types=with_own)
    store.decide(entity, "1", lambda _: ("T", {"n": 5}))
    assert len(store.read("thing:snapshot")) == 1
    store.write("thing-1", "T", {"n": 2})
    state, version = store.load(entity, "1")
    assert (type(state), state.n, version) == (cls, 7, 1)


@pytest.mark.parametrize("begin", [int, str, list, float, bool, lambda: {"n": [1]}])
def test_the_state_may_be_a_json_value(store: Store, begin: Any) -> None:
    entity: Entity[Any] = Entity("thing", begin, lambda state, message: None, snapshot_every=1)
    store.decide(entity, "1", lambda _: ("T", {}))
    assert store.read("thing:snapshot")[0].data["entityData"] == begin()
    assert store.load(entity, "1").state == begin()


# Which are ignored


def ignored(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


def test_one_of_another_version_of_the_state_is_ignored(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    old, new = total(snapshot_every=1), Entity("total", int, lambda n, m: n + 1, snapshot_every=1, state_version=2)
    store.decide(old, "1", plus(5))
    assert store.load(new, "1") == (1, 0)
    store.decide(new, "1", plus(5))
    assert store.read_stream("total:snapshot-1")[-1].metadata["schemaVersion"] == "2"
    assert ignored(caplog) == []


def test_each_version_finds_its_own_while_both_are_deployed(store: Store) -> None:
    old, new = total(snapshot_every=1), total(snapshot_every=1, state_version=2)
    fill_total(store, 3)
    store.decide(old, "1", plus(1))
    store.decide(new, "1", plus(1))
    sent = statements_of(store.engine)
    assert store.load(old, "1") == store.load(new, "1") == (5, 4)
    assert len(sent) == 2
    assert store.decide(total(snapshot_every=3), "1", plus(1)) == (6, 5)
    assert len(store.read("total:snapshot")) == 2


def fill_total(store: Store, number: int) -> None:
    store.write_batch("total-1", [("Added", {"n": 1})] * number)


@pytest.mark.parametrize(
    "data",
    [
        '{"entityData": 100, "entityVersion": 7, "time": "2026-11-25T21:20:51.123Z"}',
        '{"entityData": 100, "entityVersion": 1e300}',
        '{"entityData": 100, "entityVersion": -1e300}',
        '{"entityData": 100, "entityVersion": -1}',
        '{"entityData": 100, "entityVersion": 0.5}',
        '{"entityVersion": 0}',
    ],
)
def test_one_that_does_not_fit_the_stream_is_ignored_with_a_warning(
    each_store: Store, store: Store, caplog: pytest.LogCaptureFixture, data: str
) -> None:
    fill_total(store, 2)
    insert(store, "total:snapshot-1", 0, "Recorded", data)
    assert each_store.load(total(snapshot_every=9), "1") == (2, 1)
    (said,) = ignored(caplog)
    assert said.startswith("ignored the snapshot at position 0 of total:snapshot-1: ")


@pytest.mark.parametrize(
    ("type_", "data"),
    [
        ("Recorded", '{"entityData": 100, "entityVersion": "0"}'),
        ("Recorded", '{"position": 3}'),
        ("Recorded", "[]"),
        ("Recorded", "null"),
        ("Recorded", None),
        ("Noted", '{"entityData": 100, "entityVersion": 0}'),
    ],
)
def test_what_is_not_a_snapshot_is_passed_over(store: Store, type_: str, data: str | None) -> None:
    fill_total(store, 2)
    insert(store, "total:snapshot-1", 0, "Recorded", '{"entityData": 50, "entityVersion": 0}')
    insert(store, "total:snapshot-1", 1, type_, data)
    assert store.load(total(snapshot_every=9), "1") == (51, 1)


@pytest.mark.parametrize(
    "data",
    [
        '{"balance": 5}',
        '{"balance": "much", "owner": null, "seen": []}',
        "7",
        '{"owner": null, "more": 1}',
        '{"owner": null, "balance": 5, "seen": [], "added": 1}',
    ],
)
def test_one_that_the_class_does_not_take_is_ignored(store: Store, caplog: pytest.LogCaptureFixture, data: str) -> None:
    fill(store, 2)
    insert(store, "account:snapshot-1", 0, "Recorded", f'{{"entityData": {data}, "entityVersion": 0}}')
    assert store.load(account(snapshot_every=9), "1").state.balance == 2
    assert len(ignored(caplog)) == 1


@nested_is_refused
def test_one_that_python_cannot_decode_is_ignored(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    fill_total(store, 2)
    insert(store, "total:snapshot-1", 0, "Recorded", f'{{"entityData": {NESTED}, "entityVersion": 0}}')
    assert store.load(total(snapshot_every=9), "1") == (2, 1)
    assert len(ignored(caplog)) == 1


def test_one_of_a_stream_that_was_deleted_and_written_anew_is_ignored(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    entity = total(snapshot_every=3)
    fill_total(store, 2)
    store.decide(entity, "1", plus(100))
    with store.engine.begin() as connection:
        connection.execute(text("DELETE FROM message_store.messages WHERE stream_name = 'total-1'"))
    fill_total(store, 5)
    assert store.load(entity, "1") == (5, 4)
    assert "another event at version 2" in ignored(caplog)[0]


def test_a_class_that_is_registered_as_recorded_does_not_matter(store: Store) -> None:
    other = MessageTypes()

    @other.register
    @dataclass
    class Recorded:
        title: str

    entity = Entity("total", int, add, types=other, snapshot_every=1)
    store.decide(entity, "1", plus(3))
    assert len(store.read("total:snapshot")) == 1
    assert store.load(entity, "1") == (3, 0)


# If one cannot be written


def test_a_state_that_cannot_be_written_does_not_fail_the_decision(
    engine: Engine, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    entity: Entity[Any] = Entity("thing", list, lambda state, message: (message.data,), snapshot_every=1)
    assert store.decide(entity, "1", lambda _: ("T", 5)) == ((5,), 0)
    (said,) = ignored(caplog)
    assert said.startswith("wrote no snapshot to thing:snapshot-1: InvalidArgument: state=(5,): must be a list")
    assert store.read("thing:snapshot") == []
    with engine.begin() as connection:
        assert Store(connection).decide(entity, "1", lambda _: ("T", 6)).version == 1
        assert usable(connection)
    assert store.load(entity, "1").version == 1


def test_a_state_that_would_come_back_as_another_is_not_written(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    entity: Entity[Any] = Entity("thing", dict, lambda state, message: {"n": (1, 2)}, snapshot_every=1)
    store.decide(entity, "1", lambda _: ("T", 5))
    assert "its [" in ignored(caplog)[0]
    assert store.read("thing:snapshot") == []


def test_a_state_with_keys_that_json_does_not_have_is_not_written(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    entity: Entity[Any] = Entity("thing", dict, lambda state, message: {"n": {1: 2}}, snapshot_every=1)
    store.decide(entity, "1", lambda _: ("T", 5))
    assert ignored(caplog)[0].endswith("InvalidArgument: state={'n': {1: 2}}: at ['n']: the key 1 must be a string")
    assert store.read("thing:snapshot") == []


REFUSE = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NEW.stream_name LIKE '%:snapshot-%' THEN RAISE EXCEPTION 'no snapshots today'; END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER refuse BEFORE INSERT ON message_store.messages FOR EACH ROW EXECUTE FUNCTION refuse();
"""


@pytest.fixture
def refusing(store: Store) -> Any:
    """A database that accepts no snapshots."""
    with store.engine.begin() as connection:
        connection.exec_driver_sql(REFUSE.replace("%", "%%"))
    yield store
    with store.engine.begin() as connection:
        connection.execute(text("DROP FUNCTION refuse CASCADE"))


def test_an_error_of_the_database_does_not_fail_the_decision(
    each_store: Store, refusing: Store, caplog: pytest.LogCaptureFixture
) -> None:
    assert each_store.decide(total(snapshot_every=1), "1", plus(1)) == (1, 0)
    assert each_store.decide(total(snapshot_every=1, cache=1), "1", plus(1)) == (2, 1)
    assert all("wrote no snapshot to total:snapshot-1: " in said for said in ignored(caplog))
    assert len(ignored(caplog)) == 2


def test_in_the_callers_transaction_it_is_raised(engine: Engine, refusing: Store) -> None:
    with pytest.raises(Exception, match="no snapshots today"), engine.begin() as connection:
        Store(connection).decide(total(snapshot_every=1), "1", plus(1))
    assert refusing.read("$all") == []


def test_a_snapshot_is_rolled_back_with_the_callers_transaction(engine: Engine, store: Store) -> None:
    entity = total(snapshot_every=1)
    with engine.connect() as connection:
        joined = Store(connection)
        joined.decide(entity, "1", plus(1))
        assert len(joined.read("total:snapshot")) == 1
        assert joined.load(entity, "1") == (1, 0)
        connection.rollback()
    assert store.read("$all") == []


# Consumers


def test_consumers_are_not_disturbed(store: Store) -> None:
    for _ in range(3):
        store.decide(total(snapshot_every=1), "1", plus(1))
    got: list[str] = []
    for category in ("total", "$all"):
        consumer = Consumer(store, category, lambda message: got.append(message.stream_name))
        consumer.run_until_caught_up()
        assert got == ["total-1"] * 3
        got.clear()
    store.decide(total(snapshot_every=1), "1", plus(1))
    (status,) = store.consumers("$all")
    assert status.lag == 1
    Consumer(store, "total:snapshot", lambda message: got.append(message.type)).run_until_caught_up()
    assert got == ["Recorded"] * 4


def test_a_repeated_command_needs_no_snapshot(store: Store) -> None:
    entity, command = total(snapshot_every=1), uuid4()
    store.decide(entity, "1", plus(1), command_id=command)
    fill_total(store, 20)
    sent = statements_of(store.engine)
    assert store.decide(entity, "1", plus(1), command_id=command) == (21, 20)
    assert len(sent) == 1
    assert len(store.read("total:snapshot")) == 1


def test_an_entity_says_at_once_if_its_state_cannot_be_json() -> None:
    class Plain:
        pass

    with pytest.raises(InvalidArgument, match=r"begin=.*register it in the types of the entity, with encode= and"):
        Entity("account", Plain, lambda state, message: None, types=types, snapshot_every=1)
